"""The command lines of the experiments, none of which is run here, and the accounts that the studies keep."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from experiments.study import best_rate
from experiments.training_by_inference import SMOKE, Parts, build, evaluations, marks
from gae.data import Dataset
from gae.systems import vae

EXPERIMENTS = [
    path.stem
    for path in sorted((Path(__file__).resolve().parent.parent / "experiments").glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_help_is_offered(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"usage: {name}")


def test_parts_of_a_pass_hold_every_row_once_and_the_next_pass_draws_anew() -> None:
    pixels = torch.rand(12, 1, 4, 4)
    parts = Parts.of(Dataset("x", pixels, pixels, None, None, (0.0, 1.0), "dynamic"), 4)
    whole = super(Parts, parts).epoch
    assert torch.equal(torch.cat([parts.epoch(i, 5) for i in range(3)]), whole(0, 5))
    assert torch.equal(parts.epoch(4, 5), whole(1, 5)[4:8])


def test_a_rate_at_an_edge_is_marked_and_a_failed_one_is_never_chosen() -> None:
    chosen = best_rate({0.1: -3.0, 0.01: -2.0, 1.0: None})
    assert (chosen["rate"], chosen["edge"]) == (0.01, True)
    assert not best_rate({0.1: -1.0, 0.01: -2.0, 1.0: -4.0})["edge"]
    with pytest.raises(FloatingPointError, match="No rate"):
        best_rate({0.1: None})


def test_marks_are_within_the_training_and_include_the_budgets() -> None:
    assert marks(10, (7, 12, 0)) == [1, 2, 3, 4, 6, 7, 9, 10]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vae", 1),
        ("iwae50", 50),
        ("savae", 5 * 2 + 1),  # draws for each of the steps, and the code
        ("rws", 10),
        ("unrolled-map", 10 + 1),
        ("short-run", 30 + 1),
        ("mcmc-em", 6 * 5 + 1 + 1),  # trajectories, the last state, and the bound of the encoder's draw
        ("vlae", 5 * (1 + 3) + 3 + 1),  # values and their curvatures, the curvature of the density, and its draw
    ],
)
def test_decoder_evaluations_of_a_training_step(name: str, expected: int) -> None:
    model = build(SMOKE, name, torch.Size((1, 4, 4)), 0.01, 0)
    assert evaluations(model, torch.rand(6, 1, 4, 4).round()) == expected


@pytest.mark.parametrize("name", ["vae", "vlae", "short-run"])
def test_every_training_starts_from_the_same_decoder(name: str) -> None:
    model = build(SMOKE, name, torch.Size((1, 4, 4)), 0.01, 3)
    torch.manual_seed(3)
    first = vae((1, 4, 4), SMOKE.latent, SMOKE.hidden, "bernoulli").likelihood
    for a, b in zip(model.likelihood.parameters(), first.parameters(), strict=True):
        assert torch.equal(a, b)
