"""Docstrings as reStructuredText: outside code, ``|``, ``*``, a final ``_`` and "Z." are characters, not markup."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CODE = re.compile(r"(``.+?``)", flags=re.DOTALL)
MARKUP = re.compile(r"(?<!\\)([|*]|_(?!\w)|(?<=: )[A-Za-z](?=[.)](?:\s|$)))")  # "latent: Z." is no list from Z on


def escape(text: str) -> str:
    r"""The text with markup characters escaped outside of literals and examples.

    >>> print(escape("log q(z|x) of ``a|b``, x_"))
    log q(z\|x) of ``a|b``, x\_
    >>> print(escape("latent: Z."))
    latent: \Z.
    """
    parts = re.split(r"(^[ ]*>>>.*(?:\n[ ]*\S.*)*)", text, flags=re.MULTILINE)
    return "".join(part if i % 2 else _escape_prose(part) for i, part in enumerate(parts))


def _escape_prose(text: str) -> str:
    return "".join(part if i % 2 else MARKUP.sub(r"\\\1", part) for i, part in enumerate(CODE.split(text)))


def _process(app: "Sphinx", what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    lines[:] = escape("\n".join(lines)).split("\n")


def untyped(lines: list[str]) -> list[str]:
    """A property's docstring with what napoleon took for its type, all before the first colon, put back.

    >>> untyped(["by a t test.", "", ":type: Whether they differ"])
    ['Whether they differ: by a t test.', '']
    """
    kinds = [line.removeprefix(":type: ") for line in lines if line.startswith(":type: ")]
    rest = [line for line in lines if not line.startswith(":type: ")]
    return [": ".join([*kinds, rest[0]]), *rest[1:]]


def _process_property(app: "Sphinx", what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    if what == "property" and lines:
        lines[:] = untyped(lines)


def _skip(app: "Sphinx", what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    return True if str(getattr(item, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon, which adds markup
    app.connect("autodoc-process-docstring", _process_property, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
