"""Tables for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape

MOST = 12  # rows that are shown


def html_table(caption: str, rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """A table in HTML without colours of its own, so that it is readable on light and dark pages.

    The first cell of a row is its heading. Of more than 12 rows, the first 12 are shown with the number of the others.

    >>> html_table("Loss", [("epoch 1", 2.5)])
    '<table><caption>Loss</caption><tbody><tr><th scope="row">epoch 1</th><td>2.5</td></tr></tbody></table>'
    """
    rows = list(rows)
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(_row(row) for row in rows[:MOST])
    if len(rows) > MOST:
        body += f'<tr><td colspan="{len(rows[0])}">… and {len(rows) - MOST} more</td></tr>'
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{body}</tbody></table>"


def _row(cells: Sequence[object]) -> str:
    first, *others = (escape(_text(cell)) for cell in cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{text}</td>" for text in others)}</tr>'


def _text(cell: object) -> str:
    return f"{cell:.5g}" if isinstance(cell, float) else str(cell)
