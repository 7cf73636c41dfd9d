"""Formulas in plain characters become MathML that says the same."""

import re
import unicodedata
from xml.etree import ElementTree

import pytest

from gae.ledger.notes import read_notes
from gae.reports.formulas import mathml, typeset

STATEMENTS = [text for note in read_notes() for claim in note.claims for text in (claim.statement, claim.instead or "")]


def elements(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<p>{html}</p>")


def test_scripts_of_a_letter() -> None:
    (power,) = elements(typeset("W_kᵀ")).iter("msubsup")
    assert ["".join(part.itertext()) for part in power] == ["W", "k", "T"]
    assert typeset("W_k^T") == typeset("W_kᵀ") == typeset("Wₖᵀ")


@pytest.mark.parametrize(
    ("text", "tag", "parts"),
    [
        ("x²", "msup", ["x", "2"]),
        ("μ_k", "msub", ["μ", "k"]),
        ("10⁻⁴", "msup", ["10", "−4"]),
        ("p_data(x)", "msub", ["p", "data"]),
        ("b_{t−1}", "msub", ["b", "t−1"]),
        ("e^(−‖z‖)", "msup", ["e", "−‖z‖"]),
        ("∫e^{κ cos}", "msup", ["e", "κcos"]),
        ("‖W‖²_F", "msubsup", ["‖", "F", "2"]),
        ("x̂", "mover", ["x", "^"]),
        ("ẑ", "mover", ["z", "^"]),
    ],
)
def test_parts(text: str, tag: str, parts: list[str]) -> None:
    (element,) = elements(typeset(text)).iter(tag)
    assert ["".join(part.itertext()) for part in element] == parts


def test_words_stay_text() -> None:
    sentence = elements(typeset("as in k-means, a step of `x` (half), 3-D"))
    assert [math.findtext("mi") for math in sentence.iter("math")] == ["x"]
    assert "".join(sentence.itertext()) == "as in k-means, a step of x (half), 3-D"
    assert typeset("a = b").startswith("<math>")
    assert typeset("(Ulyanov et al. 2018), 001's") == "(Ulyanov et al. 2018), 001&#x27;s"


def test_a_name_with_an_underscore_is_no_script() -> None:
    assert "msub" not in typeset("exp(log_stddev)") and "log_stddev" in typeset("exp(log_stddev)")


def test_brackets_are_escaped() -> None:
    assert "".join(elements(typeset("x < y & z")).itertext()) == "x < y & z"


def test_statements_of_the_ledger_keep_their_characters() -> None:
    for text in STATEMENTS:
        shown = elements(typeset(text))
        kept = "".join(shown.itertext())
        assert "^" not in re.sub(r"<mover>.*?</mover>", "", typeset(text)), text
        assert [c for c in kept if c.isascii() and c.isalpha()] == letters(text)
        for element in shown.iter():
            wanted = {"msub": 2, "msup": 2, "mover": 2, "msubsup": 3}.get(element.tag, len(element))
            assert len(element) == wanted, text


def letters(text: str) -> list[str]:
    """ASCII letters in the order in which they are shown, without accents."""
    plain = unicodedata.normalize("NFD", text.replace("ᵀ", "T").replace("ᵏ", "k").replace("ⁿ", "n"))
    return [c for c in plain if c.isascii() and c.isalpha()]


def test_columns_need_an_environment_that_has_them() -> None:
    table = elements(mathml(r"\begin{array}{rl} a : & b \\ c : & d \end{array}"))
    assert len(list(table.iter("{http://www.w3.org/1998/Math/MathML}mtd"))) == 4
    with pytest.raises(ValueError, match="array or cases"):
        mathml(r"\begin{aligned} a : & b \\ c : & d \end{aligned}")
