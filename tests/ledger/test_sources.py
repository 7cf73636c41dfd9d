"""The list of quoted texts: complete, and every text that the notes or README quote is in it."""

import re
from pathlib import Path

import pytest

from gae.ledger import notes as ledger
from gae.ledger.sources import places, read_sources

ROOT = Path(__file__).resolve().parents[2]
SOURCES = read_sources()
CLAIMS = {claim.id: claim for note in ledger.read_notes() for claim in note.claims}
NAME = r"(?:van )?[A-ZÀ-Þ][\w'-]+"
CITATION = re.compile(rf"({NAME})( et al\.|(?:, {NAME})* (?:and|&) {NAME})? \(?((?:18|19|20)\d\d)\b")
PAGES = [path for path in sorted((ROOT / "notes").rglob("*")) if path.suffix in {".md", ".py"}]
TEXTS = {str(path.relative_to(ROOT)): path for path in PAGES if path.name != "sources.md"}
WITHOUT_ADDRESS = {"000"}
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRATA = re.findall(
    r"^- \[(D\d+)\]\(\S+\): (.+)$", README.partition("## What the sources get wrong\n")[2], flags=re.MULTILINE
)


def cited(text: str) -> set[str]:
    """The keys of the texts that are named with authors and year."""
    keys = set()
    for first, others, year in CITATION.findall(" ".join(text.split())):
        second = re.fullmatch(rf" (?:and|&) ({NAME})", others)
        keys.add(f"{first} & {second[1]} {year}" if second else f"{first}{' et al.' if others else ''} {year}")
    return keys


def test_every_text_has_title_author_date_and_address() -> None:
    for source in SOURCES.values():
        assert source.title and source.author and re.search(r"\d{4}", source.date), source
        assert source.address.startswith("https://") or source.key in WITHOUT_ADDRESS, source
        year = re.search(r" (\d{4})$", source.key)
        assert year is None or year[1] in source.date, source
    addresses = [source.address for source in SOURCES.values() if source.address]
    assert len(set(addresses)) == len(addresses)


def test_every_claim_names_a_listed_text_and_a_place_in_it() -> None:
    for row, claim in CLAIMS.items():
        for key, place in places(claim.source):
            assert key in SOURCES, f"{row}: {key!r} is not in notes/sources.md"
            assert place, f"{row}: where in {key}?"


def test_every_citation_is_listed() -> None:
    for name, path in TEXTS.items():
        assert sorted(cited(path.read_text(encoding="utf-8")) - SOURCES.keys()) == [], name


def test_every_listed_text_is_quoted() -> None:
    quoted = set().union(*(cited(path.read_text(encoding="utf-8")) for path in TEXTS.values()))
    quoted |= {key for claim in CLAIMS.values() for key, _ in places(claim.source)}
    assert sorted(SOURCES.keys() - quoted) == []


def test_errata_in_the_readme_link_to_their_sources() -> None:
    for row, text in ERRATA:
        links = LINK.findall(text)
        assert links, f"{row}: which text says so?"
        assert {key for key, _ in links} <= {key for key, _ in places(CLAIMS[row].source)}, row
        for key, address in links:
            assert address == (SOURCES[key].address or "notes/sources.md#the-texts-under-examination"), f"{row}: {key}"


def test_errata_in_the_readme_are_found() -> None:
    listed = README.partition("## What the sources get wrong\n")[2].partition("\n## ")[0]
    assert len(ERRATA) == listed.count("\n- ") > 10
    addresses = {source.address for source in SOURCES.values()}
    assert {address for _, address in LINK.findall(README) if address.startswith("https://")} <= addresses


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("(Vincent 2011; Kingma &\nWelling 2014)", {"Vincent 2011", "Kingma & Welling 2014"}),
        ("of Rifai et al. (2012), eq. 3", {"Rifai et al. 2012"}),
        ("Bengio, Yao, Alain and Vincent (2013)", {"Bengio et al. 2013"}),
        ("Hinton and van Camp 1993", {"Hinton & van Camp 1993"}),
        ("seven of 2048 points", set()),
    ],
)
def test_citations_are_recognised(text: str, keys: set[str]) -> None:
    assert cited(text) == keys


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "sources.md"


def test_entries_may_run_over_lines(page: Path) -> None:
    page.write_text("# Sources\n\n- **Ng 2011:** Andrew Ng, *Sparse\n  autoencoder*, 2011:\n  <https://a.b>\n\nText.\n")
    assert read_sources(page.parent)["Ng 2011"].title == "Sparse autoencoder"
    assert read_sources(page.parent)["Ng 2011"].address == "https://a.b"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("- **Ng 2011:** Andrew Ng, *Sparse autoencoder*, 2011", "must read"),
        ("- **Ng 2011:** Andrew Ng, *Sparse autoencoder*, 2011: <a.pdf>", "must read"),
        ("- **Ng 2011:** *Sparse autoencoder*, 2011: <https://a.b>", "must read"),
        (2 * "- **Ng 2011:** Andrew Ng, *Sparse autoencoder*, 2011: <https://a.b>\n", "two entries have the key"),
    ],
)
def test_incomplete_entries_are_refused(page: Path, entry: str, message: str) -> None:
    page.write_text(f"# Sources\n\n{entry}\n")
    with pytest.raises(ValueError, match=message):
        read_sources(page.parent)
