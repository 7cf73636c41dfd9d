"""Progress of long jobs: bars on a terminal, lines elsewhere, nothing unless asked."""

import io
import sys

import pytest

from gae.data import progress as module
from gae.data.progress import announced, counted, progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between what is shown."""
    for name in ("FIRST", "EVERY", "DELAY", "REFRESH"):
        monkeypatch.setattr(module, name, 0.0)


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as standard error, for the rest of a test: pytest puts its own stream in place before each."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_file_gets_lines_without_control_characters(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("rows", 2) as advance:
        advance("first")
        advance("second", stored=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["[gae] rows 1/2, 0:00:00 left, first", "[gae] rows 2/2, second"]


def test_the_time_left_is_of_steps_that_took_time(
    often: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("cells", 20, done=5) as advance:
        advance(by=3, stored=True)
        now[0] += 30.0
        advance(by=2)  # 15 s for each of the other 10
    assert [line.partition(", ")[2] for line in capsys.readouterr().err.splitlines()] == ["", "0:02:30 left"]


def test_short_jobs_print_nothing_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("rows", 3) as advance:
        advance(by=3)
    with progress("rows", 3, keep=True) as advance:
        advance("done", by=3)
    assert capsys.readouterr().err == "[gae] rows 3/3, done\n"


def test_a_terminal_gets_bars_within_bars(often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("trainings", 2, keep=True) as outer:
        with progress("steps", 9) as inner:
            inner("loss [red]", by=4)
            module._jobs.bars.refresh()
            assert "  steps" in terminal.getvalue() and "4/9" in terminal.getvalue()
            assert "loss [red]" in terminal.getvalue()
        outer(by=2)
    last = terminal.getvalue().rpartition("trainings")[2]
    assert "2/2" in last and "steps" not in last
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")  # the cursor is back


def test_standard_output_in_a_file_stays_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("rows", 1):
        print("result")
    assert capsys.readouterr().out == "result\n" and "result" not in terminal.getvalue()


def test_loops_are_shown_where_they_are_announced(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    items = range(2)
    assert counted(items, "rows") is items
    with announced(lambda: False):
        assert counted(items, "rows") is items
    with announced(), progress("training", 1, shown=False, alone=True):
        assert counted(items, "rows") is items
    assert capsys.readouterr().err == ""
    with announced():
        assert list(counted(items, "rows")) == [0, 1]
    assert capsys.readouterr().err.startswith("[gae] rows 1/2")
    first = True
    with announced(lambda: first):
        first = False  # the process has joined a group, in which it is not the first
        assert counted(items, "rows") is items


def test_an_error_within_a_loop_ends_the_display(often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)

    def work() -> None:
        for _ in counted(range(3), "rows"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as kept, announced():  # whose traceback keeps the loop alive
        work()
    assert module._jobs.bars is None and not module._jobs.running and kept
    with progress("rows", 1) as advance:
        advance()
    assert module._jobs.bars is None
