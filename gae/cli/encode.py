"""``gae encode``: the codes of data, in a file."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    AsJson,
    CheckpointPath,
    DataName,
    Device,
    Devices,
    Nodes,
    Precision,
    SameBinarize,
    Seed,
    in_its_dtype,
    load_like,
    placed,
    read,
    save_arrays,
)
from gae.cli.terminal import print_results, reported
from gae.data.files import check_file


@reported
def encode(
    checkpoint: CheckpointPath,
    data: DataName,
    output: Annotated[Path, typer.Option("--output", "-o", help="An .npz file.")] = Path("codes.npz"),
    split: Annotated[str, typer.Option(help="train, test or all.")] = "all",
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
    """
    from gae.analysis.metrics import codes
    from gae.training import launch

    check_file(output, ".npz")
    fabric = launch(device, precision, devices, nodes)
    model, _ = read(checkpoint)
    rows = load_like(model, data, binarize).rows(split)
    fabric = placed(model, rows.x, fabric)
    coded = codes(model, in_its_dtype(model, rows.x), fabric=fabric, seed=seed)
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
