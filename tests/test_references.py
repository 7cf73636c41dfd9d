"""Names of gae in docstrings and notes lead somewhere."""

import importlib
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"``?(gae(?:\.[A-Za-z_]\w*)+)")
INVENTED = {"gae.notes", "gae.rae"}  # the notes in a wheel, and the example of notes/extending.md
TEXTS = [
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "notes").rglob("*.md"), *(ROOT / "gae").rglob("*.py")]
    if path.name != "CHANGELOG.md"  # which names what is gone
]


@cache
def leads_somewhere(name: str) -> bool:
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            continue
        for attribute in parts[i:]:
            value = getattr(value, attribute, None)
        return value is not None
    return False


def test_names_in_texts_exist() -> None:
    for path in TEXTS:
        names = set(NAME.findall(path.read_text(encoding="utf-8"))) - INVENTED
        assert [name for name in sorted(names) if not leads_somewhere(name)] == [], path


def test_a_name_that_is_gone_is_noticed() -> None:
    assert not leads_somewhere("gae.training.checkpoint.restore") and leads_somewhere("gae.storage.checkpoint.restore")
