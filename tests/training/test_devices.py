"""Devices and precisions: a run on another one gives the same result within its digits, or is refused by name."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from courses import X
from lightning_fabric import Fabric
from torch import Tensor

from gae import Autoencoder, nets
from gae.inference import LBFGS, Ascent, Detach, GaussNewton, Implicit, Inference, Unroll, Zeros
from gae.inference import Adam as AdamSteps
from gae.likelihood import Gaussian
from gae.systems import build, gmm, ppca, savae, vae
from gae.training import devices, fit

pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
    "device,there,said",
    [
        ("cuda", ["cpu"], r"There is no cuda device here: torch .* can use cpu\. Give one of these, or auto"),
        ("mps", ["cuda", "cpu"], r"There is no mps device here: torch .* can use cuda, cpu"),
        ("tpu", ["cpu"], r"Unknown device 'tpu'. Give cpu, cuda, cuda:1, mps or auto"),
        ("cuda:x", ["cpu"], r"Unknown device 'cuda:x'"),
        ("cuda:9", ["cuda", "cpu"], r"There is no cuda:9: this machine has \d+ CUDA devices, from 0"),
    ],
)
def test_a_device_that_is_absent(device: str, there: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: there)
    with pytest.raises(ValueError, match=said):
        fit(vae((5,), 2, (8,)), X, epochs=1, device=device, progress=False)


def test_auto_is_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (["cuda", "mps", "cpu"], ["mps", "cpu"], ["cpu"]):
        monkeypatch.setattr(devices, "available", lambda there=there: there)
        assert devices.known_device("auto").type == there[0]
    monkeypatch.undo()
    assert devices.available()[-1] == "cpu"
    assert ("cuda" in devices.available()) == torch.cuda.is_available()


@pytest.mark.parametrize(
    "precision,said",
    [
        ("bf16-true", "would store parameters and log densities in 16 bits.*Use bf16-mixed"),
        ("8", "Unknown precision '8'. Give one of 32, 64, bf16-mixed, 16-mixed"),
        ("16-mixed", "precision=16-mixed needs a CUDA or MPS device. On the CPU use bf16-mixed"),
    ],
)
def test_a_precision_that_models_cannot_have(precision: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(vae((5,), 2, (8,)), X, epochs=1, precision=precision, device="cpu", progress=False)


@pytest.mark.parametrize("option", [{"device": "cpu"}, {"precision": 64}])
def test_a_fabric_and_its_settings_are_not_both_given(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.* and a Fabric are given, which has its own {name}"):
        fit(vae((5,), 2, (8,)), X, fabric=Fabric(accelerator="cpu", devices=1), **option)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_a_fabric_that_would_round_the_data(precision: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"precision='{precision}' converts the data themselves. Give `fit` precision"
    ):
        fit(vae((5,), 2, (8,)), X, fabric=Fabric(accelerator="cpu", devices=1, precision=precision))


def test_closed_forms_refuse_16_bits() -> None:
    with pytest.raises(ValueError, match="bf16-mixed is for training by an optimizer: this model learns in"):
        fit(gmm((5,), 3), X, epochs=1, precision="bf16-mixed", progress=False)


@pytest.mark.parametrize("name", ["vae", "savae", "gmm"])
def test_double_precision_is_that_of_a_double_model(name: str) -> None:
    """precision=64 converts the model and the data: the same as a model and data that were float64 before."""
    models = []
    for precision in (64, None):
        torch.manual_seed(0)
        model = build(name, (5,)) if name == "gmm" else {"vae": vae, "savae": savae}[name]((5,), 2, (8,))
        x = X if precision else X.double()
        model = model if precision else model.double()
        fit(model, x, epochs=2, validation=0.2, precision=precision, progress=False)
        models.append(model.state_dict())
    for key, value in models[0].items():
        assert value.dtype == (torch.float64 if value.is_floating_point() else value.dtype)
        assert torch.equal(models[1][key], value), key


def test_single_precision_of_a_double_model() -> None:
    model = vae((5,), 2, (8,)).double()
    fit(model, X.double(), epochs=1, precision=32, progress=False)
    assert next(model.parameters()).dtype == torch.float32


ENGINES: dict[str, Any] = {
    "unrolled": lambda: Ascent(Zeros(), AdamSteps(0.1), 3, adjoint=Unroll()),
    "implicit": lambda: Ascent(Zeros(), LBFGS(), 8, adjoint=Implicit(stationary=1.0)),
    "detached": lambda: Ascent(Zeros(), AdamSteps(0.1), 3, adjoint=Detach()),
    "gauss-newton": lambda: Ascent(Zeros(), GaussNewton(), 2, adjoint=Detach()),
}
SYSTEMS: dict[str, Any] = {"vae": vae, "savae": savae}


def gradient(build: Callable[[], Autoencoder], precision: str | int) -> tuple[float, Tensor]:
    """Loss, and change of the parameters, of one step of gradient descent on all data."""
    torch.manual_seed(1)
    model = build()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    descent = partial(torch.optim.SGD, lr=1.0)
    history = fit(model, X, epochs=1, batch_size=len(X), optimizer=descent, precision=precision, progress=False)
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return history.rows[0].train_loss, before - after


@pytest.mark.parametrize("name", [*ENGINES, *SYSTEMS])
def test_one_step_in_16_bits(name: str) -> None:
    """Products of 8 significant bits change a gradient by percents, and inner solves and second orders no more."""

    def model() -> Autoencoder:
        if name in SYSTEMS:
            return SYSTEMS[name]((5,), 2, (8,))  # type: ignore[no-any-return]
        engine: Inference = ENGINES[name]()
        return Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), engine)

    (loss, wanted), (rounded, got) = gradient(model, 32), gradient(model, "bf16-mixed")
    assert abs(rounded - loss) < 0.02 * abs(loss)
    error = float((got - wanted).norm() / wanted.norm())
    assert 1e-5 < error < 0.05  # some products were rounded, and nothing was lost


def test_16_bits_do_not_round_the_data() -> None:
    """The engine sees observations that 8 significant bits would round."""
    model, seen = vae((5,), 2, (8,)), []
    model.inference.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    fit(model, X + 100.0, epochs=1, precision="bf16-mixed", progress=False)
    assert len(seen) > 1 and all(bool(torch.isin(x, X + 100.0).all()) for x in seen)


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU taken for a device without float64."""
    monkeypatch.setattr(devices, "lacks_float64", lambda device: True)


NEEDS: dict[str, tuple[Callable[[], Autoencoder], bool]] = {
    "vae": (lambda: vae((5,), 2, (8,)), False),
    "unrolled": (lambda: Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), ENGINES["unrolled"]()), False),
    "closed form": (lambda: ppca((5,), 2), True),
    "curvature": (lambda: build("laplace-gae", (5,)), True),
}


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.usefixtures("without_float64")
def test_work_in_float64_falls_back_to_the_cpu(name: str, recwarn: pytest.WarningsRecorder) -> None:
    make, needs = NEEDS[name]
    fit(make(), X, epochs=1, progress=False)
    said = [str(warning.message) for warning in recwarn if "float64" in str(warning.message)]
    assert len(said) == needs
    assert all(
        re.match(r"Training .* needs float64, which cpu devices do not have: it runs on the CPU", m) for m in said
    )
