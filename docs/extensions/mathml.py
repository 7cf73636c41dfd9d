"""Formulas as MathML, which browsers show without scripts or fonts from elsewhere."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from gae.reports.formulas import mathml


def _inline(translator: Any, node: nodes.Element) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.Element) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
