"""``gae reconstruct``: the reconstructions of data, in a file."""

from pathlib import Path
from typing import TYPE_CHECKING

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
from gae.cli.rows import RowsFile, applied, write_rows
from gae.cli.terminal import print_results, reported
from gae.data.files import ROWS, check_file

if TYPE_CHECKING:
    import numpy as np

    from gae.data import Dataset


@reported
def reconstruct(
    checkpoint: ModelPath,
    data: ModelData = None,
    output: RowsFile = Path("reconstructions.npz"),
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
    """Write the reconstruction x of each observation in order: the decoder's mean at its code (for text, its mode).

    Values are in the units of the file: of 8-bit images from 0 to 255. Binarised data are reconstructed as
    probabilities. The file also holds index, split, labels and file names as that of `encode`; an .npy file has x
    alone. In .csv and .parquet files the columns of a table have their names. Of text, x has the classes,
    and the column text the lines. --engine, --decoder and several processes are as in `encode`.
    """
    from gae.analysis.rows import reconstructions

    check_file(output, *ROWS)
    work = applied(locals())
    restored = reconstructions(work.model, work.x, fabric=work.fabric, seed=seed)
    blocks = ({**_lines(work.data, block["x"]), "x": work.data.as_given(block["x"])} for block in restored)
    columns = write_rows(output, work.rows, blocks, "x", work.fabric, names=work.data.columns)
    if work.fabric.is_global_zero:
        print_results({"file": str(output), **columns}, as_json)


def _lines(data: "Dataset", x: "np.ndarray") -> "dict[str, np.ndarray]":
    """The column of decoded lines of text, of one dtype in every block; none for other data."""
    import numpy as np
    import torch

    if data.vocabulary is None:
        return {}
    lines = np.array(data.vocabulary.decode(torch.from_numpy(x)))
    longest = x.shape[1] * (1 + max(map(len, data.vocabulary.tokens)))
    return {"text": lines.astype(f"U{longest}")}
