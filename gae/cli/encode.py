"""``gae encode``: the codes of data, in a file."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    CodeShape,
    Decoder,
    EncoderName,
    EngineName,
    HeadName,
    ModelData,
    ModelPath,
    Own,
    SameBinarize,
    Scale,
    Seed,
    Weights,
    in_its_dtype,
    load_like,
    open_model,
    save_arrays,
)
from gae.cli.terminal import print_results, reported
from gae.data.files import check_file


@reported
def encode(
    checkpoint: ModelPath,
    data: ModelData = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="An .npz file.")] = Path("codes.npz"),
    split: Annotated[str, typer.Option(help="train, test or all.")] = "all",
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
    its training part and then its test part), split (train or test), labels, and the file names of images.

    Codes are inferred by the model's own engine, or by --engine: an ascent from 0 (lbfgs, adam, gauss-newton), the
    encoder alone, or a few steps from it (refine). With --decoder the model is yours, under the prior N(0, I).
    """
    import torch

    from gae.analysis.engines import engine_of
    from gae.analysis.metrics import codes

    check_file(output, ".npz")
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    model, source = open_model(checkpoint, data, own, binarize, seed)
    if engine is not None:
        model.inference = engine_of(engine, model, steps)
    elif steps is not None:
        raise ValueError("--steps is for an engine by name. Give --engine too.")
    rows = load_like(model, source, binarize).rows(split)
    if own.decoder is not None and engine == "gauss-newton":
        from gae.adapters import check_curvature

        check_curvature(model, in_its_dtype(model, rows.x), products=True)
    torch.manual_seed(seed)
    arrays = {**codes(model, in_its_dtype(model, rows.x)), "index": rows.row.numpy(), "split": rows.split}
    if rows.labels is not None:
        arrays["labels"] = rows.labels.numpy()
    if rows.files is not None:
        arrays["files"] = rows.files
    save_arrays(output, arrays)
    results = {f"{name} {array.shape}": str(array.dtype) for name, array in arrays.items()}
    print_results({"file": str(output), "mean log_joint (nats)": float(arrays["log_joint"].mean()), **results}, as_json)
