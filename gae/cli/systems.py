"""``gae systems``: the table of systems, and the options of one."""

from typing import Annotated

import typer

from gae.cli.common import AsJson
from gae.cli.completion import system_names
from gae.cli.terminal import console, echo_json, plain, print_results, reported, table


@reported
def systems(
    name: Annotated[
        str | None,
        typer.Argument(metavar="SYSTEM", help="Show this system with its options.", autocompletion=system_names),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the table of systems: observation, likelihood, prior, inference, objective and source."""
    from gae import systems as available  # lazy: the table alone needs no torch

    columns = ("observation", "likelihood", "prior", "inference", "objective", "source")
    chosen = available.SYSTEMS if name is None else {name: available.named(name)}
    rows = [{"system": each, **{c: getattr(row, c) for c in columns}} for each, row in chosen.items()]
    if as_json:
        echo_json([{**row, "options": available.defaults(row["system"])} for row in rows])
    elif name is None:
        shown = table("system", *columns)
        for row in rows:
            shown.add_row(*row.values())
        console().print(shown)
    else:
        options = {f"option {key}": plain(value) for key, value in available.defaults(name).items()}
        print_results({**rows[0], **options}, as_json=False)
