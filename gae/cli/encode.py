"""``gae encode`` and ``gae transform``: the codes of data, in a file."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    CheckpointPath,
    CodeShape,
    DataName,
    Decoder,
    EncoderName,
    EngineName,
    HeadName,
    Mean,
    ModelData,
    ModelPath,
    Own,
    RowsFile,
    SameBinarize,
    Scale,
    Seed,
    Split,
    SplitBy,
    Weights,
    in_its_dtype,
    load_like,
    open_model,
    read,
    write_rows,
)
from gae.cli.terminal import print_results, reported
from gae.data.files import ROWS, check_file


@reported
def encode(
    checkpoint: ModelPath,
    data: ModelData = None,
    output: RowsFile = Path("codes.npz"),
    split: Split = "all",
    split_by: SplitBy = None,
    engine: EngineName = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Most steps of --engine.")] = None,
    decoder: Decoder = None,
    weights: Weights = None,
    latent: CodeShape = None,
    head: HeadName = None,
    scale: Scale = None,
    activated: Activated = False,
    encoder: EncoderName = None,
    binarize: SameBinarize = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write the codes of data in order: z, k, log_joint and log_q (nats, at the code), and the status of each solve.

    The file also holds index (the row of the source from 0, or the line of text; a predefined split counts through
    its training part and then its test part), split (train or test), labels, and the file names of images. In .csv
    and .parquet files z becomes the columns z0, z1, …; an .npy file has z alone.

    Codes are inferred by the model's own engine, or by --engine: an ascent from 0 (lbfgs, adam, gauss-newton), the
    encoder alone, or a few steps from it (refine). With --decoder the model is yours, under the prior N(0, I).
    """
    import torch

    from gae.analysis.engines import engine_of
    from gae.analysis.rows import codes

    check_file(output, *ROWS)
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    model, source = open_model(checkpoint, data, own, binarize, split_by, seed)
    if engine is not None:
        model.inference = engine_of(engine, model, steps)
    elif steps is not None:
        raise ValueError("--steps is for an engine by name. Give --engine too, such as --engine lbfgs.")
    rows = load_like(model, source, binarize, split_by).rows(split)
    if own.decoder is not None and engine == "gauss-newton":
        from gae.adapters import check_curvature

        check_curvature(model, in_its_dtype(model, rows.x), products=True)
    torch.manual_seed(seed)
    joint = Mean("log_joint")
    blocks = joint.over(codes(model, in_its_dtype(model, rows.x)))
    used = type(model.inference).__name__
    columns = write_rows(output, rows, blocks, "z", {"engine": used})
    print_results({"file": str(output), "engine": used, "mean log_joint (nats)": joint.value, **columns}, as_json)


@reported
def transform(
    checkpoint: CheckpointPath,
    data: DataName,
    output: RowsFile = Path("codes.csv"),
    split: Split = "all",
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write the codes of data as features: z alone (and k of a mixture), without densities; otherwise as `encode`."""
    import torch

    from gae.analysis.rows import codes

    check_file(output, *ROWS)
    model, _ = read(checkpoint)
    rows = load_like(model, data, binarize, split_by).rows(split)
    torch.manual_seed(seed)
    columns = write_rows(output, rows, codes(model, in_its_dtype(model, rows.x), scored=False), "z")
    print_results({"file": str(output), **columns}, as_json)
