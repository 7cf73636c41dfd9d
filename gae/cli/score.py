"""``gae score``: log p(x) and anomaly scores of data, in a file."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    Channels,
    CodeShape,
    Crop,
    Decoder,
    Device,
    Devices,
    Drop,
    EncoderName,
    EngineName,
    EngineRestarts,
    EngineSteps,
    HeadName,
    Labels,
    Missing,
    ModelData,
    ModelPath,
    Nodes,
    Precision,
    SameBinarize,
    Scale,
    Seed,
    Size,
    Split,
    SplitBy,
    Trust,
    Weights,
)
from gae.cli.completion import SCORES, some_of
from gae.cli.rows import RowsFile, applied, write_rows
from gae.cli.terminal import print_results, reported
from gae.data.files import ROWS, check_file


@reported
def score(
    checkpoint: ModelPath,
    data: ModelData = None,
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
    engine: EngineName = None,
    steps: EngineSteps = None,
    restarts: EngineRestarts = 1,
    decoder: Decoder = None,
    weights: Weights = None,
    latent: CodeShape = None,
    head: HeadName = None,
    scale: Scale = None,
    activated: Activated = False,
    encoder: EncoderName = None,
    labels: Labels = None,
    drop: Drop = None,
    missing: Missing = "refuse",
    size: Size = None,
    crop: Crop = False,
    channels: Channels = None,
    binarize: SameBinarize = None,
    trust: Trust = None,
    seed: Seed = 0,
    device: Device = "cpu",
    precision: Precision = "32",
    devices: Devices = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> None:
    """Write scores of each observation in order, in nats: log_p with its standard error and method.

    log_p is log p(x), exact where it has a closed form; where tight is False it is only a lower bound in expectation.
    With --by: reconstruction is -log q(x|z) at the code, and gap is log p(x) - ELBO of the encoder; the higher, the
    less x resembles the training data. The file also holds index, split, labels and file names as that of `encode`;
    an .npy file has the first score alone. --engine, --decoder and several processes are as in `encode`.
    """
    from gae.analysis.rows import scores

    check_file(output, *ROWS)
    work = applied(locals(), curvature=True)
    names = [name.strip() for name in by.split(",")]
    block = scores(work.model, work.x, names, samples, fabric=work.fabric, seed=seed)
    columns = write_rows(output, work.rows, [block], next(iter(block)), work.fabric)
    if not work.fabric.is_global_zero:
        return
    means = {f"mean {name} (nats)": float(block[name].mean()) for name in ("log_p", *names) if name in block}
    loose = {} if "tight" not in block else {"lower bounds only": int((~block["tight"]).sum())}
    print_results({"file": str(output), **means, **loose, **columns}, as_json)
