"""Every system of the table: construction, training (or an error), encoding, decoding and restoring."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import seed
from torch import Tensor

import gae
from gae import Autoencoder
from gae.autoencoder import load
from gae.data import Dataset
from gae.inference import Ascent, Constant
from gae.likelihood import FlatDistribution, Head
from gae.systems import SYSTEMS, build
from gae.systems.table import function_name
from gae.training import fit
from gae.training.adversarial import Adversarial

IMAGE = (1, 8, 8)
SIZE = 60


@dataclass(frozen=True)
class Example:
    """Test case of a row: options for a small model, and observations for rows whose x is not a sample."""

    options: dict[str, Any] = field(default_factory=dict)
    observe: Callable[[Tensor], Tensor] = lambda x: x  # observations out of images (N, 1, 8, 8)
    event_shape: tuple[int, ...] = IMAGE
    held_out: int = 5
    learns: bool = True
    decodes: bool = True


def measured(name: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """Measurements of images by the row's operator, which is random with the given seed."""

    def observe(x: Tensor) -> Tensor:
        seed(0)
        return build(name, IMAGE, **options).likelihood.operator(x)

    return observe


SMALL = {"hidden": (16,)}
FEW = {**SMALL, "steps": 3, "restarts": 2}
ROWS: Any = {"event_shape": (8,), "observe": lambda x: 1 + (x[:, 0] > 0.5).sum(2).float()}  # the ink of each row
DATA_SETS: Any = {"observe": lambda x: x.unflatten(0, (5, 12)), "held_out": 1, "learns": False, "decodes": False}
EXAMPLES = {
    **{name: Example({"components": 4}) for name in ("kmeans", "gmm")},
    "llgae": Example({"components": 4, "latent": 2}),
    **{name: Example(SMALL) for name in ("ae", "vae", "gon", "iwae", "savae", "dae", "cae", "ladder-vae")},
    **{name: Example(SMALL) for name in ("iterative-vae", "rws-vae", "mcmc-em", "vlae", "laplace-gae")},
    "vq-vae": Example({**SMALL, "positions": 4, "vectors": 8}),
    "gan": Example(FEW),
    "nmf": Example({"latent": 4, "steps": 5}),
    "glo": Example({**SMALL, "steps": 3}),
    "stacked-ae": Example({"latent": 4, "hidden": (16, 8)}),
    "knn": Example({"components": 55}),
    "smooth-llgae": Example({"components": 4, "latent": 2, "steps": 3}),
    "ggae": Example({"components": 4, "steps": 3}),
    "conv-vae": Example({"channels": (4, 4)}),
    "short-run": Example({**SMALL, "steps": 3}),
    "sparse-coding": Example({"steps": 5}),
    "deep-image-prior": Example({"channels": 4, "scales": 1, "steps": 3}, learns=False),
    "maximal-activation": Example({**SMALL, "steps": 3}, observe=lambda x: torch.arange(len(x)).float() % 10),
    "compressed-sensing": Example(FEW, observe=measured("compressed-sensing", **FEW)),
    "inpainting": Example(FEW, observe=measured("inpainting", **FEW)),
    "sequence-vae": Example({"classes": 10, "end": None, "hidden": 8}, **ROWS),
    "attention-vae": Example({"classes": 10, "end": None, "width": 8, "heads": 2, "layers": 1}, **ROWS),
    "music-vae": Example({"classes": 10, "end": None, "hidden": 8}, **ROWS),
    "linear-regression": Example(learns=False),
    "tsne": Example({"points": 12, "perplexity": 3.0, "steps": 3, "early_steps": 1}, **DATA_SETS),
    "lle": Example({"points": 12, "neighbours": 4}, **DATA_SETS),
    "superresolution": Example(FEW, observe=measured("superresolution", **FEW)),
}


@dataclass(frozen=True)
class Row:
    """A row's model as it was built, the same after training if it has something to fit, and data that it has not seen.

    Tests encode with them and change nothing.
    """

    name: str
    example: Example
    start: Autoencoder
    model: Autoencoder
    train: Tensor
    held_out: Tensor
    run: Path | None  # of the training


@pytest.fixture(scope="module", params=SYSTEMS)
def row(request: pytest.FixtureRequest, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Row:
    """A row, for all its tests in turn."""
    name: str = request.param
    chosen = EXAMPLES.get(name, Example())
    torch.manual_seed(0)
    x = chosen.observe(digits.train[:SIZE])
    train, held_out = x[: -chosen.held_out], x[-chosen.held_out :]
    start, model = built(name, chosen), built(name, chosen)
    run = tmp_path_factory.mktemp("row") / "run" if chosen.learns else None
    if run is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Training by")  # every row trains by an objective that suits its prior
            taught(model, train, name, run)
    return Row(name, chosen, start, model, train, held_out, run)


def built(name: str, chosen: Example) -> Autoencoder:
    seed(0)
    return build(name, chosen.event_shape, **chosen.options)


def taught(model: Autoencoder, x: Tensor, name: str, out: Path | None = None) -> None:
    fit(model, x, epochs=2, batch_size=24, seed=0, out=out, progress=False, describe={"system": name})


def encoded(model: Autoencoder, x: Tensor) -> Any:
    seed(1)
    with torch.no_grad():
        return model.eval().encode(x)


def test_examples_are_rows() -> None:
    assert set(EXAMPLES) <= set(SYSTEMS)


def test_a_row_encodes_and_decodes_what_it_has_not_seen(row: Row) -> None:
    model, held_out = row.model, row.held_out
    encoding = encoded(model, held_out)
    assert encoding.point.shape == (len(held_out), *model.likelihood.latent_shape)
    assert encoding.log_joint.isfinite().all()
    decoded = model.decode(encoding.point, encoding.component)
    if row.example.decodes:
        assert model.likelihood.point(decoded).shape == held_out.shape
    else:
        with pytest.raises(TypeError, match="no map from codes to data"):
            model.likelihood.point(decoded)
    joint = model.likelihood.log_joint(
        held_out,
        encoding.point.unsqueeze(0),
        None if encoding.component is None else encoding.component.unsqueeze(0),
    )
    assert joint.isfinite().all()


def test_a_row_names_the_parts_of_its_model(row: Row) -> None:
    told, model = SYSTEMS[row.name], row.start
    likelihood, inference, objective = model.likelihood, model.inference, model.objective
    assert type(likelihood).__name__ in told.likelihood or (isinstance(likelihood, Head) and "head" in told.likelihood)
    assert told.inference.startswith(type(inference).__name__)
    if isinstance(inference, Ascent):
        assert type(inference.init).__name__ in told.inference or isinstance(inference.init, Constant)
    flat = isinstance(likelihood.prior, FlatDistribution)
    assert told.prior.startswith(("flat", "uniform") if flat else ("N(0, I)", "Laplace", "learned", "uniform"))
    rule = objective.func if isinstance(objective, partial) else objective
    assert told.objective.startswith("adversarial" if isinstance(model, Adversarial) else rule.__name__)


def test_a_row_learns(row: Row) -> None:
    if not row.example.learns:
        with pytest.raises(ValueError, match="nothing to fit"):
            taught(row.start, row.train, row.name)
        return
    before, after = row.start.state_dict(), row.model.state_dict()
    assert any(after[key].shape != value.shape or (after[key] != value).any() for key, value in before.items())


def results(model: Autoencoder, x: Tensor) -> list[Tensor]:
    """Codes, their density, decoded codes and log p(x), if they exist."""
    encoding = encoded(model, x)
    decoded = model.decode(encoding.point, encoding.component)
    found = [encoding.point, encoding.log_joint]
    try:
        found.append(model.likelihood.point(decoded))
        seed(2)
        found.append(model.log_evidence(x, samples=4).log_p)
    except (NotImplementedError, TypeError, ValueError) as error:  # a flat prior, codes that are no vectors, ...
        found.append(torch.tensor(list(str(error).encode())))
    return found


@pytest.mark.parametrize("direct", [False, True], ids=["by name", "by function"])
def test_a_row_is_saved_and_loaded(row: Row, direct: bool, tmp_path: Path) -> None:
    """Bit for bit, from files of ``save`` and ``fit``, for every way to build the model."""
    model = row.model
    if direct:
        model = getattr(gae, function_name(row.name))(row.example.event_shape, **row.example.options)
    model.train().save(tmp_path / "saved")
    wanted = results(model, row.held_out)
    folders = {tmp_path / "saved": True} | ({row.run: False} if row.run and not direct else {})
    for folder, training in folders.items():
        before = torch.get_rng_state()
        again = load(folder)
        assert torch.equal(torch.get_rng_state(), before)
        assert again.training == training
        for one, other in zip(wanted, results(again, row.held_out), strict=True):
            assert torch.equal(one, other)
