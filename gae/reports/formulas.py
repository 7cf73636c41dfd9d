"""Formulas as MathML: in plain characters, such as ``max_z log q_r(x|z)``, and in LaTeX."""

import re
import unicodedata
from collections.abc import Iterator
from html import escape

from gae.data.extras import optional

NAME = re.compile(r"[A-Za-z]{3,}|KL|JS|EM|tr")  # set upright; other letters that follow each other are a product
FUNCTION = re.compile(r"log|exp|cos|sin|det|tr|(?:arg)?(?:max|min)|KL|ELBO")
ACCENTS = {"\u0302": "^", "\u0303": "~", "\u0304": "¯"}
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᵏⁿ", "0123456789+−Tkn", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₖₙ", "0123456789+−kn", strict=True))
PLAIN = rf"[^\W_{''.join(RAISED)}{''.join(LOWERED)}]"  # a letter or a digit
PROSE = re.compile(rf"\(?{PLAIN}+(?:[-'’.]{PLAIN}+)*\)?")
TOKEN = re.compile(
    rf"(?P<number>\d+(?:,\d{{3}})*(?:\.\d+)?|[½¼∞])"
    rf"|(?P<identifier>[A-Za-z]{{2,}}_[A-Za-z]{{3,}})"
    rf"|(?P<name>{NAME.pattern})"
    rf"|(?P<letter>[^\W\d_{''.join(RAISED)}{''.join(LOWERED)}][{''.join(ACCENTS)}]?)"
    rf"|(?P<raised>[{''.join(RAISED)}]+|\^)"
    rf"|(?P<lowered>[{''.join(LOWERED)}]+|_)"
    rf"|(?P<space>\s+)"
    rf"|(?P<operator>.)"
)
FENCE = ' stretchy="false"'
TIGHT = FENCE + ' lspace="0" rspace="0"'
STYLES = dict.fromkeys("()[]{}", FENCE) | dict.fromkeys("|‖/∂∇", TIGHT)
OPENING = set("([{|‖/=≤≥<>,;:·")  # a sign after one of these belongs to what follows
GROUP = re.compile(r"(?<=[\^_])(?:\([^()]*\)|\{[^{}]*\})")  # a script of several characters, without its brackets
SCRIPT = re.compile(r"[A-Za-z]+|\d+|.[\u0302-\u0304]?")
APPLIED = re.compile("(<mi>(?:log|exp|det|tr)</mi>)")  # space between a named function and its argument


def mathml(latex: str, block: bool = False) -> str:
    r"""A formula of LaTeX, in a line of text or in a line of its own.

    Raises:
        ImportError: without the extra ``notes``.
        ValueError: if columns are written in an environment that has none here, such as ``aligned``.

    >>> mathml(r"\log x").endswith('<mrow><mi>log</mi><mspace width="0.17em"/></mrow><mi>x</mi></mrow></math>')
    True
    """
    convert = optional("latex2mathml.converter", "notes", "A formula").convert
    drawn = convert(latex, display="block" if block else "inline")
    if ">&<" in drawn:
        raise ValueError(f"The columns of a formula need the environment array or cases, got {latex!r}.")
    return APPLIED.sub(r'<mrow>\1<mspace width="0.17em"/></mrow>', drawn)


def typeset(text: str) -> str:
    """HTML of a sentence with formulas. Words stay text and lines may break at spaces; backticks are dropped.

    >>> typeset("every z: x²")
    'every <math><mi>z</mi></math>: <math><msup><mi>x</mi><mrow><mn>2</mn></mrow></msup></math>'
    """
    chunks = list(_chunks(text.replace("`", "")))
    words = [_is_prose(chunk) for chunk in chunks]
    for i, chunk in enumerate(chunks[:-1]):
        words[i] |= chunk == "a" and words[i + 1]  # the article
    return " ".join(escape(c) if word else _math(c) for c, word in zip(chunks, words, strict=True))


def _chunks(text: str) -> Iterator[str]:
    """The parts between spaces, except spaces inside a script."""
    start = 0
    groups = [script.span() for script in GROUP.finditer(text)]
    for space in re.finditer(r"\s+", text):
        if not any(first < space.start() < last for first, last in groups):
            yield text[start : space.start()]
            start = space.end()
    yield text[start:]


def _is_prose(chunk: str) -> bool:
    core = chunk.rstrip(",;:.")
    word = (
        PROSE.fullmatch(core)
        and re.search(r"[^\W\d_]{3}|\b(?:\d{3,}|[a-z]{2})\b|-", core)
        and not FUNCTION.fullmatch(core)
    )
    return not core or bool(word) or core in ("EM", "JS")


def _math(chunk: str) -> str:
    core = chunk.rstrip(",;:")
    alone = len(core) == 1 and not core.isalnum()  # an operator between spaces
    return f"<math>{f'<mo{TIGHT}>{escape(core)}</mo>' if alone else _row(core)}</math>{chunk[len(core) :]}"


def _row(text: str) -> str:
    """The atoms of a formula one after another, each with its scripts."""
    atoms: list[list[str]] = []  # base, lowered, raised
    place, before = 0, ""
    while part := TOKEN.match(text, place):
        kind, token, place = str(part.lastgroup), part[0], part.end()
        if kind not in ("lowered", "raised"):
            sign = token in "+−" and (not before or before in OPENING)
            atoms.append([f'<mo form="prefix">{token}</mo>' if sign else _atom(kind, token), "", ""])
            before = token
            continue
        script = "".join((RAISED | LOWERED).get(character, "") for character in token)
        if not script and (follows := GROUP.match(text, place) or SCRIPT.match(text, place)):
            script, place = follows[0], follows.end()
            script = script[1:-1] if len(script) > 2 and script[0] in "({" else script
        slot = 1 if kind == "lowered" else 2
        if not atoms or atoms[-1][slot]:
            atoms.append(["<mrow></mrow>", "", ""])
        atoms[-1][slot] = f"<mrow>{_row(script)}</mrow>"
    return "".join(_scripted(*atom) for atom in atoms)


def _scripted(base: str, lowered: str, raised: str) -> str:
    tag = {(True, True): "msubsup", (True, False): "msub", (False, True): "msup"}.get((bool(lowered), bool(raised)))
    return f"<{tag}>{base}{lowered}{raised}</{tag}>" if tag else base


def _atom(kind: str, token: str) -> str:
    match kind:
        case "number":
            return f"<mn>{token}</mn>"
        case "identifier" | "name":
            return f'<mi mathvariant="normal">{token}</mi>'
        case "letter":
            letter, accent = (*unicodedata.normalize("NFD", token), "")[:2]
            if accent in ACCENTS:
                return f"<mover><mi>{letter}</mi><mo>{ACCENTS[accent]}</mo></mover>"
            return f'<mi mathvariant="normal">{token}</mi>' if token in "ΣΔΦΛ" else f"<mi>{token}</mi>"
        case "space":
            return '<mspace width="0.25em"/>'
    return f"<mo{STYLES.get(token, '')}>{escape(token)}</mo>"
