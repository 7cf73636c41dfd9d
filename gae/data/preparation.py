"""Data preparation of a model: stored in its checkpoints, and required of all data that it is given later."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Size

from gae.data.columns import TableSchema
from gae.data.resizing import Resize
from gae.data.text import Vocabulary

BINARIZATIONS = ("none", "threshold", "dynamic")
NARROW = 0.1  # of the value range: data that span less are probably in other units


@dataclass(frozen=True)
class Preparation:
    """Everything about a model's training data that other data must share, or that must be done to them too.

    Attributes:
        event_shape: X, the shape of one observation.
        value_range: (lowest, highest) value of the data; None if an old checkpoint does not record it.
        binarization: ``"none"``, ``"threshold"`` or ``"dynamic"``; None if an old checkpoint does not record it.
        vocabulary: vocabulary of text, else None.
        missing: whether the model takes NaN as an element that was not observed.
        table: columns and categories of a table, else None.
        classes: names of the labels 0, 1, …, if they are names.
        resize: common size of images of a folder, if they were resized.
        standardize: whether the model standardises each column.
        split: rule by which their test set was chosen, which other data follow too unless they have their own.
        channels: channel axis of the training data, if it was stated; that of other data too where ``event_shape`` fits
            both.
    """

    event_shape: Size
    value_range: tuple[float, float] | None
    binarization: str | None
    vocabulary: Vocabulary | None
    missing: bool = False
    table: TableSchema | None = None
    classes: tuple[str, ...] | None = None
    resize: Resize | None = None
    standardize: bool = False
    split: str | None = None
    channels: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Preparation":
        """Creates a preparation from a checkpoint's record; records of earlier versions are incomplete."""
        value_range = tuple(record["value_range"]) if "value_range" in record else None
        binarization = record.get("binarization", record.get("comparison", {}).get("binarize"))
        stored = record.get("vocabulary")
        vocabulary = None if stored is None else Vocabulary(tuple(stored["tokens"]), stored["words"])
        table = TableSchema.of(record["table"]) if "table" in record else None
        classes = tuple(record["classes"]) if "classes" in record else None
        resize = Resize(tuple(record["resize"]["size"]), record["resize"]["crop"]) if "resize" in record else None
        own = record.get("missing", False), table, classes, resize, record.get("standardize", False)
        rest = record.get("split"), record.get("channels")
        return cls(Size(record["event_shape"]), value_range, binarization, vocabulary, *own, *rest)

    def note(self) -> dict[str, Any]:
        """A JSON-serialisable record, from which ``of`` restores the preparation.

        >>> prepared = Preparation(Size((2,)), (0.0, 3.0), "none", Vocabulary(("a", "b")))
        >>> Preparation.of(prepared.note()) == prepared
        True
        """
        given = {
            "table": None if self.table is None else asdict(self.table),
            "classes": self.classes,
            "resize": None if self.resize is None else asdict(self.resize),
            "standardize": self.standardize or None,
            "channels": self.channels,
        }
        return {
            "event_shape": tuple(self.event_shape),
            "value_range": self.value_range,
            "binarization": self.binarization,
            "vocabulary": None if self.vocabulary is None else asdict(self.vocabulary),
            "missing": self.missing,
            "split": self.split,
            **{name: value for name, value in given.items() if value is not None},
        }

    def options(self) -> list[str]:
        """The options of ``gae fit`` and ``gae compare`` that prepare a table, a folder or an array likewise.

        >>> Preparation(Size((2,)), None, "none", None, table=TableSchema((), "kind", ("id",))).options()
        ['--labels', 'kind', '--drop', 'id']
        """
        table, resize = self.table or TableSchema(()), self.resize
        given: list[str] = [] if table.label is None else ["--labels", table.label]
        for column in table.dropped:
            given += ["--drop", column]
        given += ["--standardize"] if self.standardize else []
        if resize is not None:
            given += ["--size", "x".join(map(str, resize.size)), *(["--crop"] if resize.crop else [])]
        given += [] if self.channels is None else ["--channels", self.channels]
        return given + (["--missing", "mask"] if self.missing else [])

    def binarize(self, requested: str | None) -> str:
        """The binarisation of new data, which must be that of the model.

        Raises:
            ValueError: if another one is requested.
        """
        if self.binarization is None:
            warnings.warn(
                f"The binarization of the model's data is unknown; assuming {requested or 'none'!r}.", stacklevel=3
            )
            return requested or "none"
        if requested not in (None, self.binarization):
            raise ValueError(
                f"The model was trained with binarization {self.binarization!r}, got {requested!r}. Omit the option."
            )
        return self.binarization

    def accepts_missing(self, requested: str | None) -> bool:
        """Whether NaN in new data marks elements that were not observed.

        Raises:
            ValueError: if that is requested, and the model was trained on complete observations.
        """
        if requested == "mask" and not self.missing:
            raise ValueError(
                "The model was trained on complete observations, got missing='mask'. Remove or impute missing values, "
                "or train a model with missing='mask'."
            )
        return self.missing and requested != "refuse"

    def check_source(self, name: str, text: bool) -> None:
        """Checks that a model with a vocabulary is given text, and any other model other data.

        Raises:
            ValueError: if they do not match.
        """
        if text and self.vocabulary is None:
            raise ValueError(
                f"{name} is text, but the model has no vocabulary: it was trained on other data, or by an earlier "
                "version. Train it again on text."
            )
        if not text and self.vocabulary is not None:
            raise ValueError(f"The model was trained on text, but {name} is not text. Give a .txt file.")

    def check(self, name: str, event_shape: Size, value_range: tuple[float, float]) -> None:
        """Checks the shape and range of new observations; warns of another range unless the model's is [0, 1].

        Raises:
            ValueError: for another shape, or for values outside [0, 1] if that is the model's range.
        """
        if event_shape != self.event_shape:
            raise ValueError(
                f"The model takes observations of shape {tuple(self.event_shape)}, but those of {name} have shape "
                f"{tuple(event_shape)}. Reshape the data, or train a model on data of this shape."
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
