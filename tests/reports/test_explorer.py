"""The page of codes: plane, pictures and errors."""

import base64
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import after_script
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor, nn
from typer.testing import CliRunner

from gae import Autoencoder
from gae.cli import main as cli
from gae.evidence import Evidence
from gae.inference import Amortized, Argmax
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.reports.explorer import explore, plane_of
from gae.training.history import Epoch, History


def first_two(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :2]


def painter(shape: tuple[int, ...] = (1, 2, 3)) -> Autoencoder:
    """A code (a, b) decodes to an observation whose elements are all a + 10 b."""

    class Paint(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            value = z[:, 0] + 10 * z[:, 1]
            return value.reshape(-1, *[1] * len(shape)).expand(-1, *shape)

    return Autoencoder(Gaussian(Paint(), 2, prior=Flat(2)), Amortized(first_two))


def facts_of(path: Path) -> dict[str, Any]:
    """The facts on a page."""
    text = path.read_text(encoding="utf-8")
    (facts,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, flags=re.DOTALL)
    return dict(json.loads(facts))


def read(path: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The facts and the first two sheets of pictures on a page."""
    text = path.read_text(encoding="utf-8")
    sheets = [np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r'load\("(.+?)"\)', text)]
    return facts_of(path), sheets[0], sheets[1]


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


WEIGHT = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.8, 0.3], [0.0, 0.4, 0.5], [0.2, 0.0, 0.1]]).double()
NAMES = ["a", "b", "c", "d"]


def linear() -> Autoencoder:
    """x = W z + noise; the encoder copies three elements of x."""
    decoder = nn.Linear(3, 4, bias=False).double()
    decoder.weight.data = WEIGHT.clone()
    return Autoencoder(Gaussian(decoder, 3, scale=0.5), Amortized(lambda x: x[:, :3])).double()


def modes(x: Tensor) -> Tensor:
    return torch.linalg.solve(torch.eye(3).double() + WEIGHT.T @ WEIGHT / 0.25, WEIGHT.T @ x.T / 0.25).T


def test_an_ascent_leads_from_the_encoder_to_the_mode(tmp_path: Path) -> None:
    """Contours are those of log q(x, z) at the codes of the map, moved to the plane of the mode."""
    model, x = linear(), torch.randn(9, 4).double()
    plane = explore(model, x, tmp_path / "page.html", torch.tensor([5, 5, 2] * 3), columns=NAMES, size=3)
    facts, mode = facts_of(tmp_path / "page.html"), modes(x)[0]
    assert [one["index"] for one in facts["ascents"]] == [2, 0]  # the first of label 2 and of label 5
    one = facts["ascents"][1]
    assert np.allclose(one["points"][0], plane.coordinates(x[:1, :3])[0], atol=1e-4)
    assert np.allclose(one["points"][-1], plane.coordinates(mode[None])[0], atol=1e-2)
    assert one["words"] == "LBFGS from the encoder's mean"
    height = model.likelihood.log_joint(x[:1], mode.view(1, 1, 3)).item()
    assert one["nats"][-1] == pytest.approx(height, abs=1e-3)
    offset = (torch.eye(3) - plane.axes.T @ plane.axes) @ (mode - plane.origin)  # what the map does not see
    codes = (plane.grid(facts["side"]) + offset).flatten(0, 1)
    field = model.likelihood.log_joint(x[:1], codes.unsqueeze(1))[:, 0].detach()
    assert np.allclose(one["below"], max(float(field.max()), height) - field, atol=0.05)


def test_features_of_a_table_are_values(tmp_path: Path) -> None:
    """Frames are decoded at the codes themselves, which lie off the map."""
    x = torch.randn(9, 4).double()
    explore(linear(), x, tmp_path / "page.html", columns=NAMES, size=3)
    facts = facts_of(tmp_path / "page.html")
    table, frames = facts["table"], sum(len(one["points"]) for one in facts["ascents"])
    assert table["columns"] == NAMES and len(table["grid"]) == 9 and len(table["steps"]) == frames
    assert np.allclose(table["steps"][-1], WEIGHT @ modes(x)[-1], atol=1e-2)
    assert np.allclose(table["samples"], x, atol=2e-3) and np.allclose(table["low"], x.amin(0))
    assert len(facts["ascents"]) == 9


def test_a_page_without_ascents_says_why(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z.detach() * 2).repeat(1, 2)

    model = Autoencoder(Gaussian(Twice(), 2), Amortized(lambda x: x[:, :2]))
    explore(model, torch.rand(4, 4), tmp_path / "page.html", size=2)
    assert "No ascent is shown: " in (tmp_path / "page.html").read_text(encoding="utf-8")


DRIVE = """
fit();
const press = key => map.dispatchEvent(new KeyboardEvent("keydown", { key }));
const text = id => find(id).textContent;
const pixels = name => {  // of the map that have a colour, but for rounding
  const one = document.createElement("canvas").getContext("2d");
  one.fillStyle = style(name); one.fillRect(0, 0, 1, 1);
  const wanted = one.getImageData(0, 0, 1, 1).data, all = pen.getImageData(0, 0, map.width, map.height).data;
  let count = 0;
  for (let i = 0; i < all.length; i += 4) count += [0, 1, 2].every(k => Math.abs(all[i + k] - wanted[k]) < 12);
  return count;
};
const seen = { options: chooser.length, key: [...find("key").children].map(item => item.textContent) };
seen.before = pixels("--path") + pixels("--contour");
seen.centre = text("where"); press("ArrowRight"); seen.right = text("where");
const box = map.getBoundingClientRect();
window.addEventListener("error", event => event.preventDefault());
map.dispatchEvent(new PointerEvent("pointerdown", { clientX: box.left + 1, clientY: box.top + 1, pointerId: 1 }));
seen.corner = at; seen.nearest = text("nearest");
chooser.value = "0"; chooser.dispatchEvent(new Event("change"));
seen.first = text("progress"); seen.start = at;
step.value = step.max; step.dispatchEvent(new Event("input"));
seen.last = text("progress"); seen.end = at; seen.where = text("where");
seen.path = pixels("--path"); seen.contours = pixels("--contour");
seen.captions = [...document.querySelectorAll("caption")].map(caption => caption.innerText);
seen.headings = document.querySelectorAll("th[scope=row]").length;
const result = document.body.appendChild(document.createElement("pre"));
result.id = "seen"; result.textContent = JSON.stringify(seen);
"""


@pytest.mark.slow
def test_the_page_and_the_tables_of_a_notebook_in_a_browser(tmp_path: Path) -> None:
    x = torch.rand(7, 1, 2, 3, generator=torch.Generator().manual_seed(0))  # whose first path is long
    model = painter()
    explore(model, x, tmp_path / "page.html", torch.tensor([0, 1, 0, 1, 0, 1, 0]), size=5, classes=["no", "yes"])
    history = History([Epoch(1, 3.0, None, 0.1)])
    results: list[Any] = [history, model, model.encode(x), Evidence.exact(torch.zeros(2))]
    tables = "".join(result._repr_html_() for result in results)
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("</main>", f"{tables}</main>")
    document = after_script(page, DRIVE, tmp_path)
    (content,) = re.findall(r'<pre id="seen">(.*?)</pre>', document, flags=re.DOTALL)
    seen = json.loads(unescape(content))
    facts, _, _ = read(tmp_path / "page.html")
    one = facts["ascents"][0]
    assert seen["options"] == 3 and seen["key"] == ["0: no", "1: yes"]
    assert seen["centre"] != seen["right"]
    assert np.allclose(seen["corner"], [facts["low"][0], facts["high"][1]], atol=0.02)
    distance = ((np.array(facts["points"]) - seen["corner"]) / (np.array(facts["high"]) - facts["low"])) ** 2
    nearest = int(distance.sum(1).argmin())
    assert seen["nearest"] == f"sample {nearest}, label {nearest % 2}: {('no', 'yes')[nearest % 2]}"
    assert seen["start"] == one["points"][0] and seen["end"] == one["points"][-1]
    assert f"step 0 of {one['steps'][-1]}" in seen["first"] and f"step {one['steps'][-1]} of" in seen["last"]
    assert seen["before"] == 0 and seen["path"] > 50 and seen["contours"] > 50
    assert len(seen["captions"]) == 4 and seen["captions"][0].startswith("1 epochs, loss 3 nats")
    assert seen["headings"] == tables.count('scope="row"')


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
