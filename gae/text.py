"""Text as sequences of classes: one line of a file is one sequence, ended by a token of its own, then padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num
from torch import Tensor

PADDING, END = 0, 1  # the classes that every vocabulary has; the tokens follow
LONGEST = 512  # tokens of a line, its end included
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Vocabulary:
    """Which class stands for which token: 0 is padding, 1 the end of a sequence, i + 2 the i-th token.

    Attributes:
        tokens: characters, or words.
        words: whether they are words; these are joined by blanks.

    >>> names = Vocabulary.of(["ada", "alan"])
    >>> names.classes, names.encode(["ada"], steps=5)
    (6, array([[2, 3, 2, 1, 0]]))
    """

    tokens: tuple[str, ...]
    words: bool = False

    @classmethod
    def of(cls, lines: Sequence[str], words: bool = False) -> "Vocabulary":
        """All tokens of some lines, sorted."""
        return cls(tuple(sorted({token for line in lines for token in _tokens(line, words)})), words)

    @property
    def classes(self) -> int:
        """C, padding and end included."""
        return len(self.tokens) + 2

    def encode(self, lines: Sequence[str], steps: int) -> np.ndarray:
        """Lines as classes (N, steps): the tokens, the end, padding.

        Raises:
            ValueError: for a token that the vocabulary has not, or a line that does not fit with its end.
        """
        classes = {token: i + 2 for i, token in enumerate(self.tokens)}
        found = np.full((len(lines), steps), PADDING)
        for row, line in enumerate(lines):
            tokens = _tokens(line, self.words)
            if len(tokens) + 1 > steps:
                raise ValueError(f"{line!r} has {len(tokens)} tokens and an end, which do not fit into {steps} steps.")
            unknown = [token for token in tokens if token not in classes]
            if unknown:
                raise ValueError(f"{line!r} has the token {unknown[0]!r}, which is not in the vocabulary.")
            found[row, : len(tokens) + 1] = [*(classes[token] for token in tokens), END]
        return found

    def decode(self, x: Num[Tensor, "N T"]) -> list[str]:
        """The text of sequences: what stands before the end or the padding; � for a class without a token.

        >>> import torch
        >>> names = Vocabulary.of(["ada", "alan"])
        >>> names.decode(torch.tensor([[2.0, 3.0, 2.0, 1.0, 0.0]]))
        ['ada']
        """
        return [self._text(row) for row in x.long().tolist()]

    def _text(self, row: Sequence[int]) -> str:
        stop = next((t for t, value in enumerate(row) if value in (PADDING, END)), len(row))
        known = dict(enumerate(self.tokens, 2))
        return (" " if self.words else "").join(known.get(value, UNKNOWN) for value in row[:stop])


def read_text(path: Path, words: bool = False) -> tuple[np.ndarray, Vocabulary]:
    """The lines of a UTF-8 file as classes (N, T), with the vocabulary of all of them; blank lines are left out.

    T is the number of tokens of the longest line, and one for its end.

    Raises:
        ValueError: not UTF-8 text, no text, or a line of more than 511 tokens.
    """
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} holds no text: it is empty, or all of its lines are blank.")
    longest = max(range(len(lines)), key=lambda row: len(_tokens(lines[row], words)))
    steps = len(_tokens(lines[longest], words)) + 1
    if steps > LONGEST:
        kind = "words" if words else "characters"
        raise ValueError(
            f"{path} has a line of {steps - 1} {kind}, which starts with {lines[longest][:20]!r}. At most "
            f"{LONGEST - 1} are read, for every step of the longest line is a step of all. Split such lines."
        )
    vocabulary = Vocabulary.of(lines, words)
    return vocabulary.encode(lines, steps), vocabulary


def _lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8 text: byte 0x{raw[error.start]:02x} in line {line}. Save it as UTF-8, one sequence "
            "per line."
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} is not text: line {text[: text.index(chr(0))].count(chr(10)) + 1} has a NUL.")
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip()]


def _tokens(line: str, words: bool) -> Sequence[str]:
    return line.split() if words else line
