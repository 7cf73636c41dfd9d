"""The list of texts that the notes quote: title, author, date and address of each."""

import re
from dataclasses import dataclass
from pathlib import Path

from gae.ledger.notes import folder

LIST = "sources.md"
ITEM = re.compile(
    r"\*\*(?P<key>[^*]+):\*\* (?P<author>[^*]+), \*(?P<title>[^*]+)\*, (?P<date>[^<:]+): "
    r"(?:<(?P<address>https://[^>\s]+)>|address unknown)"
)


@dataclass(frozen=True)
class Source:
    """A quoted text, named in the notes by ``key``. The address is empty if none is known.

    Keys are the number of a text under examination, such as ``001``, or authors and year, such as ``Vincent 2011``.
    """

    key: str
    title: str
    author: str
    date: str
    address: str


def read_sources(place: Path | None = None) -> dict[str, Source]:
    """The texts listed in ``sources.md`` beside the notes, by key, in the order of the list.

    Args:
        place: the folder of the notes; by default the one that belongs to this installation.

    Raises:
        ValueError: for an entry without author, title or date, or with neither an https address nor the words 'address
            unknown', and for a key that is used twice.

    >>> read_sources()["001"].author
    'CATSMILE'
    """
    page = (place or folder()) / LIST
    _, *entries = re.split(r"^- ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sources: dict[str, Source] = {}
    for entry in entries:
        source = _read(" ".join(re.split(r"\n(?! )", entry)[0].split()))
        if source.key in sources:
            raise ValueError(f"{LIST}: two entries have the key {source.key!r}.")
        sources[source.key] = source
    return sources


def places(line: str) -> list[tuple[str, str]]:
    """The keys and places of a claim's ``Source`` line, which reads 'key, place; key, place'.

    >>> places("001, the formula of L_GAE; Vincent 2011, section 4")
    [('001', 'the formula of L_GAE'), ('Vincent 2011', 'section 4')]
    """
    pairs = [part.partition(", ") for part in line.split("; ")]
    return [(key, place) for key, _, place in pairs]


def _read(entry: str) -> Source:
    fields = ITEM.fullmatch(entry)
    if fields is None:
        raise ValueError(f"{LIST}: an entry must read '**key:** author, *title*, date: <https://…>', got {entry!r}.")
    return Source(**fields.groupdict(default=""))
