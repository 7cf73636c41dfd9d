"""Activation maximisation: corners for linear encoders, layers by name, and the ``gae activate`` command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from gae import Autoencoder
from gae.analysis.activation import Units, maximise, most_active
from gae.cli import common
from gae.cli import main as cli
from gae.data import Dataset
from gae.inference import Amortized
from gae.likelihood import Flat, Gaussian
from gae.systems import NormalEncoder, build


def gae(*arguments: Any, code: int = 0) -> str:
    """The standard output of the command; on an error, its standard error."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split()) if code else result.stdout


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE and a system without an encoder."""
    folder = tmp_path_factory.mktemp("fitted")
    small = ("--option", "latent=2", "--option", "hidden=16,8", "--quiet")
    gae("fit", "vae", "digits", "--epochs", 5, *small, "--out", folder / "vae")
    gae("fit", "gon", "digits", "--epochs", 1, *small, "--out", folder / "gon")
    return folder


def corner(weight: Tensor, low: float, high: float) -> Tensor:
    """The maximiser of a linear function in a box."""
    return torch.where(weight > 0, high, low)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(  # σ of the largest would have no gradient left in float32
    ("scale", "value_range"), [(1e-3, (0.0, 1.0)), (1.0, (-3.0, 5.0)), (1e3, (0.0, 1.0))]
)
@torch.no_grad()
def test_the_maximiser_of_a_linear_encoder_is_a_corner(scale: float, value_range: tuple[float, float]) -> None:
    model = build("ae", (1, 4, 4), latent=3, hidden=())
    linear = model.inference.guide[1]
    nn.init.normal_(linear.weight, std=scale)
    found = maximise(Units(model), 1, value_range)
    expected = corner(linear.weight[1].view(1, 4, 4), *value_range)
    assert torch.equal(found.image, expected)
    middle = linear(torch.full((16,), sum(value_range) / 2))[1]
    assert found.start == pytest.approx(float(middle), rel=1e-5)
    assert found.activation == pytest.approx(float(linear(expected.flatten())[1]), rel=1e-5)


def test_the_outputs_of_a_normal_encoder_are_means_and_log_scales() -> None:
    network = nn.Linear(5, 4)
    units = Units(Autoencoder(Gaussian(nn.Linear(2, 5), 2), Amortized(NormalEncoder(network))))
    x = torch.randn(3, 5)
    q = NormalEncoder(network).density(x).base_dist
    assert torch.allclose(units(x)[:, :2], q.loc) and torch.allclose(units(x)[:, 2:], q.scale.log())
    named = [units.meaning(unit) for unit in range(4)]
    assert named == ["mean of z[0]", "mean of z[1]", "log scale of z[0]", "log scale of z[1]"]
    assert torch.equal(maximise(units, 3, (-1.0, 1.0)).image, corner(network.weight[3], -1, 1))


@pytest.mark.parametrize("system", ["ae", "vae", "savae"])
def test_layers_of_encoder_and_decoder(system: str) -> None:
    model = build(system, (6,), latent=2, hidden=(5, 4))
    name = Units(model).encoder
    network, x = model.get_submodule(name), torch.randn(3, 6)
    assert torch.equal(Units(model, f"{name}.1")(x), network[:2](x))
    assert torch.equal(Units(model, f"{name}.2")(x), network[:3](x))
    code = network(x)[:, :2]
    assert torch.equal(Units(model, "likelihood.decoder")(x), model.likelihood.decoder(code))


def test_a_channel_counts_by_its_mean() -> None:
    model = build("conv-vae", (1, 8, 8), latent=2, channels=(3, 4))
    first, x = model.inference.guide.network[0], torch.rand(2, 1, 8, 8)
    units = Units(model, "inference.guide.network.0")
    assert units.size == 3 and torch.allclose(units(x), first(x).mean((2, 3)), atol=1e-6)
    found = maximise(units, 2, (0.0, 1.0))
    leaf = torch.zeros(1, 1, 8, 8, requires_grad=True)
    (weight,) = torch.autograd.grad(first(leaf)[:, 2].mean(), leaf)  # linear in the image
    assert torch.equal(found.image, corner(weight[0], 0, 1))


@pytest.mark.usefixtures("unchecked_types")
def test_the_best_of_several_starts_is_kept() -> None:
    class Valley(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # 0.2 at 0 and at most 1 at 1; from 0.5, uphill leads to 0
            return torch.where(x < 0.6, 0.2 - x, 2.5 * (x - 0.6))

    model = Autoencoder(Gaussian(nn.Linear(1, 1), 1, prior=Flat(1)), Amortized(Valley()))
    assert maximise(Units(model), 0, (0.0, 1.0), starts=1).activation == pytest.approx(0.2)
    assert maximise(Units(model), 0, (0.0, 1.0), starts=16).activation == pytest.approx(1.0)


def test_the_model_and_the_generator_are_left_alone(digits: Dataset) -> None:
    model = build("vae", digits.event_shape, latent=2, hidden=(8,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    units = Units(model)
    first, again = (maximise(units, 0, (0.0, 1.0), steps=5, seed=3) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, maximise(units, 0, (0.0, 1.0), steps=5, seed=4).image)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in [*model.modules(), *units.modules()])


def test_the_most_active_of_many(digits: Dataset) -> None:
    model = build("ae", digits.event_shape, latent=3, hidden=(8,))
    activation = model.encode(digits.train).z[0, :, 2].detach()
    index, highest = most_active(Units(model), 2, digits.train, batch_size=100)
    assert index == int(activation.argmax()) and highest == pytest.approx(float(activation.max()))


def test_the_command_beats_every_training_image(fitted: Path, digits: Dataset, tmp_path: Path) -> None:
    output = tmp_path / "new" / "found.npz"
    for layer in (), ("--layer", "inference.guide.network.2"):
        printed = gae("activate", fitted / "vae", 1, *layer, "--data", "digits", "-o", output, "--json")
        found = json.loads(printed)
        reached = found["activation at the image found"]
        assert reached > found["highest activation of a training image"]
        assert reached > found["activation at mid-grey, the first start"]
        units = Units(common.read(fitted / "vae")[0], *layer[1:])
        with np.load(output) as images:
            image = torch.from_numpy(images["image"])
            assert image.shape == (1, 8, 8) and image.min() >= 0 and image.max() <= 1
            assert float(units(image.unsqueeze(0))[0, 1]) == pytest.approx(reached)
            assert (images["training_image"] == digits.train[found["training image"]].numpy()).all()
        assert found["units of the layer"] == units.size and found["which is the"] == units.meaning(1)


def test_the_command_draws(fitted: Path, tmp_path: Path) -> None:
    from PIL import Image

    printed = gae("activate", fitted / "vae", 0, "--steps", 3, "-o", tmp_path / "found.png")
    assert "mean of z[0]" in printed and "training image" not in printed
    with Image.open(tmp_path / "found.png") as image:
        assert min(image.size) > 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vae", 4], "inference.guide.network has 4 units, 0 ... 3; got unit 4"),
        (["vae", 0, "--layer", "network.1"], "No layer 'network.1'. Valid layers (number of units): infer"),
        (["vae", 0, "--layer", "network.1"], "inference.guide.network.1 (16), inference.guide.network.2 (16)"),
        (["vae", 8, "--layer", "inference.guide.network.3"], "has 8 units, 0 ... 7; got unit 8"),
        (
            ["vae", 0, "--data", "circles"],
            "takes observations of shape (1, 8, 8), but those of circles have shape (2,)",
        ),
        (["vae", 0, "-o", "found.gif"], "must end in .png or .npz"),
        (["gon", 0], "has no encoder network"),
        (["gon", 0], "inferred by Zeros. Fit a system with an encoder: ae, "),
    ],
)
def test_mistakes_are_named(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in gae("activate", fitted / arguments[0], *arguments[1:], code=2)
    assert not list(tmp_path.iterdir()), "something was written"


def test_closed_forms_have_no_units() -> None:
    with pytest.raises(TypeError, match="its codes are inferred by ClosedForm"):
        Units(build("pca", (6,), latent=2))


def test_classes_have_no_gradient() -> None:
    with pytest.raises(TypeError, match=r"observations are classes .* has no gradient with respect to them"):
        Units(build("sequence-vae", (6,), classes=5, latent=2, hidden=4))
