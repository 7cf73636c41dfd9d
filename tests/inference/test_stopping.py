"""Early stopping without ground truth: the rule by hand, for each row, and inside an ascent."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from gae import nets
from gae.inference import (
    ESWMV,
    LBFGS,
    Adam,
    Ascent,
    Constant,
    DecoderInit,
    Detach,
    MeanField,
    Progress,
    Scheduled,
    Status,
)
from gae.likelihood import Gaussian, LinearMixture, WeightLikelihood

RULE = {"window": 6, "every": 2, "patience": 10, "delay": 0.5, "decay": 0.8}


VARYING_RATE = Scheduled(Adam(0.02), lambda t: 1 + (t / 20) ** 2)  # outputs settle, and then vary more and more


def by_hand(signals: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The step of the returned point, the last step, and the average at that point, for outputs (T, D)."""
    average, averages, lowest, found = signals[0], [], np.inf, 0
    for t, reconstruction in enumerate(signals):
        average = reconstruction if t == 0 else 0.8 * average + 0.2 * reconstruction
        averages.append(average)
        seen = signals[: t + 1 : 2][-3:]
        if t % 2 == 0 and len(seen) == 3 and seen.var(0).mean() < lowest:
            lowest, found = seen.var(0).mean(), t
        if np.isinf(lowest):
            found = t
        if t - found >= 10:
            break
    kept = min(t, int(found + 0.5 * found))
    return kept, t, averages[kept]


def signals(rows: int, steps: int = 80) -> Tensor:
    """Outputs that settle at different times, and then vary more and more."""
    time = torch.arange(steps, dtype=torch.float64)[:, None]
    turn = torch.linspace(10, 30, rows, dtype=torch.float64)
    spread = 0.05 + (time - turn).abs() / 20
    return spread.unsqueeze(-1) * torch.randn(steps, rows, 5, dtype=torch.float64)


def test_the_rule_is_the_one_written_down() -> None:
    rule, given = ESWMV(**RULE), signals(3)
    state = rule.start(given[0].unsqueeze(0))
    ended: dict[int, tuple[int, Tensor]] = {}
    last_better = [0, 0, 0]
    for t, reconstruction in enumerate(given):
        state, better, done = rule(reconstruction.unsqueeze(0), state, t)
        for row in range(3):
            if row not in ended and bool(better[0, row]):
                last_better[row] = t
            if row not in ended and bool(done[0, row]):
                ended[row] = (t, state["reconstruction"][0, row].clone())
    for row in range(3):
        kept, end, average = by_hand(given[:, row].numpy())
        assert (last_better[row], ended[row][0]) == (kept, end)
        torch.testing.assert_close(ended[row][1], torch.from_numpy(average))


@pytest.mark.parametrize("steps", [5, 6, 7, 12])
def test_the_first_full_window_counts(steps: int) -> None:
    """Outputs that vary more from the first step on: the minimal variance is that of steps 0, 2 and 4, at step 4."""
    time = torch.arange(steps, dtype=torch.float64).view(-1, 1, 1)
    given = (0.1 + time) * torch.randn(steps, 1, 5, dtype=torch.float64).abs().add(1) * (-1) ** (time // 2)
    rule = ESWMV(**(RULE | {"delay": 0.0}))
    state, found = rule.start(given[0].unsqueeze(0)), []
    for t, reconstruction in enumerate(given):
        state, better, _ = rule(reconstruction.unsqueeze(0), state, t)
        found += [t] if bool(better) else []
    assert found == [0, 1, 2, 3, 4]
    lowest = given[[0, 2, 4], 0].var(0, unbiased=False).mean()
    assert torch.allclose(state["lowest"], lowest)


def model() -> WeightLikelihood:
    return WeightLikelihood(nets.mlp(2, (6,), 8), torch.ones(2), partial(Gaussian, scale=0.1)).double()


def test_rows_stop_one_by_one_and_do_not_see_each_other() -> None:
    likelihood, x = model(), torch.randn(4, 8, dtype=torch.float64)
    x = x * torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64).unsqueeze(1)  # some take longer
    theta = DecoderInit()(likelihood, x).z[0]
    rule = ESWMV(window=8, every=2, patience=12, delay=0.1)

    def solved(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        engine = Ascent(Constant(theta[rows]), VARYING_RATE, 400, adjoint=Detach(), stop=rule)
        found = engine(likelihood, x[rows])
        assert found.solve is not None and found.solve.reconstruction is not None
        return found.solve.steps[0], found.z[0], found.solve.reconstruction[0]

    whole = solved([0, 1, 2, 3])
    assert len(whole[0].unique()) > 1
    for row in range(4):
        for found, wanted in zip(solved([row]), whole, strict=True):
            torch.testing.assert_close(found[0], wanted[row], rtol=1e-9, atol=1e-9)


def test_what_is_returned_is_the_point_of_the_verdict() -> None:
    """The code's own output is among those averaged: with decay 0 the signal is the output of the code returned."""
    likelihood, x = model(), torch.randn(2, 8, dtype=torch.float64)
    rule = ESWMV(window=8, every=2, patience=12, decay=0.0)
    seen: list[Progress] = []
    engine = Ascent(DecoderInit(2), VARYING_RATE, 300, adjoint=Detach(), stop=rule, watch=seen.append)
    found = engine(likelihood, x)
    solve = found.solve
    assert solve is not None and (solve.status == Status.converged).all()
    torch.testing.assert_close(solve.reconstruction, likelihood(found.z).mean)
    assert [progress.step for progress in seen] == list(range(len(seen)))
    assert len(seen) == int(solve.steps.max()) + 1 and not seen[-1].running.any()
    assert torch.equal(seen[-1].reconstruction, solve.reconstruction)


def test_a_row_that_breaks_keeps_its_last_good_average() -> None:
    likelihood, x = model(), torch.randn(2, 8, dtype=torch.float64)
    theta = DecoderInit()(likelihood, x).z[0]

    class Breaks(Adam):
        def forward(self, problem, u, value, grad, state, t):
            moved, state = super().forward(problem, u, value, grad, state, t)
            bad = torch.zeros_like(moved)
            bad[:, 0] = torch.inf if t == 12 and u.shape[1] == 2 else 0.0
            return moved + bad, state

    seen: list[Progress] = []
    engine = Ascent(Constant(theta), Breaks(0.05), 40, adjoint=Detach(), stop=ESWMV(**RULE), watch=seen.append)
    found = engine(likelihood, x)
    assert found.solve is not None
    assert found.solve.status[0, 0] == Status.nonfinite
    assert found.z.isfinite().all() and found.solve.reconstruction.isfinite().all()
    assert torch.equal(found.solve.reconstruction[0, 0], seen[12].reconstruction[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": LBFGS()}, "`stop=ESWMV.*with `LBFGS`, which compares objectives"),
        ({"adjoint": None}, r"with `Unroll`: use `adjoint=Detach\(\)`"),
        ({"grad_tol": 1.0}, "depend on the objective"),
        ({"family": MeanField()}, r"with `MeanField`: use `Delta\(\)`"),
    ],
)
def test_parts_that_do_not_go_with_a_rule(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Ascent(**{"adjoint": Detach(), "stop": ESWMV(), "step": Adam()} | options)


def test_a_mixture_has_no_one_output() -> None:
    engine = Ascent(step=Adam(), adjoint=Detach(), stop=ESWMV())
    with pytest.raises(TypeError, match="needs a single decoder output, which LinearMixture does not have"):
        engine(LinearMixture(2, 1, (3,)), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "Need 1 <= every <= window / 2"),
        ({"window": 7, "every": 4}, "Need 1 <= every <= window / 2"),
        ({"patience": 0}, "patience >= 1"),
        ({"delay": -1.0}, "delay must not be negative"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\)"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESWMV(**options)
