"""``gae encode``: the codes of data, in a file."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    CodeShape,
    Decoder,
    Device,
    Devices,
    EncoderName,
    EngineName,
    HeadName,
    ModelData,
    ModelPath,
    Nodes,
    Own,
    Precision,
    SameBinarize,
    Scale,
    Seed,
    Weights,
    in_its_dtype,
    load_like,
    open_model,
    placed,
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
    device: Device = "cpu",
    precision: Precision = "32",
    devices: Devices = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> None:
    """Write the codes of data in order: z, k, log_joint and log_q (nats, at the code), and the status of each solve.

    The file also holds index (the row of the source from 0, or the line of text; a predefined split counts through
    its training part and then its test part), split (train or test), labels, and the file names of images. Several
    processes encode consecutive thousands of rows each; the first writes the file.

    Codes are inferred by the model's own engine, or by --engine: an ascent from 0 (lbfgs, adam, gauss-newton), the
    encoder alone, or a few steps from it (refine). With --decoder the model is yours, under the prior N(0, I).
    """
    from gae.analysis.engines import engine_of
    from gae.analysis.metrics import codes
    from gae.training import launch

    check_file(output, ".npz")
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    fabric = launch(device, precision, devices, nodes)
    model, source = open_model(checkpoint, data, own, binarize, seed)
    if engine is not None:
        model.inference = engine_of(engine, model, steps)
    elif steps is not None:
        raise ValueError("--steps is for an engine by name. Give --engine too.")
    rows = load_like(model, source, binarize).rows(split)
    fabric = placed(model, rows.x, fabric)
    x = in_its_dtype(model, rows.x)
    if own.decoder is not None:
        from gae.adapters import check_curvature, check_networks

        check = partial(check_curvature, products=True) if engine == "gauss-newton" else check_networks
        check(model, x)
    coded = codes(model, x, fabric=fabric, seed=seed)
    if not fabric.is_global_zero:
        return
    arrays = {**coded, "index": rows.row.numpy(), "split": rows.split}
    if rows.labels is not None:
        arrays["labels"] = rows.labels.numpy()
    if rows.files is not None:
        arrays["files"] = rows.files
    save_arrays(output, arrays)
    results = {f"{name} {array.shape}": str(array.dtype) for name, array in arrays.items()}
    print_results({"file": str(output), "mean log_joint (nats)": float(arrays["log_joint"].mean()), **results}, as_json)
