"""The pictures of a comparison."""

from typing import Any

import pytest
import torch
from problems import part_of
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from gae import Autoencoder
from gae.data import Dataset
from gae.inference import Zeros
from gae.likelihood import Gaussian
from gae.studies.engines import configure
from gae.studies.pictures import pictures, plane


class Displaced(nn.Module):
    """The prior N(5, 1) in each dimension."""

    def forward(self) -> Distribution:
        return Independent(Normal(torch.full((3,), 5.0), torch.ones(3)), 1)


def test_samples_are_of_the_model_s_own_prior(digits: Dataset) -> None:
    """The decoder writes its code into the first pixels; two decoders see the same random numbers."""
    small = part_of(digits, 20, 6)
    decoder = nn.Sequential(nn.ConstantPad1d((0, 61), 0.0), nn.Unflatten(1, (1, 8, 8)))
    models = {
        name: Autoencoder(Gaussian(decoder, 3, prior=prior), Zeros())
        for name, prior in {"displaced": Displaced(), "standard": None}.items()
    }
    shown: Any = pictures(models, {}, small, configure(small, ("detached",), 1, 3, (), "gaussian", 0, True), {})
    codes = {name: torch.from_numpy(shown[f"sample/{name}"]).flatten(1)[:, :3] for name in models}
    torch.testing.assert_close(codes["displaced"], codes["standard"] + 5)


@pytest.mark.parametrize(("codes", "wanted"), [(torch.zeros(4, 0), Size([4, 2])), (torch.randn(4, 1), Size([4, 2]))])
def test_narrow_codes_lie_in_a_plane_too(codes: Tensor, wanted: Size) -> None:
    assert plane(codes)[0].shape == wanted
