"""The gaps as a picture and as one HTML page: mean bars, and the ladder of bounds of every observation."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gae.analysis.metrics import mean_and_error
from gae.data.files import whole, write_text
from gae.reports.figures import INK, LINES, STYLE

if TYPE_CHECKING:
    from torch import Tensor

ASIDE = ("sampling s.e.", "converged", "q* below", "effective sample size", "unreliable")


def rows(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, mean, standard error over observations and mean sampling error of every quantity in nats."""
    found = []
    for name, entry in results.items():
        if not name.startswith(ASIDE):
            sampling = results.get(f"sampling s.e. of {name}")
            found.append((name, _nats(entry["mean"]), _nats(entry["se"]), _nats(sampling and sampling["mean"])))
    return found


def converged(results: dict[str, Any]) -> dict[str, float]:
    """The share of local optimisations of each family that met their tolerance."""
    prefix = "converged, "
    return {name.removeprefix(prefix): entry["mean"] for name, entry in results.items() if name.startswith(prefix)}


def write(columns: "dict[str, Tensor]", account: dict[str, Any], folder: Path) -> None:
    """Writes gap.png and gap.html, which needs nothing beside itself."""
    from gae.reports.comparison import environment

    ladder(columns, folder / "gap.png")
    image = base64.b64encode((folder / "gap.png").read_bytes()).decode()
    results = account["results"]
    page = environment().get_template("gap.html")
    text = page.render(account=account, rows=rows(results), converged=converged(results), image=image)
    write_text(folder / "gap.html", text)


def ladder(columns: "dict[str, Tensor]", path: Path) -> None:
    """Writes a PNG: mean gaps ± standard error, and each observation's bounds relative to its log p(x)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        gaps = [name for name in columns if "gap" in name]
        for i, name in enumerate(gaps):
            found = mean_and_error(columns[name])
            left.bar(i, found["mean"], yerr=found["se"], color=LINES[i % len(LINES)], capsize=4, width=0.6)
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
        with whole(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".replace("-", "−")
