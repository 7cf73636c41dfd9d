"""How the data of a model were prepared: noted in its checkpoints, and asked of all data that it is given later."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Size

from gae.data.text import Vocabulary

BINARIZATIONS = ("none", "threshold", "dynamic")
NARROW = 0.1  # of the width of a value range: data that span less are probably in other units


@dataclass(frozen=True)
class Preparation:
    """The facts on which the meaning of a model's numbers rests.

    Attributes:
        event_shape: X, the shape of one observation.
        value_range: (lowest, highest) value of its data; None where an old checkpoint does not tell.
        binarization: ``"none"``, ``"threshold"`` or ``"dynamic"``; None where an old checkpoint does not tell.
        vocabulary: of text, else None.
    """

    event_shape: Size
    value_range: tuple[float, float] | None
    binarization: str | None
    vocabulary: Vocabulary | None

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> "Preparation":
        """From the facts that a checkpoint notes; those of earlier versions lack some."""
        value_range = tuple(noted["value_range"]) if "value_range" in noted else None
        binarization = noted.get("binarization", noted.get("comparison", {}).get("binarize"))
        stored = noted.get("vocabulary")
        vocabulary = None if stored is None else Vocabulary(tuple(stored["tokens"]), stored["words"])
        return cls(Size(noted["event_shape"]), value_range, binarization, vocabulary)

    def note(self) -> dict[str, Any]:
        """JSON-able facts, from which ``of`` makes the same again.

        >>> prepared = Preparation(Size((2,)), (0.0, 3.0), "none", Vocabulary(("a", "b")))
        >>> Preparation.of(prepared.note()) == prepared
        True
        """
        return {
            "event_shape": tuple(self.event_shape),
            "value_range": self.value_range,
            "binarization": self.binarization,
            "vocabulary": None if self.vocabulary is None else asdict(self.vocabulary),
        }

    def binarize(self, asked: str | None) -> str:
        """The binarisation of new data: the model's own.

        Raises:
            ValueError: another one is asked for.
        """
        if self.binarization is None:
            warnings.warn(
                f"The model does not say how its data were binarised. Taken as {asked or 'none'!r}.", stacklevel=3
            )
            return asked or "none"
        if asked not in (None, self.binarization):
            raise ValueError(
                f"The model was trained with binarization {self.binarization!r}, got {asked!r}. Leave the option out."
            )
        return self.binarization

    def check_source(self, name: str, text: bool) -> None:
        """Refuses text for a model without a vocabulary, and other data for one with a vocabulary.

        Raises:
            ValueError: the one or the other.
        """
        if text and self.vocabulary is None:
            raise ValueError(
                f"{name} is text, but the model notes no vocabulary: it was trained on other data, or by an earlier "
                "version. Train it again on text, so that its classes keep their meaning."
            )
        if not text and self.vocabulary is not None:
            raise ValueError(f"The model was trained on text, but {name} is none. Give a .txt file.")

    def check(self, name: str, event_shape: Size, value_range: tuple[float, float]) -> None:
        """Refuses observations of another shape, or of another range where the model's is [0, 1]; else warns of it.

        Raises:
            ValueError: the one or the other.
        """
        if event_shape != self.event_shape:
            raise ValueError(
                f"The model takes observations of shape {tuple(self.event_shape)}, but those of {name} have shape "
                f"{tuple(event_shape)}."
            )
        if self.vocabulary is not None or self.value_range is None:
            return
        (low, high), (least, most) = self.value_range, value_range
        inside = low <= least and most <= high
        if inside and most - least >= NARROW * (high - low):
            return
        ranges = f"The model was trained on values in [{low:g}, {high:g}], but those of {name} are in [{least:g}, "
        if (low, high) == (0, 1) and not inside:
            raise ValueError(f"{ranges}{most:g}]. Rescale them as the training data were, such as by `x / x.max()`.")
        warnings.warn(f"{ranges}{most:g}]. Are they in the same units?", stacklevel=3)
