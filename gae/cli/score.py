"""``gae score``: log p(x) and anomaly scores of data, in a file."""

from pathlib import Path
from typing import Annotated

import typer

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
from gae.cli.completion import SCORES, some_of
from gae.cli.terminal import print_results, reported
from gae.data.files import ROWS, check_file


@reported
def score(
    checkpoint: CheckpointPath,
    data: DataName,
    output: RowsFile = Path("scores.csv"),
    by: Annotated[
        str,
        typer.Option(
            help="evidence, reconstruction or gap; several are separated by commas.", autocompletion=some_of(SCORES)
        ),
    ] = "evidence",
    samples: Annotated[
        int, typer.Option(min=1, help="Importance samples per observation, where log p(x) is not known exactly.")
    ] = 500,
    split: Split = "all",
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write scores of each observation in order, in nats: log_p with its standard error and method.

    log_p is log p(x), exact where it has a closed form; where tight is False it is only a lower bound in expectation.
    With --by: reconstruction is -log q(x|z) at the code, and gap is log p(x) - ELBO of the encoder; the higher, the
    less x resembles the training data. The file also holds index, split, labels and file names as that of `encode`;
    an .npy file has the first score alone.
    """
    import torch

    from gae.analysis.rows import scores

    check_file(output, *ROWS)
    model, _ = read(checkpoint)
    rows = load_like(model, data, binarize, split_by).rows(split)
    torch.manual_seed(seed)
    names = [name.strip() for name in by.split(",")]
    block = scores(model, in_its_dtype(model, rows.x), names, samples)
    main = next(iter(block))
    columns = write_rows(output, rows, [block], main)
    means = {f"mean {name} (nats)": float(block[name].mean()) for name in ("log_p", *names) if name in block}
    loose = {} if "tight" not in block else {"lower bounds only": int((~block["tight"]).sum())}
    print_results({"file": str(output), **means, **loose, **columns}, as_json)
