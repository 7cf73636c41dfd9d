"""Text as sequences of classes: each line of a file is one sequence, with an end token and padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num
from torch import Tensor

from gae.data.memory import need_room

PADDING, END = 0, 1  # classes of every vocabulary; the tokens follow
LONGEST = 512  # tokens per line, including the end
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
IN_LINES = 24  # bytes of memory per byte of text as Python strings, if all lines are short


@dataclass(frozen=True)
class Vocabulary:
    """Map between tokens and classes: 0 is padding, 1 the end of a sequence, i + 2 the i-th token.

    Attributes:
        tokens: characters or words.
        words: whether the tokens are words, which are joined by spaces.

    >>> names = Vocabulary.of(["ada", "alan"])
    >>> names.classes, names.encode(["ada"], steps=5)
    (6, array([[2, 3, 2, 1, 0]]))
    """

    tokens: tuple[str, ...]
    words: bool = False

    @classmethod
    def of(cls, lines: Sequence[str], words: bool = False) -> "Vocabulary":
        """The vocabulary of all tokens in some lines, sorted."""
        return cls(tuple(sorted({token for line in lines for token in _tokens(line, words)})), words)

    @property
    def classes(self) -> int:
        """C, including padding and end."""
        return len(self.tokens) + 2

    def encode(self, lines: Sequence[str], steps: int, numbers: Sequence[int] | None = None) -> np.ndarray:
        """Encodes lines as classes (N, steps): the tokens, the end, padding.

        Args:
            lines: lines of text.
            steps: T, the length of an encoded line, including its end.
            numbers: line numbers in error messages; 1, 2, … by default.

        Raises:
            ValueError: for a token outside the vocabulary, or a line that is too long.
        """
        classes = {token: i + 2 for i, token in enumerate(self.tokens)}
        encoded = np.full((len(lines), steps), PADDING)
        for row, line in enumerate(lines):
            tokens = _tokens(line, self.words)
            name = f"line {row + 1 if numbers is None else numbers[row]} ({_short(line)})"
            if len(tokens) + 1 > steps:
                raise ValueError(f"{name} has {len(tokens)} tokens and an end, which do not fit into {steps} steps.")
            unknown = next((t for t, token in enumerate(tokens) if token not in classes), None)
            if unknown is not None:
                token, kind = tokens[unknown], "word" if self.words else "column"
                code = "" if self.words else f" (U+{ord(token):04X})"
                raise ValueError(f"{name} has {token!r}{code} at {kind} {unknown + 1}, which is not in the vocabulary.")
            encoded[row, : len(tokens) + 1] = [*(classes[token] for token in tokens), END]
        return encoded

    def decode(self, x: Num[Tensor, "N T"]) -> list[str]:
        """Decodes sequences to text, up to the end or the padding; � for a class without a token.

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


class Text(NamedTuple):
    """Lines as classes (N, T), their vocabulary, and the line numbers in the file, from 0."""

    classes: np.ndarray
    vocabulary: Vocabulary
    rows: np.ndarray


def read_text(path: Path, words: bool = False, vocabulary: Vocabulary | None = None, steps: int | None = None) -> Text:
    """Reads the lines of a UTF-8 file as classes; blank lines are skipped.

    Args:
        path: the file.
        words: whether tokens are words; a given vocabulary overrides it.
        vocabulary: defaults to all tokens of the file.
        steps: T, to which lines are padded; defaults to the number of tokens of the longest line plus one.

    Raises:
        ValueError: if the file is not UTF-8 text, is empty, has a line of more than 511 tokens, or needs more than
            ``gae.data.memory.limit()`` bytes. With a vocabulary or steps, also for a token or a line that does not
            fit; the message names its place.
    """
    need_room(IN_LINES * path.stat().st_size, path, f"{path.stat().st_size:,} bytes of text")
    words = words if vocabulary is None else vocabulary.words
    numbers, lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} holds no text: it is empty, or all of its lines are blank. Give a file with text.")
    lengths = [len(_tokens(line, words)) for line in lines]
    longest = int(np.argmax(lengths))
    most = LONGEST if steps is None else steps
    if lengths[longest] + 1 > most:
        kind = "words" if words else "characters"
        why = "all lines are padded to the longest" if steps is None else "the model has no more steps"
        raise ValueError(
            f"{path} has a line of {lengths[longest]} {kind}, line {numbers[longest]} ({_short(lines[longest])}). At "
            f"most {most - 1} are read, because {why}. Split or shorten such lines."
        )
    steps = lengths[longest] + 1 if steps is None else steps
    need_room(8 * steps * len(lines), path, f"{len(lines):,} lines, padded to {steps} steps")
    vocabulary = Vocabulary.of(lines, words) if vocabulary is None else vocabulary
    try:
        return Text(vocabulary.encode(lines, steps, numbers), vocabulary, np.array(numbers) - 1)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def _lines(path: Path) -> tuple[list[int], list[str]]:
    """Line numbers, from 1, and text of the lines that are not blank."""
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
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return [number for number, _ in kept], [line for _, line in kept]


def _short(line: str) -> str:
    return repr(line if len(line) <= 20 else line[:20] + "…")


def _tokens(line: str, words: bool) -> Sequence[str]:
    return line.split() if words else line
