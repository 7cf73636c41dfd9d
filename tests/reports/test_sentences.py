"""Each sentence of "in short" against results that are built to break it."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from gae.analysis.costs import Costs, costs, gap_costs, worst
from gae.analysis.estimates import Estimate, difference, estimate
from gae.analysis.matrix import DIAGONAL, ENCODER, OPTIMUM
from gae.reports.sentences import (
    answer,
    density_answer,
    errors,
    family_cost,
    flow_cost,
    ordered,
    runaway,
    simpler,
    wide_gain,
)


def one(mean: float, error: float | None = 0.01, n: int = 64, over: str = "test samples") -> Estimate:
    return Estimate(mean, error, n, over, error)


GOOD = Costs(
    DIAGONAL,
    total=one(2.06, 0.13),
    approximation=one(0.46),
    amortisation=one(1.6, 0.1),
    gain=one(1.58, 0.1),
    left=one(0.001, 0.01),
    steps=4,
    rule="L-BFGS",
    converged=1.0,
    active=8,
    width=8,
    kl=16.0,
)


def test_the_answer_in_the_form_of_the_question() -> None:
    assert answer(GOOD) == (
        "On this decoder the encoder gives up 2.06 ± 0.13 nats (s.e. over 64 test samples of one training); four "
        "L-BFGS steps win back 1.58 of them; the rest is family."
    )
    trainings = replace(GOOD, total=one(2.06, 0.13, 3, "trainings"))
    assert "2.06 ± 0.13 nats (s.e. over 3 trainings)" in answer(trainings)


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({"active": 0, "kl": 0.0}, r"has collapsed \(0 of 8 units active, KL 0.00 nats\)", "gives up|family|win back"),
        ({"active": 3}, r"\(3 of 8 units are active\.\)", "collapsed"),
        ({"total": one(0.004, 0.001)}, "nothing that can be told from zero.*nothing to win", "gives up 0|family"),
        ({"total": one(0.3, 0.2)}, "told from zero .*hide gaps", "to win|win back|family"),
        ({"total": one(2.0, 0.6, 3, "trainings")}, "hide gaps", "to win|win back"),  # t(2) = 4.3, not 1.96
        ({"total": one(2.0, 0.6, 64)}, "gives up 2.0", "nothing to win"),
        ({"total": one(2.0, None, 1)}, "hide gaps", "to win|win back"),  # one sample has no error
        ({"total": one(-0.5)}, "impossible", "gives up|win back|family"),
        ({"converged": 0.95}, "rest is family or unfinished optimisation, since only 95% of", "is family[.]"),
        ({"gain": one(0.1, 0.2)}, "win back nothing that can be told from zero", "win back 0"),
        ({"gain": one(-0.4)}, r"four L-BFGS steps lose 0\.40 more", "win back"),
        ({"left": one(0.3)}, r"more steps win back 0\.30, and 0\.46 are family", "rest is family"),
        (
            {"left": one(0.3), "approximation": one(0.005)},
            "none of it can be told to be family",
            "is family|are family",
        ),
        ({"approximation": one(0.005)}, "nothing of the rest can be told from zero", "is family"),
        ({"approximation": one(-0.2)}, "q. came out above log p.x., so the rest is not split", "is family"),
        ({"steps": 1}, r"one L-BFGS step wins back 1\.58", "steps"),
        ({"steps": 16, "rule": "gradient"}, "16 gradient steps win back", "L-BFGS"),
    ],
)
def test_answers_to_cases_built_to_break_them(changes: dict[str, Any], said: str, unsaid: str) -> None:
    text = answer(replace(GOOD, **changes))
    assert re.search(said, text) and not re.search(unsaid, text)


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, "gives up 1.60 ± 0.10 nats .*against the best mean-field density; four", "at least|2.06"),
        ({"converged": 0.95}, r"gives up at least 1.60 .*\(only 95% of", "2.06"),
        ({"amortisation": one(0.001)}, "no mean-field density beats the encoder's", "gives up"),
        ({"amortisation": one(0.001), "converged": 0.5}, "was reached, but only 50% of", "no mean-field density beats"),
        ({"amortisation": one(-0.6)}, "ended below the encoder's density .*so it failed", "gives up"),
    ],
)
def test_without_a_tight_evidence_no_gap_to_it_is_quoted(changes: dict[str, Any], said: str, unsaid: str) -> None:
    text = answer(replace(GOOD, total=None, approximation=None, **changes))
    assert re.search(said, text) and not re.search(unsaid, text)
    assert "only as a lower bound, so no gap to it is quoted" in text and "is family" not in text


def test_families() -> None:
    assert family_cost(one(0.43, 0.03), 1.0, 1.0).startswith("A full covariance is worth 0.430 ± 0.030 nats")
    assert "cannot" not in family_cost(one(0.0), 1.0, 1.0) and "nothing" in family_cost(one(0.0), 1.0, 1.0)
    assert "failed" in family_cost(one(-0.4), 1.0, 1.0)
    for shares in ((0.98, 1.0), (1.0, 0.98)):
        assert "not compared" in family_cost(one(0.43), *shares) and "worth" not in family_cost(one(0.43), *shares)


def test_flows_and_wide_encoders() -> None:
    assert "worth at least 0.200 ± 0.030 nats more" in flow_cost(one(0.2, 0.03), "maf")
    assert "nothing over it that can be told from zero" in flow_cost(one(0.02, 0.03), "maf")
    assert "ended 0.200 ± 0.030 nats below" in flow_cost(one(-0.2, 0.03), "maf")
    assert "is 0.200 ± 0.030 nats above the encoder: so much" in wide_gain(one(0.2, 0.03))
    assert "cannot be told from the encoder's (0.020 ± 0.030 nats apart)" in wide_gain(one(0.02, 0.03))
    assert "is 0.200 ± 0.030 nats below the encoder." in wide_gain(one(-0.2, 0.03))


def test_simpler_models() -> None:
    assert simpler("ppca", one(7.0), True) == "The best decoder's log p(x) is above that of ppca by 7.000 ± 0.010 nats."
    assert simpler("a model without a code", one(-7.0), True).startswith("A model without a code wins: its log p(x)")
    assert simpler("a model without a code", one(7.0), True).startswith("The best") and "of a model" in simpler(
        "a model without a code", one(7.0), True
    )
    assert "at least 7.00" in str(simpler("ppca", one(7.0), False))
    assert simpler("ppca", one(-7.0, 0.5), True).startswith("ppca wins") and "by 7.0" in simpler(
        "ppca", one(-7.0, 0.5), True
    )
    assert "wins" not in simpler("ppca", one(-7.0), False) and "lower bound" in simpler("ppca", one(-7.0), False)
    for unclear in (one(0.1, 0.2), one(6.41, 0.71, 2, "trainings")):  # t(1) = 12.7: wide errors show no equality
        text = simpler("ppca", unclear, True)
        assert "cannot be told from that of ppca" in text and not re.search("as well|above|wins", text)


def test_an_order_is_claimed_only_beyond_the_error() -> None:
    assert ordered("a", "b", one(0.5, 0.1), "At 9 steps") == "At 9 steps: a is above b by 0.50 ± 0.10 nats."
    assert ordered("a", "b", one(-0.5, 0.1), "At 9 steps") == "At 9 steps: b is above a by 0.50 ± 0.10 nats."
    assert "cannot be told apart" in ordered("a", "b", one(0.5, 0.3), "At 9 steps")
    assert "cannot be told apart" in ordered("a", "b", one(0.5, 0.2, 2, "trainings"), "At 9 steps")


def test_errors_are_named() -> None:
    assert "over 64 test samples of one training" in errors(one(1.0)) and "--seeds" in errors(one(1.0))
    assert errors(one(1.0, 0.1, 3, "trainings")) == "Errors are standard errors over 3 trainings."
    assert "fewer than the 3" in errors(one(1.0, 0.1, 2, "trainings"))
    assert "E‖z‖² of its codes is 1.1, where the prior says 8.0" in runaway("unrolled", 1.14, 8.0)


def matrix(encoder: list[float], moved: list[float], optimum: list[float], log_p: list[float], tight: bool) -> Any:
    rows = {ENCODER: encoder, "encoder + 4 L-BFGS steps": moved, OPTIMUM: optimum}
    cells = {name: {"values": values, "converged": 1.0} for name, values in rows.items()}
    return {"cells": {DIAGONAL: cells}, "log_p": {"values": log_p, "tight": tight}}


def test_costs_are_paired_by_training_and_sample() -> None:
    """Samples differ by hundreds of nats, gaps by hundredths; two trainings count as two."""
    base = [0.0, 100.0, -300.0]
    first = matrix(base, [b + 1 for b in base], [b + 1.5 for b in base], [b + 2 for b in base], True)
    second = matrix(base, [b + 2 for b in base], [b + 2.5 for b in base], [b + 4 for b in base], True)
    use = {"active": 2, "width": 2, "kl": 3.0}
    alone = costs([first], [use], DIAGONAL, 4)
    assert alone.total == Estimate(2.0, 0.0, 3, "test samples", 0.0) and alone.gain.mean == 1 and alone.left.mean == 0.5
    assert alone.approximation is not None and alone.approximation.mean == 0.5 and alone.amortisation.mean == 1.5
    second["cells"][DIAGONAL][OPTIMUM]["converged"] = 0.5
    both = costs([first, second], [use, {**use, "active": 1, "kl": 5.0}], DIAGONAL, 4)
    assert both.approximation is not None and both.approximation.mean == 1.0 and both.amortisation.mean == 2.0
    assert both.converged == 0.5 and both.kl == 4.0 and both.gain.mean == 1.5 and both.left.mean == 0.5
    assert both.total is not None and (both.total.mean, both.total.error, both.total.n) == (3.0, 1.0, 2)
    assert both.active == 1 and both.total.over == "trainings"
    assert costs([first, {**second, "log_p": {"values": base, "tight": False}}], [use] * 2, DIAGONAL, 4).total is None


def test_costs_of_a_gap_are_those_of_its_columns() -> None:
    columns = {
        "L[q]": [0.0, 1.0],
        "L[q*], mean-field": [2.0, 4.0],
        "L[q after 4 L-BFGS steps]": [1.5, 2.5],
        "inference gap": [3.0, 6.0],
        "approximation gap, mean-field": [1.0, 3.0],
        "amortisation gap": [2.0, 3.0],
        "converged, mean-field": [1.0, 0.0],
        "tight log p(x)": [1.0, 1.0],
    }
    values = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    use = {"active": 2, "width": 3, "kl": 1.5}
    known = gap_costs([values], "mean-field", use, 4)
    assert known.total is not None and known.approximation is not None
    means = [each.mean for each in (known.total, known.approximation, known.amortisation, known.gain, known.left)]
    assert means == [4.5, 2.0, 2.5, 1.5, 1.0]
    assert (known.converged, known.active, known.width, known.kl) == (0.5, 2, 3, 1.5)
    values["tight log p(x)"][0] = 0.0
    assert gap_costs([values], "mean-field", use, 4).total is None


@pytest.mark.parametrize("size", [3, 5, 64])
def test_significance_is_that_of_student_s_t_test(size: int) -> None:
    """SciPy's two-sided test at 5 %, and the upper end of its 95 % interval; and 0.01 nats are needed, too."""
    for mean, spread in itertools.product([-0.5, 0.02, 0.05, 0.2, 0.6], [0.01, 0.05, 0.2, 0.4]):
        values = mean + spread * torch.randn(size, dtype=torch.float64)
        test = stats.ttest_1samp(values.numpy(), 0.0)
        one = estimate([values.tolist()])
        assert one.significant == (test.pvalue < 0.05 and abs(float(values.mean())) >= 0.01)
        assert one.excludes == (test.confidence_interval(0.95).high < 0.1)
        assert one.error == pytest.approx(stats.sem(values.numpy()))
    assert not estimate([[0.009, 0.009, 0.0089]]).significant


def test_the_worst_samples_come_first() -> None:
    entry = matrix([0.0, 0.0, 0.0], [0.0] * 3, [1.0, 5.0, 2.0], [9.0, 6.0, 7.0], True)
    assert worst(entry, DIAGONAL, 2) == [(0, 9.0), (2, 7.0)]
    entry["log_p"]["tight"] = False
    assert worst(entry, DIAGONAL, 2) == [(1, 5.0), (2, 2.0)]


def test_errors_over_trainings_are_those_of_their_means() -> None:
    both = estimate([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [5.0, 6.0, 7.0]])
    assert both.mean == 4 and both.error == pytest.approx(2 / 3**0.5) and both.sample_error == pytest.approx(3**-0.5)
    assert difference([[1.0]], [[0.5]]).error is None and not difference([[1.0]], [[0.5]]).significant


@pytest.mark.parametrize(
    ("total", "amortisation", "active", "said", "unsaid"),
    [
        (one(2.0, 0.1), one(1.5, 0.1), 8, r"gives up 2\.00 ± 0\.10 nats .* it gives up at least 1\.50", "units"),
        (one(2.0, 0.1), one(1.5, 0.1), 3, r"\(3 of 8 units are active\.\)", "collapsed"),
        (one(2.0, 0.1), one(1.5, 0.1), 0, r"has collapsed \(0 of 8 units active", "gives up|at least"),
        (one(2.0, 0.1), None, None, "best density of its family is not known", "units|at least"),
        (one(2.0, 0.1), one(0.1, 0.2), 8, "no density of its family was found", "at least"),
        (one(2.0, 0.1), one(-0.5), 8, r"ended below it \(−0\.500.*so it failed", "at least"),
        (one(0.3, 0.2), one(0.1, 0.2), 8, "told from zero .*hide gaps", "gives up 0"),
        (one(-0.5), one(0.1), 8, "impossible", "gives up"),
        (None, one(1.5, 0.1), 8, "known only as a lower bound.*at least 1.50", "gives up 2|gives up nothing"),
    ],
)
def test_densities_that_are_not_normal(
    total: Estimate | None, amortisation: Estimate | None, active: int | None, said: str, unsaid: str
) -> None:
    text = density_answer(total, amortisation, active, 8, 0.0)
    assert re.search(said, text) and not re.search(unsaid, text), text
