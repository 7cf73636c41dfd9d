"""Decoders and encoders of a user, as text of a module, with their weights drawn from a seed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

LATENT, SIDE = 2, 4

SOURCE = """
import torch
from torch import nn
from torch.distributions import Normal

LAYERS = {"latent": 2, "elements": 16}


def decoder():
    return nn.Sequential(nn.Linear(LAYERS["latent"], 6), nn.Tanh(), nn.Linear(6, LAYERS["elements"]))


def linear():
    return nn.Linear(LAYERS["latent"], LAYERS["elements"])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(LAYERS["elements"], 5), nn.Tanh(), nn.Linear(5, 4))

    def forward(self, x):
        mean, log_scale = self.layers(x).chunk(2, -1)
        return Normal(mean, log_scale.exp())


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(LAYERS["elements"], LAYERS["latent"]))

    def forward(self, x):
        return self.layers(x)


class Logistic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return torch.sigmoid(self.layers(z))


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return nn.functional.dropout(self.layers(z), 0.5, training=True)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(decoder(), nn.BatchNorm1d(16, track_running_stats=False))

    def forward(self, z):
        return self.layers(z)


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return self.layers(z - z.mean(0))


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return self.layers(z.detach())


class Numpy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return torch.from_numpy(self.layers(z).numpy())


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return self.layers(z).double()


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return self.layers(z)[:1]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return self.layers(z), z


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Linear(2, 16)
        nn.init.constant_(self.layers.bias, float("nan"))

    def forward(self, z):
        return self.layers(z)


class Baked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return self.layers(z) @ torch.eye(16, dtype=torch.float32)


class Once(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = decoder()

    def forward(self, z):
        return _Once.apply(self.layers(z))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2


class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Point()

    def forward(self, x):
        return self.layers(x), self.layers(x)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Point()

    def forward(self, x):
        return self.layers(x) + torch.randn_like(x[:, :1, 0, :2].flatten(1))


instance = decoder()
number = 3


def half():
    return decoder().half()


def mixed():
    return nn.Sequential(nn.Linear(2, 6).double(), nn.Linear(6, 16))


def narrow():
    return nn.Linear(2, 15)


def channels_last():
    return nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (2, 2, 4)))


def bare():
    return nn.Tanh()


def of_codes(z):
    return decoder()(z)


def nothing():
    return None


def training():
    return nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 16)).train()


def narrow_encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
"""


class Encoder(nn.Module):
    """The encoder of ``SOURCE``, built here."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.Tanh(), nn.Linear(5, 2 * LATENT))

    def forward(self, x: Tensor) -> torch.distributions.Normal:
        mean, log_scale = self.layers(x).chunk(2, -1)
        return torch.distributions.Normal(mean, log_scale.exp())


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A decoder and an encoder with the structure of ``SOURCE``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = nn.Sequential(nn.Linear(LATENT, 6), nn.Tanh(), nn.Linear(6, SIDE * SIDE))
        return decoder, Encoder()


def images(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 1, 4, 4) with values in [0, 1]."""
    return np.random.default_rng(seed).random((n, 1, SIDE, SIDE), dtype=np.float32)


def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files of a user in a folder, which becomes the working directory: a module, its weights, and data."""
    decoder, encoder = networks()
    (folder / "own_models.py").write_text(SOURCE)
    state = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    torch.save(state | {f"encoder.{name}": value for name, value in encoder.state_dict().items()}, folder / "both.pt")
    np.save(folder / "images.npy", images(20))
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return {"decoder": decoder, "encoder": encoder}
