"""The README's example runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_runs_and_compares_points(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it saves a model
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = float(capsys.readouterr().out)
    model, x = names["model"], names["digits"].test
    assert printed > 0  # ascent from the encoder's mean ends above it
    heights = [model.likelihood.log_joint(x, names[name].point[None]) for name in ("iterative", "amortised")]
    assert printed == pytest.approx((heights[0] - heights[1]).mean().item(), rel=1e-4)
    draws = names["amortised"].log_joint.mean().item()  # a draw is lower than the mean, whatever the encoder is worth
    assert printed < heights[0].mean().item() - draws
    gap = names["gap"]
    assert torch.allclose(gap.columns()["inference gap"], gap.approximation("mean-field") + gap.amortisation)


def test_an_exact_posterior_loses_nothing_between_points() -> None:
    """A draw from it lies d/2 nats below the mode on average; its mean is the mode (linear-Gaussian)."""
    from gae.inference import ClosedForm
    from gae.likelihood import LinearMixture

    torch.manual_seed(0)
    model, x = LinearMixture(1, 4, (6,)).double(), torch.randn(50, 6).double()
    drawn, mode = ClosedForm(samples=200)(model, x), ClosedForm()(model, x).log_joint[0]
    error = (mode - drawn.log_joint).mean(0).std() / 50**0.5
    assert abs((mode - drawn.log_joint).mean() - 2) < 4 * error
    assert torch.allclose(model.log_joint(x, drawn.point[None])[0], mode)


def test_links_lead_somewhere() -> None:
    """Files exist, and so do the headings that an anchor names (as GitHub writes them).

    Web addresses are those of quoted texts: see ``ledger/test_sources.py``.
    """
    links = re.findall(r"\]\((?!https://)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    for link in links:
        name, _, anchor = link.partition("#")
        assert (README.parent / name).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (README.parent / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


FIRST_QUESTIONS = {
    "your own decoder": r"`gae\.from_decoder\(decoder, data, .+--decoder module:function",
    "what the gap means": r"## What the gap means\n.+The\n\*approximation gap\*.+\*amortisation gap\*",
    "where a formula is proved": r"## D\d\d\. .+\*\*Claim:\*\*.+\*\*Verdict:\*\*",
}


@pytest.mark.parametrize("question", FIRST_QUESTIONS)
def test_two_clicks_lead_to_the_answer(question: str) -> None:
    """By a link in the row of the question, or one on its page; to files of the repository, not of the site."""
    (row,) = re.findall(rf"^\|.*\*\*{question}\*\*.*$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    first = [README.parent / name for name in re.findall(r"\]\(([^)#]+\.md)", row)]
    second = [
        page.parent / name for page in first for name in re.findall(r"\]\((?!https:)([^)#]+\.md)", page.read_text())
    ]
    pages = [page.read_text(encoding="utf-8") for page in [*first, *second] if page.exists()]
    assert any(re.search(FIRST_QUESTIONS[question], page, flags=re.DOTALL) for page in pages)


def test_every_note_is_two_clicks_away() -> None:
    page = README.parent / "docs" / "guide" / "derivation.md"
    linked = {
        (page.parent / name).resolve() for name in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    }
    assert "docs/guide/derivation.md" in README.read_text(encoding="utf-8")
    assert set((README.parent / "notes").glob("[0-9]*.md")) <= linked
