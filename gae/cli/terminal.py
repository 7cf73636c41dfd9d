"""Output of the ``gae`` command: tables, JSON and error messages."""

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
from typer.models import OptionInfo

from gae.data.progress import announced
from gae.studies.failures import EveryTrainingFailed
from gae.training.processes import ending_together, is_first, refuse_many_processes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")

# Errors that a user can fix; any other is a bug and keeps its traceback.
EXPECTED = (
    *(ValueError, TypeError, OSError, FloatingPointError, MemoryError, NotImplementedError, ImportError),
    EveryTrainingFailed,
)


def reported(function: Callable[..., T]) -> Callable[..., T]:
    """Decorator of commands: prints expected errors in red with exit code 2; Ctrl-C says how to continue.

    A command with an option ``devices`` shares its work among processes that were launched together; any other refuses
    to run in one of them. The first process shows the progress of long loops, without an option ``quiet``.

    If a reader such as ``head`` closes standard output, typer ends the command silently with exit code 1.
    """

    @wraps(function)
    def run(*args: Any, **options: Any) -> T:
        try:
            if "devices" in options:
                _quieten()
            else:
                refuse_many_processes("the command")
            with ending_together(), announced(lambda: is_first() and not options.get("quiet")):
                return function(*args, **options)
        except BrokenPipeError:
            raise
        except EXPECTED as error:
            fail(" ".join([*getattr(error, "__notes__", ()), str(error) or type(error).__name__]), 2)
        except RuntimeError as error:  # torch has no exception class for CPU memory
            if "allocate" not in str(error):
                raise
            fail(f"Out of memory: {error}. Use a smaller system, fewer data or a smaller batch.", 2)
        except KeyboardInterrupt:
            fail("Interrupted." + (" Add --resume to continue." if "resume" in options else ""), 130)

    return run


def _quieten() -> None:
    """Hides announcements of Fabric and torch's C++ warnings, which each process would print."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported
    for name in ("distributed", "rank_zero"):
        logging.getLogger(f"lightning_fabric.utilities.{name}").setLevel(logging.WARNING)


def command_line(command: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """The command that repeats a call with these values, quoted for a shell; defaults are left out."""
    words = ["gae", command.__name__]
    for name, parameter in signature(command).parameters.items():
        value, (settings,) = values[name], parameter.annotation.__metadata__
        if value == parameter.default:
            continue
        option = []
        if isinstance(settings, OptionInfo):
            names = (settings.default, *(settings.param_decls or ()), f"--{name.replace('_', '-')}")
            option = [next(entry for entry in names if isinstance(entry, str))]  # in Annotated, a name comes first
        for each in value if isinstance(value, list) else [value]:
            words += option if each is True else [*option, str(each)]
    return shlex.join(words)


def fail(message: str, code: int) -> NoReturn:
    """Prints an error in red and ends the command with an exit code."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))
    raise typer.Exit(code)


def comparison(results: dict[str, Any]) -> "Table":
    from rich.text import Text

    from gae.reports import comparison as report

    titles = {"mean-field": "diagonal", "full covariance": "full", "flow": "flow"}
    columns = [f"{titles[family]}\n{what}" for family in report.families(results) for what in report.BOUND_COLUMNS]
    shown = table("engine", *columns)
    for column in shown.columns[1:]:
        column.justify = "right"
    for heading, rows in report.matrix_table(results):
        shown.add_section()
        shown.add_row(Text(heading.partition(" (")[0], style="bold"))
        for row in rows:
            shown.add_row(f"  {row.label}", *(_bound(cell.text, cell.detail) for cell in row.cells))
    shown.caption = "bounds on log p(x) in nats; " + report.population(results)
    return shown


def _bound(text: str, detail: str) -> str:
    """A bound, with the share of solves that converged unless all did."""
    return text if detail in ("", "100% converged") else f"{text} ({detail})"


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
        shown.caption += f"\n{row['system']} embeds the test set: trustworthiness {trust:.4f}{labels}"
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
        case {"mean": _, "se": _}:
            return _entry(value)
        case dict():
            return ", ".join(f"{name}={plain(item)}" for name, item in value.items()) or "defaults"
        case list() | tuple():
            return ",".join(map(plain, value))
        case float():
            return f"{value:.5g}"
    return str(value)


def _entry(entry: dict[str, Any]) -> str:
    """A mean and its standard error, or the reason why it is missing."""
    match entry:
        case {"mean": None}:
            return f"– ({entry['reason']})"
        case {"mean": mean, "se": None}:  # one sample
            return f"{mean:.5g}"
    return f"{entry['mean']:.5g} ± {entry['se']:.2g}"


def echo_json(value: Any) -> None:
    """Prints JSON; numbers that are not finite become null."""
    typer.echo(json.dumps(finite(value), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None, which JSON can hold."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: finite(item) for name, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value


def table(*columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False)


def console(stderr: bool = False) -> "Console":
    """Console that does not interpret brackets and colons as markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, markup=False, emoji=False)
