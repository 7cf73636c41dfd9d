"""Tables for notebooks and plots of results: they hold the numbers, and touch no figure but their own."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from gae import Autoencoder, inference_gap, ppca
from gae.analysis.gap import Gap
from gae.data import Dataset, load
from gae.display import LINES, html_table
from gae.evidence import Evidence
from gae.inference import LBFGS, Adam, Amortized, Argmax, Ascent, ClosedForm, Encoding, MeanField
from gae.likelihood import LinearMixture
from gae.nets import mlp
from gae.objective import elbo
from gae.systems.parts import NormalEncoder
from gae.training.history import Epoch, History

X = torch.randn(7, 5).double()


def history() -> History:
    return History([Epoch(1, 3.0, 4.0, 0.1), Epoch(2, 2.0, 3.5, 0.1), Epoch(3, 1.0, 3.7, 0.1)])


def evidence() -> Evidence:
    tight = torch.tensor([True, True, False])
    log_p, error = torch.tensor([-2.0, -5.0, -3.0]), torch.tensor([0.1, 0.2, 0.3])
    return Evidence(log_p, error, method=("importance",) * 3, tight=tight)


def encoding(width: int = 2, components: int = 1) -> Encoding:
    means = torch.randn(components, 5)
    model = LinearMixture(components, width, (5,), means=means).double()
    return (Argmax() if not width else ClosedForm())(model, X)


@cache
def gap() -> Gap:
    model = LinearMixture(1, 2, (5,)).double()
    encoder = Amortized(NormalEncoder(mlp((5,), [4], 4)).double())
    return inference_gap(Autoencoder(model, encoder, elbo), X[:3], samples=50, draws=8, steps=3)


def model() -> Autoencoder:
    return ppca((5,), latent=2)


def table() -> Dataset:
    values = np.random.default_rng(0).normal([1.0, -50.0], [0.1, 20.0], (40, 2))
    values[3, 0] = np.nan
    return load(values, missing="mask")


RESULTS = [history, evidence, encoding, gap, model, lambda: load("digits"), table]
NAMES = ["history", "evidence", "encoding", "gap", "autoencoder", "images", "table"]


@pytest.fixture
def ax() -> Iterator[Axes]:
    """Axes of a figure that pyplot does not know; afterwards, pyplot has none."""
    from matplotlib.figure import Figure

    yield Figure().subplots()
    assert not pyplot.get_fignums()


@pytest.mark.parametrize("result", RESULTS, ids=NAMES)
def test_a_plot_draws_on_the_given_axes_or_on_its_own(result: Callable[[], Any], ax: Axes) -> None:
    shown = result()
    assert shown.plot(ax) is ax and (ax.has_data() or ax.texts)
    assert not pyplot.get_fignums()
    own = shown.plot()
    assert own is not ax and (own.has_data() or own.texts) and len(pyplot.get_fignums()) == 1
    pyplot.close(own.figure)


@pytest.mark.parametrize("result", RESULTS, ids=NAMES)
def test_a_table_is_well_formed_and_has_headings(result: Callable[[], Any]) -> None:
    tree = ElementTree.fromstring(result()._repr_html_())
    assert tree.tag == "table" and tree.findtext("caption")
    rows = tree.findall("tbody/tr")
    assert rows and all(row[0].tag == "th" or "more" in (row[0].text or "") for row in rows)
    widths = {len(row) for row in [*tree.findall("thead/tr"), *rows] if row[0].tag == "th"}
    assert len(widths) == 1


def cells(shown: Any) -> list[list[str | None]]:
    return [[cell.text for cell in row] for row in ElementTree.fromstring(shown._repr_html_()).findall("tbody/tr")]


def test_tables_hold_the_numbers() -> None:
    assert cells(history())[0] == ["3", "1", "3.7", "0.1"]
    assert cells(evidence())[2] == ["2", "-3", "0.3", "importance", "lower bound"]
    assert ["labels", "10 values"] in cells(load("digits"))
    assert ["missing values", "NaN: not observed"] in cells(table())
    mean = gap().table()["inference gap"]["mean"]
    assert dict(row[:2] for row in cells(gap())).keys() >= {"log p(x)", "L[q]", "inference gap"} and mean is not None
    assert cells(encoding())[0] == ["z", "(1, 7, 2): S samples, B observations, a code"]


def test_a_long_table_says_how_much_is_left_out() -> None:
    text = html_table("<&>", [(i, "<b>") for i in range(20)], ("a", "b"))
    assert "&lt;&amp;&gt;" in text and "&lt;b&gt;" in text and text.count("<tr>") == 1 + 12 + 1
    assert "… and 8 more" in text


def test_the_parts_of_a_model_add_up() -> None:
    network = NormalEncoder(mlp((5,), [4], 4))
    made = Autoencoder(model().likelihood, Ascent(Amortized(network), Adam(0.1), 3, family=MeanField()), elbo)
    roles = {role: (words, shape, count) for role, words, shape, count in made.parts()}
    assert roles["inference"][0] == "Ascent(Amortized(NormalEncoder), Adam, MeanField, Unroll)"
    assert roles["likelihood"][1] == "z (2,) → x (5,)" and roles["objective"][0] == "elbo, aggregated by mean"
    assert roles["inference"][2] == 5 * 4 + 4 + 4 * 4 + 4
    assert sum(count for *_, count in made.parts()) == sum(parameter.numel() for parameter in made.parameters())
    mixture = Autoencoder(LinearMixture(3, 2, (5,), means=torch.randn(3, 5)), Argmax(Ascent(step=LBFGS())))
    assert mixture.parts()[0][2] == "z (2,) and k of 3"


def test_a_history_marks_its_best_epoch(ax: Axes) -> None:
    train, held, best = history().plot(ax).lines
    assert train.get_ydata().tolist() == [3.0, 2.0, 1.0] and held.get_ydata().tolist() == [4.0, 3.5, 3.7]
    assert (best.get_xdata(), best.get_ydata()) == ([2], [3.5])
    other = History([Epoch(1, 3.0, None, 0.1)]).plot(ax.figure.add_subplot())
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["training", "lowest, epoch 1"]


def test_evidence_is_drawn_in_order_with_its_errors(ax: Axes) -> None:
    evidence().plot(ax)
    tight, loose = ax.containers
    assert tight.lines[0].get_xydata().tolist() == [[0, -5], [2, -2]]
    assert loose.lines[0].get_xydata().tolist() == [[1, -3]] and to_hex(loose.lines[0].get_color()) == LINES[1].lower()
    (bar,) = loose.lines[2][0].get_segments()
    assert bar[:, 1] == pytest.approx([-3.3, -2.7])


def test_codes_are_a_cloud_a_histogram_or_counts(ax: Axes) -> None:
    flat = encoding()
    (cloud,) = flat.plot(ax).collections
    assert np.allclose(cloud.get_offsets(), flat.point.detach())
    labelled = flat.plot(ax.figure.add_subplot(), torch.tensor([0, 0, 1, 1, 1, 4, 4]))
    assert [len(points.get_offsets()) for points in labelled.collections] == [2, 3, 2]
    wide = encoding(3)
    (cloud,) = wide.plot(ax.figure.add_subplot()).collections
    code = wide.point.detach().numpy()
    share = np.linalg.svd(code - code.mean(0), compute_uv=False) ** 2
    assert np.cov(cloud.get_offsets().T, bias=True).diagonal() * 7 == pytest.approx(share[:2])
    discrete = encoding(0, 3)
    bars = discrete.plot(ax.figure.add_subplot()).patches
    assert [bar.get_height() for bar in bars] == np.bincount(discrete.component).tolist()
    assert sum(bar.get_height() for bar in encoding(1).plot(ax.figure.add_subplot()).patches) == 7


def test_features_of_a_table_are_named_in_their_units(ax: Axes) -> None:
    data = table()
    data.plot(ax)
    first = data.train[:, 0].numpy()
    first = first[~np.isnan(first)].astype(float)
    assert ax.get_yticklabels()[0].get_text() == f"element 0  {first.mean():.4g} ± {first.std():.2g}"
    wide = ax.collections[0].get_segments()[0][:, 0] * first.std() + first.mean()
    assert wide == pytest.approx(np.quantile(first, [0.05, 0.95]))


def test_images_are_tiles_and_text_is_counted(ax: Axes, tmp_path: Any) -> None:
    digits = load("digits")
    picture = digits.plot(ax).images[0].get_array()
    assert np.allclose(picture[9:17, 9:17], digits.train[11, 0])
    (tmp_path / "names.txt").write_text("aab\naac\n" * 5, encoding="utf-8")
    counted = load(tmp_path / "names.txt").plot(ax.figure.add_subplot())
    assert counted.get_xticklabels()[0].get_text() == "a"
    assert counted.patches[0].get_height() == pytest.approx(2 / 3)


def test_a_gap_begins_with_the_largest(ax: Axes) -> None:
    shown = gap()
    lines = {line.get_label(): line.get_ydata() for line in shown.plot(ax).lines}
    loss = shown.evidence.log_p - shown.encoder.value  # type: ignore[union-attr]
    assert -np.asarray(lines["L[q] of the encoder"]) == pytest.approx(loss.sort(descending=True).values.numpy())
