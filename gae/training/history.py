"""Records of a training run: history and metrics.csv."""

import csv
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gae.data.files import whole
from gae.display import LINES, axes_for, html_table, legend, whole_ticks
from gae.evidence.usage import CodeUsage
from gae.training.scale import CodeScale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = "metrics.csv"


@dataclass(frozen=True)
class Epoch:
    """Losses and duration of one epoch, counted from 1. Losses are in nats per sample, averaged over samples.

    ``train_loss`` is computed on each batch before its update, so while parameters change; ``validation_loss`` after
    the epoch. ``seconds`` is the only entry that differs between two runs with the same seed.
    """

    epoch: int
    train_loss: float
    validation_loss: float | None
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """The losses and the duration that exist, by name, for loggers."""
        return {name: value for name, value in asdict(self).items() if name != "epoch" and value is not None}

    @property
    def loss(self) -> float:
        """The validation loss, or the training loss without validation data."""
        return self.train_loss if self.validation_loss is None else self.validation_loss


@dataclass
class History:
    """The epochs of a run, whether it stopped before the requested number of epochs, and the use of its code.

    ``usage`` is measured on some of the training data; None without a density q(z|x) or a proper prior.

    ``code_scale`` is E‖z‖² of the codes of some training observations at the end, beside its expectation under the
    prior; None if that is unknown.

    >>> History([Epoch(1, 3.0, 4.0, 0.1), Epoch(2, 2.0, 3.5, 0.1), Epoch(3, 1.0, 3.7, 0.1)]).best_epoch
    2
    """

    rows: list[Epoch] = field(default_factory=list)
    stopped_early: bool = False
    usage: CodeUsage | None = field(default=None, compare=False)  # not stored: it follows from the parameters
    code_scale: CodeScale | None = None

    def summary(self) -> str:
        """Number of epochs, last loss, and active units, as one line.

        >>> History([Epoch(1, 3.0, None, 0.1)]).summary()
        '1 epochs, loss 3 nats'
        """
        text = f"{len(self.rows)} epochs" + (f", loss {self.rows[-1].loss:.4g} nats" if self.rows else "")
        return text if self.usage is None else f"{text}; {self.usage.summary()}"

    @property
    def best_epoch(self) -> int:
        """The first epoch with the lowest ``loss``; 0 before the first epoch."""
        return min(self.rows, key=lambda row: row.loss).epoch if self.rows else 0

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the losses of every epoch, and marks the best one; on new axes of pyplot by default."""
        ax, epochs = axes_for(ax), [row.epoch for row in self.rows]
        ax.plot(epochs, [row.train_loss for row in self.rows], color=LINES[0], label="training")
        held = [(row.epoch, row.validation_loss) for row in self.rows if row.validation_loss is not None]
        if held:
            ax.plot(*zip(*held, strict=True), color=LINES[1], ls="--", label="validation")
        if self.rows:
            lowest = min(row.loss for row in self.rows)
            ax.plot(self.best_epoch, lowest, "o", color=LINES[bool(held)], label=f"lowest, epoch {self.best_epoch}")
        whole_ticks(ax)
        ax.set(xlabel="epoch", ylabel="loss (nats per sample)")
        legend(ax)
        return ax

    def _repr_html_(self) -> str:
        header = ("epoch", "training loss", "validation loss", "seconds")
        rows = [(row.epoch, row.train_loss, _or_dash(row.validation_loss), row.seconds) for row in reversed(self.rows)]
        return html_table(f"{self.summary()}; the last epoch first", rows, header)

    def state(self) -> dict[str, Any]:
        """The history as a dictionary, for a checkpoint."""
        return {"rows": [asdict(row) for row in self.rows], "stopped_early": self.stopped_early}

    @staticmethod
    def of(state: dict[str, Any]) -> "History":
        """The inverse of ``state``."""
        return History([Epoch(**row) for row in state["rows"]], state["stopped_early"])


def _or_dash(value: float | None) -> float | str:
    return "–" if value is None else value


class Log:
    """Writes a history to ``metrics.csv`` in a run's folder."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / METRICS

    def write(self, history: History) -> None:
        """Atomically replaces the file by the whole history, so that no row is partial or duplicated."""
        with whole(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, [entry.name for entry in fields(Epoch)])
            table.writeheader()
            table.writerows(asdict(row) for row in history.rows)
