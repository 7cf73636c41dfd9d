"""The command as tests run it: in this process, with its output checked."""

from typing import Any

from typer.testing import CliRunner

from gae.cli import main as cli


def gae(*arguments: Any, code: int = 0) -> str:
    """What the command prints; on an error, what it says on standard error."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    if code:
        assert "Traceback" not in result.output and not result.stdout
        return " ".join(result.stderr.split())
    return result.stdout
