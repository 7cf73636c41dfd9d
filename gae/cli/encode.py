"""``gae encode`` and ``gae transform``: the codes of data, in a file."""

from pathlib import Path

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
from gae.cli.rows import Mean, RowsFile, applied, write_rows
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
    """Write the codes of data in order: z, k, log_joint and log_q (nats, at the code), and the status of each solve.

    The file also holds index (the row of the source from 0, or the line of text; a predefined split counts through
    its training part and then its test part), split (train or test), labels (names of classes that have some), and the
    file names of images. In .csv and .parquet files z becomes the columns z0, z1, …; an .npy file has z alone. Several
    processes share blocks of 1000 rows; the first writes the file.

    Codes are inferred by the model's own engine, or by --engine: an ascent from 0 (lbfgs, adam, gauss-newton), or the
    best of several from random codes (--restarts), since one may end far below the highest mode; the encoder alone, or
    a few steps from it (refine). With --decoder the model is yours, under the prior N(0, I).
    """
    from gae.analysis.rows import codes

    check_file(output, *ROWS)
    work = applied(locals())
    joint = Mean("log_joint")
    blocks = joint.over(codes(work.model, work.x, fabric=work.fabric, seed=seed))
    used = type(work.model.inference).__name__
    columns = write_rows(output, work.rows, blocks, "z", work.fabric, {"engine": used})
    if work.fabric.is_global_zero:
        means = {"engine": used, "mean log_joint (nats)": joint.value}
        print_results({"file": str(output), **means, **columns}, as_json)


@reported
def transform(
    checkpoint: ModelPath,
    data: ModelData = None,
    output: RowsFile = Path("codes.csv"),
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
    """Write the codes of data as features: z alone (and k of a mixture), without densities; otherwise as `encode`."""
    from gae.analysis.rows import codes

    check_file(output, *ROWS)
    work = applied(locals())
    blocks = codes(work.model, work.x, scored=False, fabric=work.fabric, seed=seed)
    columns = write_rows(output, work.rows, blocks, "z", work.fabric)
    if work.fabric.is_global_zero:
        print_results({"file": str(output), **columns}, as_json)
