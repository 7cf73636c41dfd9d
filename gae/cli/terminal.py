"""What the ``gae`` command prints: tables, JSON, and one red line for what went wrong."""

import json
import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from gae.training.processes import refuse_many_processes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# What a user can put right; anything else is a defect and keeps its traceback.
EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, MemoryError, NotImplementedError, ImportError)


def reported(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose expected errors are one red message and exit code 2; Ctrl-C says how to go on.

    A reader that closed standard output, such as ``head``, ends it without a word and with exit code 1 (by typer).
    """

    @wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            refuse_many_processes("the command")
            function(*args, **options)
        except BrokenPipeError:
            raise
        except EXPECTED as error:
            _fail(str(error) or type(error).__name__, 2)
        except RuntimeError as error:  # torch has no class of its own for memory of the processor
            if "allocate" not in str(error):
                raise
            _fail(f"Out of memory: {error}. Take smaller sizes of the system, fewer data or a smaller batch.", 2)
        except KeyboardInterrupt:
            _fail("Interrupted." + (" Add --resume to continue." if "resume" in options else ""), 130)

    return run


def _fail(message: str, code: int) -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))
    raise typer.Exit(code)


def comparison(results: dict[str, Any]) -> "Table":
    from rich.text import Text

    from gae.reports import comparison as report

    found = report.table(results)
    shown = table("encoded by", *(f"{column.title}\n({column.unit})" for column in report.COLUMNS))
    for column in shown.columns[1:]:
        column.justify = "right"
    for heading, rows in found.groups:
        shown.add_section()
        shown.add_row(Text(heading.partition(";")[0], style="bold"))
        for row in rows:
            texts = [Text(cell.text, style="bold green" if cell.best else "") for cell in row.cells]
            shown.add_row(f"  {row.label}", *texts)
    shown.caption = (
        "mean ± standard error over test samples; green: best of those that can be compared; –: does not exist"
    )
    return shown


def surveyed(results: dict[str, Any]) -> "Table":
    from gae.reports import survey as survey_report

    columns = [f"{column.title}\n({column.unit})" for column in survey_report.columns(results)]
    shown = table("system", "code", "training\n(s)", *columns)
    for column in shown.columns[1:]:
        column.justify = "right"
    for line in survey_report.table(results)[0]:
        shown.add_row(line.label, *(cell.text for cell in line.cells))
    shown.caption = "mean ± standard error over test samples; –: does not exist"
    for row in results["embeddings"]:
        trust, accuracy = row["trustworthiness"]["mean"], row["accuracy"]["mean"]
        labels = "" if accuracy is None else f", 5-NN accuracy {100 * accuracy:.1f} %"
        shown.caption += f"\n{row['system']} lays out the test set: trustworthiness {trust:.4f}{labels}"
    for name, reason in results["missing"].items():
        shown.caption += f"\nno {name}: {reason}"
    for name, reason in results["failed"].items():
        shown.caption += f"\n{name} failed: {reason}"
    return shown


def print_results(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(results)
        return
    shown = table("", "")
    shown.show_header = False
    for name, value in results.items():
        if value is not None:
            shown.add_row(name, plain(value))
    console().print(shown)


def plain(value: Any) -> str:
    match value:
        case {"mean": None, "reason": reason}:
            return f"– ({reason})"
        case {"mean": mean, "se": None}:  # of one sample
            return f"{mean:.5g}"
        case {"mean": mean, "se": se}:
            return f"{mean:.5g} ± {se:.2g}"
        case dict():
            return ", ".join(f"{name}={plain(item)}" for name, item in value.items()) or "defaults"
        case list() | tuple():
            return ",".join(map(str, value))
        case float():
            return f"{value:.5g}"
    return str(value)


def echo_json(value: Any) -> None:
    """Prints JSON, in which a number that is not finite is null."""
    typer.echo(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def table(*columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False)


def console(stderr: bool = False) -> "Console":
    """A console that prints brackets and colons as they are: text of a user is no markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, markup=False, emoji=False)
