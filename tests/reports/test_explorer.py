"""The page of codes: plane, pictures and errors."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor, nn
from typer.testing import CliRunner

from gae import Autoencoder
from gae.cli import main as cli
from gae.inference import Amortized, Argmax
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.reports.explorer import explore, plane_of


def first_two(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :2]


def painter(shape: tuple[int, ...] = (1, 2, 3)) -> Autoencoder:
    """A code (a, b) decodes to an observation whose elements are all a + 10 b."""

    class Paint(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            value = z[:, 0] + 10 * z[:, 1]
            return value.reshape(-1, *[1] * len(shape)).expand(-1, *shape)

    return Autoencoder(Gaussian(Paint(), 2, prior=Flat(2)), Amortized(first_two))


def read(path: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The facts and the two sheets of pictures on a page."""
    text = path.read_text(encoding="utf-8")
    (facts,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, flags=re.DOTALL)
    sheets = [np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r'load\("(.+?)"\)', text)]
    return json.loads(facts), sheets[0], sheets[1]


def test_a_plane_of_wide_codes_is_that_of_their_principal_components() -> None:
    codes = torch.randn(80, 5).double() * torch.tensor([3.0, 1.0, 2.0, 0.5, 0.1]).double() + 4
    plane, pca = plane_of(codes), PCA(2).fit(codes.numpy())
    assert np.allclose(np.abs(plane.points.numpy()), np.abs(pca.transform(codes.numpy())))
    assert plane.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    nearest = plane.origin + plane.points @ plane.axes
    assert torch.allclose(nearest, torch.as_tensor(pca.inverse_transform(pca.transform(codes.numpy()))))


def test_codes_of_two_elements_are_their_own_plane() -> None:
    codes = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 4.0]])
    plane = plane_of(codes)
    grid = plane.grid(3)
    low, high = plane.corners
    assert torch.equal(plane.points, codes)
    assert torch.allclose(torch.stack([low, high]), torch.tensor([[-0.1, -0.2], [2.1, 4.2]]))
    assert torch.allclose(grid[0, 0], torch.tensor([-0.1, 4.2]))  # top left
    assert torch.allclose(grid[2, 2], torch.tensor([2.1, -0.2]))  # bottom right
    assert torch.allclose(grid[1, 1], (low + high) / 2)


@pytest.mark.parametrize("codes", [torch.randn(5, 1), torch.randn(2, 3)])
def test_a_plane_needs_codes(codes: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 3 codes of 2 elements"):
        plane_of(codes)


def test_the_page_shows_what_the_decoder_makes(tmp_path: Path) -> None:
    """Every tile of the sheet is the decoder's mean at its code; samples are as given."""
    x = torch.rand(7, 1, 2, 3)
    plane = explore(painter(), x, tmp_path / "page.html", torch.arange(7), value_range=(0.0, 20.0), size=4, title="<b>")
    facts, grid, samples = read(tmp_path / "page.html")
    assert grid.shape == (8, 12) and samples.shape == (6, 9)
    value = plane.grid(4) @ torch.tensor([1.0, 10.0])
    wanted = (255 * (value / 20).clamp(0, 1)).round()
    tiles = torch.as_tensor(grid).reshape(4, 2, 4, 3).permute(0, 2, 1, 3).flatten(2)
    assert (tiles.double() - wanted.unsqueeze(2).double()).abs().max() <= 1
    first = torch.as_tensor(samples[:2, :3]).double() / 255 * 20
    assert torch.allclose(first, x[0, 0].double(), atol=0.05)
    assert facts["labels"] == list(range(7)) and facts["size"] == 4
    assert np.allclose(facts["points"], first_two(x), atol=1e-4)
    assert "&lt;b&gt;" in (tmp_path / "page.html").read_text() and "<b>" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("shape", "tile"), [((3, 2, 2), (2, 2, 3)), ((5,), (24, 5)), ((2, 3), (24, 6))])
def test_colours_and_vectors(shape: tuple[int, ...], tile: tuple[int, ...], tmp_path: Path) -> None:
    explore(painter(shape), torch.rand(4, *shape), tmp_path / "page.html", size=2)
    facts, grid, _ = read(tmp_path / "page.html")
    assert grid.shape == (2 * tile[0], 2 * tile[1], *tile[2:])
    assert facts["labels"] is None


def test_what_cannot_be_explored(tmp_path: Path) -> None:
    mixture = Autoencoder(LinearMixture(3, 0, (4,), means=torch.randn(3, 4)), Argmax())
    with pytest.raises(ValueError, match="share no axes"):
        explore(mixture, torch.rand(5, 4), tmp_path / "page.html")
    with pytest.raises(ValueError, match="size must be at least 2"):
        explore(painter(), torch.rand(5, 1, 2, 3), tmp_path / "page.html", size=1)
    with pytest.raises(ValueError, match="must be finite"):
        explore(painter(), torch.full((5, 1, 2, 3), float("nan")), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner()
    small = ["--option", "latent=3", "--option", "hidden=8,8", "--quiet", "--epochs", "1"]
    runner.invoke(cli.app, ["fit", "vae", "digits", *small, "--out", str(tmp_path / "vae")])
    page = tmp_path / "new" / "page.html"
    done = runner.invoke(cli.app, ["explore", str(tmp_path / "vae"), "digits", "-n", "50", "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "50 codes" in done.output
    facts, grid, _ = read(page)
    assert len(facts["points"]) == len(facts["labels"]) == 50 and grid.shape == (200, 200)
    assert "vae on digits" in page.read_text(encoding="utf-8")
    refused = runner.invoke(cli.app, ["explore", str(tmp_path / "vae"), "digits", "-o", "page.txt"])
    assert refused.exit_code == 2 and ".html" in refused.output
