"""Inference gaps as a figure and a self-contained HTML page: mean gaps, and the bounds of every observation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gae.analysis.metrics import mean_and_error
from gae.reports.figures import INK, LINES, canvas, save, style
from gae.reports.pages import embed, write_page

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ("sampling s.e.", "converged", "q* below", "effective sample size", "unreliable", "Pareto")


def rows(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, mean, standard error over observations and mean sampling error of every quantity in nats."""
    lines = []
    for name, entry in results.items():
        if not name.startswith(ASIDE):
            sampling = results.get(f"sampling s.e. of {name}")
            lines.append((name, _nats(entry["mean"]), _nats(entry["se"]), _nats(sampling and sampling["mean"])))
    return lines


def converged(results: dict[str, Any]) -> dict[str, float]:
    """Share of converged local optimisations, by family."""
    prefix = "converged, "
    return {name.removeprefix(prefix): entry["mean"] for name, entry in results.items() if name.startswith(prefix)}


def write(columns: "dict[str, Tensor]", account: dict[str, Any], folder: Path) -> None:
    """Writes gap.png and a self-contained gap.html."""
    image, results = embed(ladder(columns, folder / "gap.png")), account["results"]
    facts = {"account": account, "rows": rows(results), "converged": converged(results), "image": image}
    facts |= {"answer": account["answer"], "worst": account["worst"]}
    write_page(folder / "gap.html", "gap.html", **facts)


def ladder(columns: "dict[str, Tensor]", path: Path) -> bytes:
    """Writes and returns a PNG of the mean gaps ± standard error and each observation's bounds relative to log p(x)."""
    with style():
        figure = canvas(9.6, 4.0)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        gaps = [name for name in columns if "gap" in name]
        for i, name in enumerate(gaps):
            entry = mean_and_error(columns[name])
            left.bar(i, entry["mean"], yerr=entry["se"], color=LINES[i % len(LINES)], capsize=4, width=0.6)
        left.set_xticks(range(len(gaps)), [name.replace(", ", "\n").replace(" gap", "\ngap") for name in gaps])
        left.tick_params(axis="x", labelsize=8)
        left.set_axisbelow(True)
        left.set(ylabel="nats per observation", title="mean ± standard error")
        total = columns.get("inference gap", columns[gaps[-1]])
        order = total.argsort()
        bounds = [name for name in columns if name.startswith("L[")]
        for i, name in enumerate(bounds):
            below = columns[name][order] - columns["log p(x)"][order]
            right.plot(below.cpu(), ".", color=LINES[i % len(LINES)], ms=4, label=name)
        right.axhline(0, color=INK, lw=1, label="log p(x)")
        right.set(xlabel="observations, ordered", ylabel="bound − log p(x)   (nats)", title="every observation")
        right.legend(fontsize=8)
        return save(figure, path)


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".replace("-", "−")
