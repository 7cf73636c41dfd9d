"""Names of public classes and functions in code font lead to their entries in the reference; options are marked."""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

NAME = re.compile(r"(?:gae\.)?(?:\w+\.)*(\w{3,})(?:\(\))?")
FRONT = ("gae.", "gae.systems.")  # the places to prefer for a name that has several


def _places(app: Sphinx) -> dict[str, tuple[str, str]]:
    """Full and short names, with the page and the anchor of their entries."""
    entries = {
        name: (entry.docname, entry.node_id)
        for name, entry in app.env.domains.python_domain.objects.items()
        if entry.objtype in ("class", "function")
    }
    by_depth = sorted(entries, key=lambda name: name.count("."), reverse=True)
    short = {name.rpartition(".")[2]: entries[name] for name in by_depth}
    return short | entries


def _link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    places = _places(app)
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        if re.fullmatch(r"--?[a-z-]+", text):
            literal["classes"].append("option")  # which does not wrap after its hyphens
        if not NAME.fullmatch(text) or isinstance(literal.parent, nodes.reference):
            continue
        if text.islower() and "." not in text and not text.endswith("()"):
            continue  # `fit` may be a command, `scale` an argument
        place = places.get(text.removesuffix("()"))
        if place is not None and not _inside(literal, *place):
            literal.replace_self(make_refnode(app.builder, docname, *place, literal.deepcopy()))


def _inside(node: nodes.Element, docname: str, anchor: str) -> bool:
    """Whether the node stands in a heading or in the entry itself."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.title) or anchor in node.get("ids", ()):
            return True
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
