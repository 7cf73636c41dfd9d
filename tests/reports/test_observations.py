"""Observations as images and as features: each plot shows the values, under the names of the columns."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from gae.data import environment
from gae.reports.observations import Features, Images, drawing

NAMES = tuple(f"length {i} (cm)" for i in range(12))


def table(rows: int = 5) -> np.ndarray:
    """Rows of 12 features of scales from 1 to 1000."""
    return np.random.default_rng(0).normal(size=(rows, 12)) * 10.0 ** np.linspace(0, 3, 12)


def worst_first(values: np.ndarray, off: list[int]) -> np.ndarray:
    """Reconstructions with a tiny error, and one standard deviation in the features ``off``."""
    spread = values.std(0)
    return values + spread * np.where(np.isin(np.arange(12), off), 1.0, 1e-3 * np.arange(12))


@pytest.mark.parametrize(
    ("shape", "columns", "names"),
    [((2,), ["a", "b"], ("a", "b")), ((3,), None, ("x[0]", "x[1]", "x[2]")), ((1, 2), None, ("x[0, 0]", "x[0, 1]"))],
)
def test_what_is_no_image_has_named_features(shape: tuple[int, ...], columns: list[str] | None, names: object) -> None:
    how = drawing(shape, (0.0, 1.0), columns)
    assert isinstance(how, Features) and how.names == names
    assert all(isinstance(drawing((c, 4, 4), (0.0, 1.0), None), Images) for c in (1, 3))


def test_reconstructions_are_drawn_against_values_where_errors_are_largest() -> None:
    """Nine of twelve features, in units of their spread; all points are where they belong."""
    values = table()
    rebuilt = {"a": worst_first(values, [1]), "b": worst_first(values, [2])}
    panels = Features(NAMES).compared(values, rebuilt).axes
    shown = [1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert [axes.get_xlabel() for axes in panels] == [NAMES[i] for i in shown]
    for axes, i in zip(panels, shown, strict=True):
        for cloud, each in zip(axes.collections, rebuilt.values(), strict=True):
            np.testing.assert_allclose(np.asarray(cloud.get_offsets()), np.stack([values[:, i], each[:, i]], 1))
    assert "of 12, those with the largest errors" in Features(NAMES).note and "of" not in Features(("a",)).note[40:]


def test_observations_are_listed_with_their_reconstructions() -> None:
    values = table(3)
    rebuilt = worst_first(values, [0])
    panels = Features(NAMES).listed(values, rebuilt, ["row 7", "row 3", "row 9"]).axes
    assert panels[0].get_title() == NAMES[0]
    value, reconstruction = panels[0].lines
    np.testing.assert_array_equal(np.asarray(value.get_ydata()), values[:, 0])
    np.testing.assert_array_equal(np.asarray(reconstruction.get_ydata()), rebuilt[:, 0])
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["row 7", "row 3", "row 9"]


@pytest.mark.slow
def test_values_that_were_not_observed_are_left_out() -> None:
    """A feature without any value, and one that is constant, spoil no other (warnings are errors)."""
    values = table()
    values[:, 3], values[:, 4], values[0, 5] = np.nan, 1.0, np.nan
    how, rebuilt = Features(NAMES), np.nan_to_num(values) + 1e-3
    assert len(how.compared(values, {"a": rebuilt}).axes) == len(how.listed(values, rebuilt, ["row"] * 5).axes) == 9
    assert len(how.drawn({"a": rebuilt}, values).axes) == 9


def test_paths_are_drawn_for_each_model() -> None:
    amounts, path = np.linspace(-2, 2, 4), np.random.default_rng(1).normal(size=(2, 4, 3))
    panels = Features(("a", "b", "c" * 30)).moved({"first": path, "second": 2 * path}, amounts, "step").axes
    assert [axes.get_title() for axes in panels] == ["a", "b", f"{'c' * 26}\ncccc", "", "", ""]
    np.testing.assert_array_equal(np.asarray(panels[4].lines[1].get_ydata()), 2 * path[1, :, 1])
    np.testing.assert_array_equal(np.asarray(panels[4].lines[1].get_xdata()), amounts)


def test_draws_stand_beside_observations() -> None:
    x, draws = table(4), table(6) + 1
    panels = Features(NAMES[:12]).drawn({"model": draws}, x).axes
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert len(panels) == 9 and names == ["test samples", "model"]
    i = NAMES.index(panels[3].get_xlabel())
    assert [np.asarray(line.get_xdata()).tolist() for line in panels[3].lines] == [
        x[:, i].tolist(),
        draws[:, i].tolist(),
    ]
    assert len(Features(NAMES).drawn({"model": draws}).axes[0].lines) == 1


def test_the_commit_is_that_of_the_checkout_of_gae_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gae installed in a folder of another project has no commit of its own."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    module = tmp_path / "gae" / "data" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(environment, "__file__", str(module))
    assert environment.commit.__wrapped__() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert environment.commit.__wrapped__() == git("rev-parse", "HEAD")
    module.write_text("changed")
    assert environment.commit.__wrapped__() == git("rev-parse", "HEAD") + ", with changes"
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "env" / "gae" / "data" / "environment.py"))
    (tmp_path / "env").mkdir()
    assert environment.commit.__wrapped__() is None
