"""Numbers rounded by their error, the paragraphs that pages begin with, and what figures say in words."""

import math
import random
import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import pytest

from gae.ledger.claims import Check, Verdict, equal
from gae.ledger.notes import Claim, Finding
from gae.reports.answers import (
    families_answer,
    ledger_answer,
    loss_answer,
    restoration_answer,
    survey_answer,
    sweep_answer,
    text_answer,
)
from gae.reports.figures import canvas
from gae.reports.pages import with_contents
from gae.reports.rounding import rounded
from gae.reports.seen import course, describe
from gae.reports.vector import DARK, svg


def test_numbers_are_rounded_by_the_second_digit_of_their_error() -> None:
    """Against decimal arithmetic, which rounds exactly."""
    draw = random.Random(0)
    for _ in range(200):
        error = Decimal(repr(10 ** draw.uniform(-5, 4)))
        mean = Decimal(repr(draw.uniform(-1e4, 1e4)))
        step = Decimal(1).scaleb(error.adjusted() - 1)
        if (error / step).quantize(Decimal(1), ROUND_HALF_EVEN) == 100:
            step *= 10  # 0.0996 is 0.10
        shown = [f"{(each / step).quantize(Decimal(1), ROUND_HALF_EVEN) * step:,f}" for each in (mean, error)]
        assert rounded(float(mean), float(error)) == " ± ".join(shown).replace("-", "−")


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (2.0, None, "2.0"),
        (2.0, 0.0, "2.0"),
        (-0.04, None, "0.0"),
        (1.0, float("nan"), "1.0"),
        (1.0, 1e-16, "1.0"),
        (-1234.56, 0.25, "−1,234.56 ± 0.25"),
    ],
)
def test_numbers_without_an_error(mean: float, error: float | None, text: str) -> None:
    assert rounded(mean, error) == text


def system(
    name: str, error: float, accuracy: float | None = 0.9, width: int = 8, se: float | None = 1e-4
) -> dict[str, Any]:
    """A row of a survey."""
    label = {"mean": accuracy, "se": None if accuracy is None else 0.01}
    return {
        "system": name,
        "squared_error": {"mean": error, "se": se},
        "accuracy": label,
        "width": width,
        "components": 1,
    }


@pytest.mark.parametrize(
    ("rows", "said", "unsaid"),
    [
        (
            [system("a", 0.01), system("b", 0.02, 0.5)],
            "two systems with a code of 8, a has the lowest.*10.00 ± 0.10",
            "told",
        ),
        ([system("a", 0.01), system("b", 0.0101)], "cannot be told from that of b", "next is b with 10.10"),
        ([system("a", 0.01), system("b", 0.02, se=None)], "cannot be told from that of b", "next is b with 20"),
        ([system("a", 0.01), system("b", 0.02, width=2)], "No two systems have codes of one size", "lowest"),
        ([system("a", 0.01)], "a has a squared error of 10.00 ± 0.10", "lowest|ranked"),
        ([system("w", 0.001, width=64), system("a", 0.01), system("b", 0.02)], "a has the lowest", "w has"),
        (
            [system("a", 0.01, 0.5), system("b", 0.02, 0.9)],
            "By labels, b has the highest 5-NN accuracy: 90.0 ± 1.0 %",
            "By labels, a",
        ),
        ([system("a", 0.01, None), system("b", 0.02, None)], "a has the lowest", "labels"),
    ],
)
def test_a_survey_ranks_codes_of_one_size(rows: list[dict[str, Any]], said: str, unsaid: str) -> None:
    text = " ".join(survey_answer(rows, 360))
    assert re.search(said, text) and not re.search(unsaid, text)
    assert "360 test samples" in text and "nothing about other seeds" in text


def test_text_is_ranked_by_the_tokens_restored() -> None:
    rows = [{"system": name, "tokens": {"mean": share, "se": 0.01}} for name, share in (("a", 0.5), ("b", 0.8))]
    assert (
        text_answer(rows, 9)[0]
        == "b has the highest tokens restored: 80.0 ± 1.0 % of a line; next is a with 50.0 ± 1.0."
    )
    assert survey_answer([], 9) == text_answer([], 9) == []


def trainings(losses: dict[int, list[float | None]]) -> list[dict[str, Any]]:
    """Rows of a sweep over the width of a code; None for a training that failed."""
    return [
        {
            "data": "d",
            "system": "vae",
            "latent": k,
            "seed": seed,
            "test_loss": loss,
            "error": "x" if loss is None else None,
        }
        for k, values in losses.items()
        for seed, loss in enumerate(values)
    ]


UNSHOWN = "one training does not show that this is below 3.0 nats with latent=2 (--seeds)."


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        # differences by seed of 0.9, 1.0 and 1.1: their mean is 1 and its error 0.1 / √3, far below those of the means
        (
            {2: [0.9, 6.0, 11.1], 8: [0.0, 5.0, 10.0]},
            "vae: lowest test loss 5.0 ± 2.9 nats (s.e. over 3 trainings) with latent=8, "
            "below latent=2 by 1.000 ± 0.058 nats.",
        ),
        ({2: [1.0, 5.0, 9.0], 8: [0.0, 5.0, 10.0]}, "which cannot be told from latent=8 (0.00 ± 0.58 nats apart)"),
        ({2: [3.0], 8: [2.0]}, f"vae: lowest test loss 2.0 nats with latent=8; {UNSHOWN}"),
        ({2: [3.0, None], 8: [None, 2.0]}, f"{UNSHOWN} 2 of 4 trainings failed."),
    ],
)
def test_a_sweep_names_its_lowest_loss(losses: dict[int, list[float | None]], said: str) -> None:
    assert said in " ".join(sweep_answer(trainings(losses), ["data", "system", "latent"], ["latent"]))


def test_one_combination_has_no_rival() -> None:
    rows = trainings({2: [1.0, 2.0]})
    assert sweep_answer(rows, ["data", "system", "latent"], []) == [
        "vae: test loss 1.50 ± 0.50 nats (s.e. over 2 trainings)."
    ]


def test_the_largest_loss_is_named_with_its_share() -> None:
    assert loss_answer("gap", [1.0, 3.0], 1, 7) == "Row 7 (test sample 1) has the largest gap, 3.00 nats."
    assert "has 50 % of the sum" in loss_answer("gap", [1.0] * 19 + [9.0, 10.0], 20, 5, 0.1)


@pytest.mark.parametrize(("tight", "least"), [(1.0, ""), (0.0, "at least ")])
def test_families_are_quoted_where_the_engine_has_no_density(tight: float, least: str) -> None:
    columns = {"approximation gap, full covariance": [1.0, 3.0], "tight log p(x)": [1.0, tight]}
    assert (
        f"gives up {least}2.0 ± 1.0 nats (full covariance); errors are over 2 test samples of one training"
        in families_answer([columns])
    )


def test_a_restoration_says_its_gain_or_that_none_is_known() -> None:
    quality = {"PSNR (dB)": {"degraded": 20.0, "restored": 25.5}, "SSIM": {"degraded": 0.5, "restored": 0.75}}
    text = restoration_answer(quality, [0.01, 0.01])
    assert "is closer to the clean one: PSNR 20.00 → 25.50 dB (+5.50), SSIM 0.500 → 0.750" in text
    assert "the mean of two networks, so the gain has no error" in text
    worse = {"PSNR (dB)": {"degraded": 20.0, "restored": 19.5}, "SSIM": quality["SSIM"]}
    assert "is no closer to the clean one" in restoration_answer(worse, [0.01]) and "(−0.50)" in restoration_answer(
        worse, [1.0]
    )
    same = {"PSNR (dB)": {"degraded": math.inf, "restored": 19.5}, "SSIM": {"degraded": 1.0, "restored": 0.75}}
    assert restoration_answer(same, [0.01]).endswith("there was nothing to restore: SSIM 1.000 → 0.750.")
    assert "no clean photograph" in restoration_answer({}, [0.01]) and "by 0.1 (root mean square" in restoration_answer(
        {}, [0.01]
    )


def test_a_ledger_counts_its_verdicts() -> None:
    def finding(name: str, verdict: Verdict, seed: int, right: float = 1.0) -> Finding:
        claim = Claim(name, "", "", "", verdict, verdict.value, None, "", lambda seed: Check([]), None)
        return Finding(claim, Check([equal("x", 1.0, right, 0.5)], correction=[equal("y", 0.0, 0.0, 1.0)]), 0.0, seed)

    good = [finding("D01", Verdict.holds, seed) for seed in (0, 1)] + [finding("D02", Verdict.holds, 0, 1.25)]
    text = ledger_answer(good)
    assert "Of 2 claims, 2 hold; all reach the verdict of their note, with 2 seeds" in text
    assert "at most 50 % of the tolerance (6 relations)" in text
    text = ledger_answer([finding("D03", Verdict.holds, 0), finding("D04", Verdict.holds, 0, 99.0)])
    assert "1 holds and 1 fails and is corrected; these contradict their note: D04 (seed 0)" in text


def test_contents_lead_to_the_sections() -> None:
    page = with_contents('<nav class="contents"></nav><h2>A &amp; b</h2><h2>A b</h2><h2>−</h2>')
    addresses, names = re.findall(r'href="#(.+?)"', page), re.findall(r'h2 id="(.+?)"', page)
    assert addresses == names == ["a-b", "a-b-2", "section"] and "A &amp; b</a>" in page
    assert with_contents("<h2>A</h2>") == "<h2>A</h2>"


def test_a_curve_in_words() -> None:
    assert course("a", [0.0, 1.0, 2.0], [1.0, 5.0, 2.0]) == "a rises from 1 at 0 to 2 at 2 (highest: 5 at 1)"
    assert course("a", [0.0, 1.0, 2.5], [1.0, 1.52, 1.5]) == "a rises from 1 at 0 to 1.50 at 2.50"
    assert course("a", [0.0, 1.0], [float("nan"), -2e-7]) == "a is −2.00e−07 at 1"
    assert course("a", [0.0], [float("nan")]) == "a has no values"


def test_a_figure_in_words() -> None:
    figure = canvas(4.0, 3.0)
    left, right = figure.subplots(1, 2)
    left.plot([1, 2, 3], [4.0, 5.0, 6.5], color="#0072B2", label=r"$\mathdefault{x}$ & <y>")
    left.errorbar([1, 2], [3.0, 1.0], [0.1, 0.1], label="with error")
    left.scatter([1, 2, 3], [1, 2, 3])
    left.set(title="training", xlabel="steps", ylabel="nats")
    right.bar([0, 1], [2.0, 7.0], tick_label=["a", "b"])
    right.set(xlabel="label")
    curves = "x & <y> rises from 4 at 1 to 6.50 at 3; with error falls from 3 at 1 to 1 at 2"
    assert describe(figure) == (
        f"training, nats against steps: {curves}; 3 points. against label: 2 bars, the highest 7 at b."
    )


def test_figures_take_the_colours_of_the_page() -> None:
    """Every colour of the figure is a variable, its names are its own, and it says what is seen."""
    from xml.etree import ElementTree

    figure = canvas(4.0, 3.0)
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], color="#0072B2")
    axes.imshow(np.eye(2))
    drawn = svg(figure, 'a "b" <c> & d', "figure-one")
    assert "var(--x0072b2)" in drawn and not any(f": {colour}" in drawn for colour in DARK)
    assert drawn == svg(figure, 'a "b" <c> & d', "figure-one")
    tree = ElementTree.fromstring(drawn.replace("xlink:href", "href"))
    assert tree.get("aria-label") == 'a "b" <c> & d' and tree.get("role") == "img"
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(set(names)) == len(names) and all(str(name).startswith("figure-one") for name in names)
    targets = re.findall(r'(?:href="|url\()#([^")]+)', drawn)
    assert targets and set(targets) <= set(names)
