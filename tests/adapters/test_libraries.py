"""Adapters of pythae and diffusers: the numbers of their own code, gradients through their decoders, and gaps."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gae.adapters import PythaeDecoder, PythaeEncoder, from_decoder, from_diffusers, from_pythae
from gae.adapters.diffusers import code_shape
from gae.analysis.engines import engine_of
from gae.analysis.inference_gap import inference_gap
from gae.autoencoder import Autoencoder
from gae.inference import Status
from gae.inference.curvature import expansion
from gae.inference.modes import density_step
from gae.objective import elbo

SHAPE = (1, 4, 4)


class ModelOutput(OrderedDict[str, Any]):
    """pythae's output class where pythae is not installed: entries are attributes too."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Decoder(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 16), activation)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layers(z).reshape(-1, *SHAPE))


class Encoder(nn.Module):
    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({key: nn.Linear(16, 2) for key in keys})

    def forward(self, x: Tensor) -> ModelOutput:
        return ModelOutput({key: layer(x.flatten(1)) for key, layer in self.layers.items()})


def standing_in(loss: str = "mse", name: str = "VAE", keys: tuple[str, ...] = ("embedding", "log_covariance")) -> Any:
    """A model with the attributes and outputs of pythae's."""
    config = SimpleNamespace(input_dim=SHAPE, latent_dim=2, reconstruction_loss=loss)
    activation = nn.Sigmoid() if loss == "bce" else nn.Identity()
    parts = {"decoder": Decoder(activation).double(), "encoder": Encoder(keys).double()}
    return SimpleNamespace(model_name=name, model_config=config, **parts)


def of_pythae(loss: str) -> Any:
    models = pytest.importorskip("pythae.models")
    torch.manual_seed(0)
    config = models.VAEConfig(input_dim=SHAPE, latent_dim=2, reconstruction_loss=loss)
    return models.VAE(config).double().eval()


def observations(loss: str = "mse") -> Tensor:
    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    return (x > 0.5).double() if loss == "bce" else x


def pythae_loss(model: Any, x: Tensor, z: Tensor) -> Tensor:
    """Reconstruction loss of ``pythae.models.VAE.loss_function``, at a given code."""
    restored = model.decoder(z)["reconstruction"].flatten(1)
    if model.model_config.reconstruction_loss == "mse":
        return 0.5 * nn.functional.mse_loss(restored, x.flatten(1), reduction="none").sum(-1)
    return nn.functional.binary_cross_entropy(restored, x.flatten(1), reduction="none").sum(-1)


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("make", [standing_in, of_pythae])
def test_the_log_density_is_minus_the_loss_of_pythae(make: Any, loss: str) -> None:
    model, x, z = make(loss), observations(loss), torch.randn(4, 2, dtype=torch.float64)
    adapted = from_pythae(model)
    log_likelihood = adapted.likelihood.log_joint(x, z[None])[0] - adapted.likelihood.prior.log_prob(z)
    constant = 8 * torch.tensor(2 * torch.pi).log() if loss == "mse" else 0.0
    torch.testing.assert_close(log_likelihood, -pythae_loss(model, x, z) - constant)
    encoding = adapted.encode(x)
    output = model.encoder(x)
    mean, log_variance = output["embedding"], output["log_covariance"]
    torch.testing.assert_close(encoding.point, mean)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
    draw = -pythae_loss(model, x, encoding.z[0]) - constant - kl
    torch.testing.assert_close(elbo(encoding, analytic=True), draw)
    check(adapted, x)


def check(model: Autoencoder, x: Tensor) -> None:
    """Engines, second derivatives by differences of the first, and a gap, on a few observations."""
    likelihood = model.likelihood
    assert density_step(likelihood, x).by_row
    mode = model.encode(x, engine_of("lbfgs", model))
    assert mode.solve is not None and bool((mode.solve.status == Status.converged).all())
    start = likelihood.log_joint(x, likelihood.prior.mean.expand(1, len(x), -1))
    assert bool((mode.log_joint >= start - 1e-9).all())
    z, step = torch.randn(1, len(x), *likelihood.latent_shape, dtype=x.dtype), 1e-5
    _, grad, hessian = expansion(likelihood, x, z[0])
    move = torch.zeros_like(z)
    move[..., 0] = step
    ends = [likelihood.log_joint(x, z + sign * move)[0] for sign in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), grad[:, 0], rtol=1e-4, atol=1e-5)
    slopes = [expansion(likelihood, x, (z + sign * move)[0])[1] for sign in (1, -1)]
    torch.testing.assert_close((slopes[0] - slopes[1]) / (2 * step), hessian[:, 0], rtol=1e-4, atol=1e-5)
    gap = inference_gap(model, x, samples=1000, draws=40, steps=30)
    assert gap.encoder is not None and gap.family == "mean-field"
    slack = 4 * (gap.encoder.standard_error.square() + gap.evidence.standard_error.square()).sqrt() + 0.05
    assert bool((gap.encoder.value <= gap.evidence.log_p + slack).all())


def test_the_networks_of_other_models_of_pythae() -> None:
    """An AE, whose loss is ‖x − x̂‖², has a point code and a noise of variance ½."""
    ae, x = standing_in(name="AE", keys=("embedding",)), observations()
    model = from_decoder(PythaeDecoder(ae), SHAPE, 2, scale=0.5**0.5, encoder=PythaeEncoder(ae))
    encoding = model.encode(x)
    assert encoding.q is None
    torch.testing.assert_close(model.reconstruct(x), ae.decoder(ae.encoder(x)["embedding"])["reconstruction"])


@pytest.mark.parametrize(
    "model, error, said",
    [
        (standing_in(name="VAMP"), TypeError, "got VAMP"),
        (standing_in(name="AE"), TypeError, "got AE"),
        (SimpleNamespace(), TypeError, "got SimpleNamespace"),
        (standing_in(loss="ssim"), ValueError, "The reconstruction loss 'ssim' is of no head"),
    ],
    ids=["a learned prior", "no prior", "no model", "another loss"],
)
def test_other_models_are_refused(model: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        from_pythae(model)


@pytest.fixture(scope="module")
def kl() -> Any:
    """An AutoencoderKL with attention, codes (1, 2, 2) and random weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": (4, 4), "norm_num_groups": 2}
    return diffusers.AutoencoderKL(**blocks, **sizes, latent_channels=1, scaling_factor=0.5).double().eval()


def test_codes_of_diffusers_are_scaled_latents(kl: Any) -> None:
    x = observations()
    model = from_diffusers(kl, SHAPE, scale=0.5)
    assert any("attentions" in name for name, _ in model.likelihood.named_modules())
    z = torch.randn(4, 4, dtype=torch.float64)
    with torch.no_grad():
        image = kl.decode(z.view(4, 1, 2, 2) / 0.5).sample
        torch.testing.assert_close(model.decode(z).mean, 0.5 * (image + 1))
        law = kl.encode(2 * x - 1).latent_dist
        q = model.encode(x).q
    assert q is not None
    torch.testing.assert_close(q.mean, 0.5 * law.mean.flatten(1))
    torch.testing.assert_close(q.stddev, 0.5 * law.std.flatten(1))
    check(model, x)


def test_images_that_do_not_fit_are_refused(kl: Any) -> None:
    assert code_shape(kl, SHAPE) == (1, 2, 2)
    for shape in ((3, 4, 4), (1, 4, 5), (16,)):
        with pytest.raises(ValueError, match=r"takes images \(1, H, W\) with sides divisible by 2"):
            from_diffusers(kl, shape, scale=0.5)
    with pytest.raises(TypeError, match="takes an AutoencoderKL, got Linear"):
        from_diffusers(nn.Linear(2, 3), SHAPE, scale=0.5)
