"""The figure of a landscape: its words, its file, and the command that draws it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import gae
from own import written
from scipy.stats import norm

from gae.adapters import from_decoder
from gae.analysis.landscape import Landscape, landscape
from gae.data import load
from gae.reports.landscape import draw, sentence, write
from gae.systems import ppca, vae


@pytest.fixture(scope="module")
def seen() -> Landscape:
    return landscape(ppca((4,), latent=2).double(), torch.tensor([[0.5, -1.0, 0.2, 0.3]]).double())


def test_the_words_carry_the_numbers(seen: Landscape) -> None:
    text = sentence(replace(seen, evidence=-3.5, evidence_error=0.0, elbo=-3.75))
    assert "log p(x) = −3.500 nats by quadrature" in text and "the ELBO of q(z|x) lies 0.250 nats below" in text
    above = sentence(replace(seen, evidence=seen.laplace - 0.25, evidence_error=0.004, elbo=None))
    assert "Laplace's method gives 0.250 ± 0.004 nats more; ClosedForm has no q(z|x)" in above
    assert "slice through the mode of codes of 2 elements" in sentence(replace(seen, is_slice=True))
    assert "flat prior" in sentence(replace(seen, evidence=None, flat=True))
    assert "beyond any window" in sentence(replace(seen, evidence=None))


def test_the_figure_draws_what_is_seen(seen: Landscape) -> None:
    """The ellipses of the Laplace approximation are the contours of the posterior of a linear model."""
    figure = draw(seen, "a title")
    left, right = figure.axes[:2]
    (line, *_), ellipses = left.lines, right.patches
    assert (line.get_xydata() == seen.path.z[seen.path.accepted].numpy()).all()
    for ellipse, level in zip(ellipses, seen.posterior.levels((0.5, 0.95)), strict=True):
        outline = torch.tensor(ellipse.get_transform().transform(ellipse.get_path().vertices[:-1]))
        outline = torch.tensor(right.transData.inverted().transform(outline))
        offset = outline - seen.mode
        height = seen.height - 0.5 * (offset @ torch.linalg.inv(seen.covariance) * offset).sum(1)
        assert (height[::3] - level).abs().max() < 0.05  # every third vertex of a Bézier outline is on the curve
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any(name.startswith("posterior, by quadrature: 50 % and 95 %") for name in names)
    assert figure.get_suptitle().startswith("a title\nlog p(x) = ")


def test_codes_of_one_element_are_drawn_as_curves() -> None:
    """The posterior of a linear model is its Laplace approximation; the path climbs on the curve of log q(x, z)."""
    seen = landscape(ppca((4,), latent=1).double(), torch.tensor([[0.5, -1.0, 0.2, 0.3]]).double(), "gauss-newton")
    left, right = draw(seen, "a title").axes
    joint, path = (line.get_xydata() for line in left.lines[:2])
    assert np.allclose(np.interp(path[:, 0], *joint.T), path[:, 1], atol=1e-3) and len(path) > 1
    assert left.lines[-1].get_xydata()[0] == pytest.approx([float(seen.mode), seen.height])
    posterior, normal = (line.get_xydata() for line in right.lines[:2])
    assert np.allclose(posterior, normal, atol=1e-6)
    assert np.trapezoid(posterior[:, 1], posterior[:, 0]) == pytest.approx(1, abs=1e-6)
    for region, mass in zip(right.collections, (0.95, 0.5), strict=True):  # the wider first
        (outline,) = region.get_paths()
        reach = np.ptp(outline.vertices[:, 0]) / 2 / float(seen.covariance.sqrt())
        assert reach == pytest.approx(norm.ppf((1 + mass) / 2), abs=0.15)  # of the grid


def test_an_svg_describes_itself(seen: Landscape, tmp_path: Path) -> None:
    write(seen, tmp_path / "a.svg", "a title")
    write(seen, tmp_path / "b.svg", "a title")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    (description,) = re.findall(r"<dc:description>(.*?)</dc:description>", text)
    assert description == sentence(seen).replace("&", "&amp;")
    with pytest.raises(ValueError, match=r"must end in \.png or \.svg"):
        write(seen, tmp_path / "a.pdf", "a title")


@pytest.mark.slow
def test_the_command_draws_a_decoder_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = written(tmp_path, monkeypatch)
    options = ("--decoder", "own_models:decoder", "--encoder", "own_models:Encoder", "--weights", "both.pt")
    printed = gae("picture", "images.npy", *options, "--latent", "2", "--scale", "0.3", "--index", 1, "-o", "a.svg")
    model = from_decoder(own["decoder"], (1, 4, 4), 2, scale=0.3, encoder=own["encoder"]).double()
    seen = landscape(model, load("images.npy").test[1:2].double())
    assert printed == f"{sentence(seen)}\na.svg\n"
    assert "own_models:decoder on images.npy, test observation 1" in Path("a.svg").read_text(encoding="utf-8")
    flat = ("--decoder", "own_models:Once", "--latent", "2", "--scale", "0.3")
    assert "has no second derivatives in torch.float64" in gae("picture", "images.npy", *flat, "-o", "b.svg", code=2)


def test_the_command_draws_a_test_observation(tmp_path: Path) -> None:
    model = vae((1, 8, 8), latent=3, hidden=(8,))
    model.preparation = load("digits").preparation
    model.save(tmp_path / "model")
    text = gae("picture", tmp_path / "model", "digits", "--index", 2, "--out", tmp_path / "new" / "a.png")
    assert "A slice through the mode of codes of 3 elements" in text
    assert (tmp_path / "new" / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert "below the number of test observations, 360, got 400" in gae(
        "picture", tmp_path / "model", "digits", "--index", 400, "--out", tmp_path / "b.png", code=2
    )
    assert "must end in .png or .svg" in gae("picture", tmp_path / "model", "digits", "--out", "a.pdf", code=2)
