"""The ``gae`` command. Heavy packages are imported inside functions, so that ``--help`` is fast."""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, no_type_check

import typer

from gae.cli.activate import activate
from gae.cli.compare import compare
from gae.cli.config import configured
from gae.cli.dip import dip
from gae.cli.doctor import doctor
from gae.cli.encode import encode, transform
from gae.cli.explore import explore
from gae.cli.fit import fit
from gae.cli.gap import gap
from gae.cli.notes import notes
from gae.cli.picture import picture
from gae.cli.reconstruct import reconstruct
from gae.cli.sample import sample
from gae.cli.score import score
from gae.cli.sweep import sweep
from gae.cli.systems import systems

COMMANDS = (
    *(systems, fit, encode, transform, reconstruct, score),
    *(compare, sweep, sample, activate, dip, explore, picture, gap, notes, doctor),
)

FIRST = """\
A decoder and a prior are the model; encoding is inference. First steps, in order:

  gae fit vae digits                  train a model, which goes to runs/vae-digits
  gae encode runs/vae-digits digits   write the code of every image to codes.npz
  gae gap runs/vae-digits digits      measure in nats how much the encoder loses
  gae explore runs/vae-digits digits  write a page on which codes are decoded
  gae compare digits --quick          compare encoders on the same decoders

Data of your own are a path in the place of `digits`: a table, an array, text, a
folder of images. `gae --help` lists all commands and `gae systems` all models;
`gae doctor` checks the installation; `gae --install-completion` sets up your shell."""

app = typer.Typer(
    help="Autoencoders without an encoder: a decoder and a prior are the model, encoding is inference.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script, safe for closed standard streams and characters they cannot encode.

    Warnings are printed without the line of code that gave them, which the user of a command did not write.
    """
    warnings.formatwarning = lambda message, *place, **line: f"Warning: {message}\n"
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)
        else:
            stream.reconfigure(errors="backslashreplace")
    app()


def _version(requested: bool) -> bool:
    if requested:
        from gae import __version__

        typer.echo(f"gae {__version__}")
        raise typer.Exit
    return requested


@app.callback()
@no_type_check  # typer's contexts are of another class than its Context
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(FIRST)


def _description(command: Callable[..., object]) -> str:
    """A command's docstring for typer: each paragraph in a line, which typer wraps, and brackets that are no markup."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.getdoc(command) or "").replace("[", r"\[")


for command in COMMANDS:
    app.command(help=_description(command))(configured(command))
