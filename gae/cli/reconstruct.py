"""``gae reconstruct``: the reconstructions of data, in a file."""

from pathlib import Path

from gae.cli.common import (
    AsJson,
    CheckpointPath,
    DataName,
    Device,
    Devices,
    Nodes,
    Precision,
    RowsFile,
    SameBinarize,
    Seed,
    Split,
    SplitBy,
    in_its_dtype,
    load_like,
    placed,
    read,
    write_rows,
)
from gae.cli.terminal import print_results, reported
from gae.data.files import ROWS, check_file


@reported
def reconstruct(
    checkpoint: CheckpointPath,
    data: DataName,
    output: RowsFile = Path("reconstructions.npz"),
    split: Split = "all",
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    seed: Seed = 0,
    device: Device = "cpu",
    precision: Precision = "32",
    devices: Devices = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> None:
    """Write the reconstruction x of each observation in order: the decoder's mean at its code (for text, its mode).

    Values are in the units of the file: of 8-bit images from 0 to 255. Binarised data are reconstructed as
    probabilities. The file also holds index, split, labels and file names as that of `encode`; an .npy file has x
    alone.
    """
    from gae.analysis.rows import reconstructions
    from gae.training import launch

    check_file(output, *ROWS)
    fabric = launch(device, precision, devices, nodes)
    model, _ = read(checkpoint)
    dataset = load_like(model, data, binarize, split_by)
    rows = dataset.rows(split)
    fabric = placed(model, rows.x, fabric)
    restored = reconstructions(model, in_its_dtype(model, rows.x), fabric=fabric, seed=seed)
    blocks = ({"x": dataset.as_given(block["x"])} for block in restored)
    columns = write_rows(output, rows, blocks, "x", fabric)
    if fabric.is_global_zero:
        print_results({"file": str(output), **columns}, as_json)
