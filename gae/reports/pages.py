"""Self-contained HTML pages: templates, and pictures embedded in the text."""

import base64
from pathlib import Path
from typing import Any

from gae.data.files import write_text


def write_page(path: Path, template: str, **facts: Any) -> None:
    """Writes a page from a template of ``gae/reports/templates``; a missing fact raises ``jinja2.UndefinedError``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gae.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**facts))


def embed(png: bytes) -> str:
    """PNG in base64, for ``data:image/png;base64,…`` in a template."""
    return base64.b64encode(png).decode()
