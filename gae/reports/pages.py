"""HTML pages that need nothing beside themselves: templates, and pictures inside of the text."""

import base64
from pathlib import Path
from typing import Any

from gae.data.files import write_text


def write_page(path: Path, template: str, **facts: Any) -> None:
    """Writes a page from a template of ``gae/reports/templates``; a fact that it names and does not get is an error."""
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
    """A picture as base64, for a template's ``data:image/png;base64,…``."""
    return base64.b64encode(png).decode()
