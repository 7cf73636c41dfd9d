"""Tables, figures and a self-contained HTML page of a comparison."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error

import numpy as np

from gae.likelihood import HEADS
from gae.reports.figures import draw, save_all
from gae.reports.pages import write_page


@dataclass(frozen=True)
class Column:
    """A column of the table: the format of its numbers, and which of them is the best."""

    key: str
    title: str
    unit: str
    decimals: int
    scale: float = 1.0
    best: Callable[[list[float]], float] | None = None
    within_decoder: bool = False

    def text(self, entry: dict[str, Any]) -> str:
        """Mean ± standard error, or a dash if missing."""
        if entry["mean"] is None:
            return "–"
        mean = f"{self.scale * entry['mean']:,.{self.decimals}f}".replace("-", "−")
        error = entry.get("se")
        return f"{mean} ± {self.scale * error:,.{self.decimals}f}" if error else mean


COLUMNS = (
    Column("joint", "joint log density", "nats", 1, best=max, within_decoder=True),
    Column("elbo", "ELBO", "nats", 1, best=max),
    Column("log_p", "log p̂(x)", "nats", 1, best=max),
    Column("squared_error", "squared error", "×10⁻³ per pixel", 2, 1e3, best=min),
    Column("accuracy", "5-NN accuracy", "%", 1, 1e2, best=max),
    Column("milliseconds", "time", "ms per sample", 3),
    Column("evaluations", "decoder evaluations", "per sample", 0),
)


@dataclass(frozen=True)
class TableCell:
    """A cell of the table as text: the number, a second line in small print, a footnote mark, best or not."""

    text: str
    detail: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    label: str
    cells: list[TableCell]


@dataclass(frozen=True)
class Table:
    """Rows grouped under headings, and the footnotes that explain missing numbers."""

    groups: list[tuple[str, list[Row]]]
    notes: dict[str, str]


def table(results: dict[str, Any]) -> Table:
    """Table of a comparison, grouped by decoder, baselines last."""
    notes: dict[str, str] = {}
    best = set(_best(results))
    groups = []
    for heading, label, cells in _groups(results):
        rows = [
            Row(cell[label], [format_cell(cell, column, (id(cell), column.key) in best, notes) for column in COLUMNS])
            for cell in cells
        ]
        groups.append((heading, rows))
    return Table(groups, {mark: reason for reason, mark in notes.items()})


def _groups(results: dict[str, Any]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    for name, decoder in results["decoders"].items():
        cells = [cell for cell in results["cells"] if cell["decoder"] == name]
        yield f"Decoder trained by {name}; {decoder['encoder']}", "engine", cells
    yield (
        _baselines(results["configuration"]),
        "decoder",
        results["baselines"],
    )


def _baselines(configuration: dict[str, Any]) -> str:
    return (
        f"Baselines; codes of the same width ({configuration['latent']}): k-means with as many points as a one-hot "
        f"code, LLGAE with one of {configuration['components']} charts in addition"
    )


def format_cell(cell: dict[str, Any], column: Column, best: bool, notes: dict[str, str]) -> TableCell:
    """Formats a number of a cell; the reason for a missing one gets a footnote mark in ``notes`` (reason: mark)."""
    entry = cell[column.key]
    if entry["mean"] is None:
        mark = notes.setdefault(entry["reason"], chr(ord("a") + len(notes)))
        return TableCell("–", note=mark)
    detail = ""
    if "method" in entry:
        sampled = entry["method"] != "exact"
        detail = f"s.e. {entry['sampling_se']:.2f}, ESS {entry['ess']:.0f}" if sampled else "exact"
        if entry.get("unreliable"):
            detail += f", unreliable for {entry['unreliable']:.0%}"
    return TableCell(column.text(entry), detail, best=best)


def is_mass(results: dict[str, Any]) -> bool:
    """Whether the decoders define probability masses, whose nats are not comparable with those of densities."""
    return HEADS[results["configuration"]["head"]].support.is_discrete


def _best(results: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Yields (id of the cell, key of the column) of the best numbers among comparable ones."""
    mass = is_mass(results)
    for column in COLUMNS:
        if column.best is None:
            continue
        nats = column.unit == "nats"
        everyone = results["cells"] + ([] if nats and (mass or column.within_decoder) else results["baselines"])
        names = results["decoders"] if column.within_decoder else [None]
        for name in names:
            rivals = [c for c in everyone if name in (None, c["decoder"]) and c[column.key]["mean"] is not None]
            if rivals:
                value = column.best([c[column.key]["mean"] for c in rivals])
                yield from ((id(c), column.key) for c in rivals if c[column.key]["mean"] == value)


def leading(results: dict[str, Any]) -> str:
    """The training whose decoder leads the report: amortised if it was asked for, else the first."""
    names = results["configuration"]["engines"]
    return "amortised" if "amortised" in names else names[0]


def highlights(results: dict[str, Any]) -> list[str]:
    """Main results in sentences with units; sound comparisons only."""
    cells = {(cell["decoder"], cell["engine"]): cell for cell in results["cells"]}
    return [sentence for part in (_models, _encoders, _training, _costs) for sentence in part(results, cells)]


Cells = dict[tuple[str, str], dict[str, Any]]


def _models(results: dict[str, Any], cells: Cells) -> Iterator[str]:
    """Sentences on the best cells; among ties, the engine that trained the decoder wins."""

    def best(key: str, sign: float) -> dict[str, Any] | None:
        known = [cell for cell in cells.values() if cell[key]["mean"] is not None]
        rank = [(sign * cell[key]["mean"], cell["engine"] != cell["decoder"], i) for i, cell in enumerate(known)]
        return known[min(rank)[2]] if known else None

    if cell := best("log_p", -1.0):
        yield (
            f"Highest estimated log p(x): {_nats(cell['log_p']['mean'])} nats per test sample, by the decoder trained "
            f"by {cell['decoder']} (from the codes of {cell['engine']})."
        )
    if cell := best("squared_error", 1.0):
        floor, baseline = min((c["squared_error"]["mean"], c["decoder"]) for c in results["baselines"])
        yield (
            f"Lowest squared error per pixel: {1e3 * cell['squared_error']['mean']:.2f} × 10⁻³, by {cell['engine']} on "
            f"the decoder trained by {cell['decoder']}; the best baseline, {baseline}, has {1e3 * floor:.2f} × 10⁻³."
        )


def _encoders(results: dict[str, Any], cells: Cells) -> Iterator[str]:
    gains = []
    for name in results["decoders"]:
        alone, refined = cells.get((name, "amortised")), cells.get((name, "semi-amortised"))
        if alone and refined and None not in (alone["elbo"]["mean"], refined["elbo"]["mean"]):
            gain = _nats(refined["elbo"]["mean"] - alone["elbo"]["mean"], sign=True)
            gains.append(f"{gain} nats on the decoder trained by {name}")
    if gains:
        yield f"Refining the encoder's density by ascent changes the ELBO by {', '.join(gains)}."


def _training(results: dict[str, Any], cells: Cells) -> Iterator[str]:
    unrolled, detached = cells.get(("unrolled", "unrolled")), cells.get(("detached", "detached"))
    if unrolled and detached:
        values = [1e3 * cell["squared_error"]["mean"] for cell in (unrolled, detached)]
        yield (
            f"Differentiating through the ascent while training gives a squared error of {values[0]:.2f} × 10⁻³ per "
            f"pixel, treating its codes as constants {values[1]:.2f} × 10⁻³, at equal epochs and steps."
        )


def _costs(results: dict[str, Any], cells: Cells) -> Iterator[str]:
    times = {cell["engine"]: cell["milliseconds"]["mean"] for cell in results["cells"]}
    slowest, fastest = max(times, key=lambda name: times[name]), min(times, key=lambda name: times[name])
    if slowest != fastest:
        yield (
            f"One code takes {times[fastest]:.3f} ms by {fastest} and {times[slowest]:.3f} ms by {slowest} on the "
            "machine named above."
        )


def _nats(value: float, sign: bool = False) -> str:
    return format(value, "+.1f" if sign else ".1f").replace("-", "−")


def command(configuration: dict[str, Any]) -> str:
    """Command that reproduces these results."""
    parts = ["gae compare", shlex.quote(configuration["data"]), "--engines", ",".join(configuration["engines"])]
    for option in ("epochs", "latent", "head", "seed"):
        parts += [f"--{option}", str(configuration[option])]
    parts += [] if configuration["binarize"] == "none" else ["--binarize", configuration["binarize"]]
    return " ".join(parts + (["--quick"] if configuration["quick"] else []))


def write(out: Path) -> Path:
    """Writes the figures and the report of the comparison in ``out``: ``out/figures/*.png`` and ``out/report.html``.

    Reads only ``out/results.json`` and ``out/pictures.npz``, so a report can be rewritten at any time.
    """
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figures = draw(results, load_arrays(out / "pictures.npz", "Delete it"))
    page, own = out / "report.html", [cell for cell in results["cells"] if cell["engine"] == cell["decoder"]]
    write_page(
        page,
        "report.html",
        results=results,
        columns=COLUMNS,
        table=table(results),
        highlights=highlights(results),
        command=command(results["configuration"]),
        statuses={cell["engine"]: cell["status"] for cell in own},
        mass=is_mass(results),
        figures=figures,
        images=save_all(figures, out / "figures"),
    )
    return page


def load_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of a picture file; raises ValueError with a remedy if it is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, KeyError, EOFError, NotImplementedError, BadZipFile, error) as reason:
        raise ValueError(f"{path} is damaged ({reason}). {remedy}, and resume with the same options.") from None
