"""The README's example runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_runs_and_iterative_codes_are_better(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert float(printed) > 0  # ascent from the encoder's mean ends above a draw from the encoder


def test_every_system_is_in_the_table() -> None:
    from gae.systems import SYSTEMS

    text = README.read_text()
    assert not [name for name in SYSTEMS if f"`{name}`" not in text]


def test_links_lead_somewhere() -> None:
    """Files exist, and so do the headings that an anchor names (as GitHub writes them)."""
    links = re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    for link in links:
        name, _, anchor = link.partition("#")
        assert (README.parent / name).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (README.parent / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link
