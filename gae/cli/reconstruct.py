"""``gae reconstruct``: the reconstructions of data, in a file."""

from pathlib import Path

from gae.cli.common import (
    AsJson,
    CheckpointPath,
    DataName,
    RowsFile,
    SameBinarize,
    Seed,
    Split,
    SplitBy,
    in_its_dtype,
    load_like,
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
    as_json: AsJson = False,
) -> None:
    """Write the reconstruction x of each observation in order: the decoder's mean at its code (for text, its mode).

    Values are in the units of the file: of 8-bit images from 0 to 255. Binarised data are reconstructed as
    probabilities. The file also holds index, split, labels and file names as that of `encode`; an .npy file has x
    alone.
    """
    import torch

    from gae.analysis.rows import reconstructions

    check_file(output, *ROWS)
    model, _ = read(checkpoint)
    dataset = load_like(model, data, binarize, split_by)
    rows = dataset.rows(split)
    torch.manual_seed(seed)
    blocks = ({"x": dataset.as_given(block["x"])} for block in reconstructions(model, in_its_dtype(model, rows.x)))
    columns = write_rows(output, rows, blocks, "x")
    print_results({"file": str(output), **columns}, as_json)
