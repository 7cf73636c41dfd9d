"""``gae encode`` and ``gae transform``: the codes of data, in a file."""

from pathlib import Path

from gae.cli.common import (
    AsJson,
    CheckpointPath,
    DataName,
    Mean,
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
def encode(
    checkpoint: CheckpointPath,
    data: DataName,
    output: RowsFile = Path("codes.npz"),
    split: Split = "all",
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write the codes of data in order: z, k, log_joint and log_q (nats, at the code), and the status of each solve.

    The file also holds index (the row of the source from 0, or the line of text; a predefined split counts through
    its training part and then its test part), split (train or test), labels, and the file names of images. In .csv
    and .parquet files z becomes the columns z0, z1, …; an .npy file has z alone.
    """
    import torch

    from gae.analysis.rows import codes

    check_file(output, *ROWS)
    model, _ = read(checkpoint)
    rows = load_like(model, data, binarize, split_by).rows(split)
    torch.manual_seed(seed)
    joint = Mean("log_joint")
    blocks = joint.over(codes(model, in_its_dtype(model, rows.x)))
    engine = type(model.inference).__name__
    columns = write_rows(output, rows, blocks, "z", {"engine": engine})
    print_results({"file": str(output), "engine": engine, "mean log_joint (nats)": joint.value, **columns}, as_json)


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
