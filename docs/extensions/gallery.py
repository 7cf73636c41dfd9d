"""The gallery: the order of its scripts, and the state in which each begins."""

from pathlib import Path
from typing import Any

ORDER = (
    *("first_model", "idea_in_one_picture", "own_decoder", "where_the_nats_go", "posterior", "evidence"),
    *("missing_values", "inpainting", "photograph", "anomalies"),
    *("linear_models", "mixtures", "parts_of_digits", "sparse_codes", "map_of_digits"),
    *("gradients", "pyro_model", "scikit_learn", "derivation"),
)


class Curated:
    """Sort key of the scripts of a folder."""

    def __init__(self, src_dir: str):
        self.src_dir = src_dir

    def __call__(self, filename: str) -> int:
        return ORDER.index(Path(filename).stem)

    def __repr__(self) -> str:  # a part of the configuration that sphinx-gallery compares with that of the last build
        return "<Curated>"


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Style of the figures, and the seed of torch."""
    import torch
    from matplotlib import rcParams

    from gae.reports.figures import STYLE

    rcParams.update(
        STYLE | {"axes.axisbelow": True, "figure.figsize": (6.4, 3.6), "figure.constrained_layout.use": True}
    )
    torch.manual_seed(0)
