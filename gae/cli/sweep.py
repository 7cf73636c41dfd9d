"""``gae sweep``: a grid of trainings, and the table of their results."""

from pathlib import Path
from types import NoneType
from typing import Annotated, Any

import typer

from gae.cli.common import UNEQUAL, AsJson, Devices, Nodes, Resume, load
from gae.cli.config import read_yaml, refuse_unknown
from gae.cli.terminal import command_line, console, echo_json, reported, table

PREPARATION: dict[str, tuple[type, ...]] = {  # options of `gae fit` that prepare data, and kinds of values
    "binarize": (str,),
    "missing": (str,),
    "labels": (str,),
    "drop": (str, list),
    "standardize": (bool,),
    "size": (str, int),
    "crop": (bool,),
    "channels": (str,),
    "split-by": (str,),
}
KEYS = ("data", "systems", "options", "fit", "seeds", *PREPARATION)


@reported
def sweep(
    grid: Annotated[
        Path,
        typer.Argument(
            metavar="GRID",
            help="A YAML file with the keys data, systems, options, fit and seeds, in which a list of values is an "
            "axis; also, as for `fit`, labels, drop, standardize, missing, size, crop, channels, binarize and "
            "split-by.",
        ),
    ],
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings of each combination, with seeds from 0 on; 1 by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="runs/sweep-GRID")] = None,
    resume: Resume = False,
    devices: Devices = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> Path | None:
    """Train systems with every combination of options and seeds; write the results as CSV, LaTeX and one page.

    Several processes share the trainings, which run on the CPU.

    A file for a grid of 2 × 2 × 5 trainings:

    data: digits

    systems: [vae, iwae]

    options: {latent: [2, 8]}

    fit: {epochs: 20, lr: 0.003}

    seeds: 5
    """
    from gae.training import launch

    command = command_line(sweep, locals())
    content = _content(grid)
    fabric = launch("cpu", devices=devices, nodes=nodes, timeout=UNEQUAL)
    data = [load(str(name), **_preparation(content)) for name in _list(content["data"])]
    from gae.reports import sweep as report
    from gae.studies.sweep import NO_PANDAS
    from gae.studies.sweep import sweep as run

    folder = out or Path("runs") / f"sweep-{grid.stem}"
    results = run(
        data,
        folder,
        systems=content["systems"],
        options=content.get("options") or {},
        training={key.replace("-", "_"): value for key, value in (content.get("fit") or {}).items()},
        seeds=content.get("seeds", 1) if seeds is None else seeds,
        resume=resume,
        command=command,
        fabric=fabric,
    )
    if not fabric.is_global_zero:
        return None
    if as_json:
        echo_json(results)
        return folder
    titles = [f"{column.title}\n{column.unit}" for column in report.shown_columns(results)]
    shown = table(*results["axes"], "trainings", *titles)
    for line in report.table(results):
        shown.add_row(*(cell.text for cell in line))
    console().print(shown)
    for row in (row for row in results["rows"] if row["error"] is not None):
        typer.echo(f"{report.label(results, row)}, seed {row['seed']} failed: {row['error']}")
    if not (folder / "summary.tex").exists():
        typer.echo(NO_PANDAS)
    typer.echo(f"Report: {folder / 'report.html'}")
    return folder


def _content(path: Path) -> dict[str, Any]:
    """The grid in a file, checked for its keys and their kinds."""
    content = read_yaml(path)
    refuse_unknown(content, KEYS, str(path))
    for key in ("data", "systems"):
        if not content.get(key):
            raise ValueError(f"{path} has no {key}. A grid needs data and systems, as in data: digits, systems: vae.")
    systems = content["systems"]
    own = list(systems.values()) if isinstance(systems, dict) else []
    for key, value in [
        ("options", content.get("options")),
        ("fit", content.get("fit")),
        *(("systems", v) for v in own),
    ]:
        if not isinstance(value or {}, dict):
            raise ValueError(f"{key} in {path} must be lines NAME: VALUE, got {value!r}.")
    for key, kinds in PREPARATION.items():
        if not isinstance(content.get(key), (*kinds, NoneType)):
            raise ValueError(f"{key} in {path} must be as on the command line of `gae fit`, got {content[key]!r}.")
    if not all(isinstance(name, str) for name in (systems if isinstance(systems, dict) else _list(systems))):
        raise ValueError(f"systems in {path} must be names, or lines NAME: {{OPTION: VALUE}}, got {systems!r}.")
    return content


def _preparation(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``load`` in a grid."""
    given = {key: content[key] for key in PREPARATION if content.get(key) is not None}
    size, drop = given.pop("size", None), given.pop("drop", [])
    return {
        "binarize": given.pop("binarize", "none"),
        "split": given.pop("split-by", None),
        "size": None if size is None else str(size),
        "drop": [str(name) for name in _list(drop)],
        **given,
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
