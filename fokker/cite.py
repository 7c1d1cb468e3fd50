"""BibTeX for what was used: ids of the catalogue, class names, or the trace of a run."""

import textwrap
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from fokker.catalogue import Record, get, records


@runtime_checkable
class Named(Protocol):
    """Anything that lists the names of the methods it used; the trace of a run does."""

    @property
    def names(self) -> Iterable[str]: ...


def cite(source: str | Record | Named | Iterable[str]) -> str:
    """The BibTeX entries of one id, of several, or of everything that a run used; one paper comes once.

    Ids must exist. Names out of a trace may be ids or class names, and those without a paper are left out.
    """
    found: dict[str, Record] = {}
    for record in _cited(source):
        if record.arxiv or record.authors:
            found.setdefault(record.arxiv or record.title, record)
    return "\n".join(bibtex(record) for record in found.values())


def _cited(source: str | Record | Named | Iterable[str]) -> Iterator[Record]:
    if isinstance(source, Record):
        yield source
    elif isinstance(source, str):
        yield get(source)
    elif isinstance(source, Named):
        by_name: dict[str, Record] = {}
        for record in records():
            by_name.setdefault(record.id, record)
            if record.name and record.arxiv:
                by_name.setdefault(record.name, record)
        yield from (by_name[name] for name in source.names if name in by_name)
    else:
        yield from map(get, source)


def bibtex(record: Record) -> str:
    """One BibTeX entry; a paper whose authors the catalogue does not know is cited by title and arXiv id."""
    fields = {
        "title": f"{{{record.title}}}",
        "author": " and ".join(record.authors),
        "year": str(record.published or ""),
        "eprint": record.arxiv,
        "archivePrefix": "arXiv" if record.arxiv else "",
        "url": f"https://arxiv.org/abs/{record.arxiv}" if record.arxiv else "",
    }
    body = "".join(f"  {name} = {{{_latex(value)}}},\n" for name, value in fields.items() if value)
    return f"@misc{{{record.id},\n{body}}}\n"


def _latex(text: str) -> str:
    for char in "&%#_":
        text = text.replace(char, f"\\{char}")
    return text


def paragraph(source: str | Record | Named | Iterable[str], width: int = 100) -> str:
    """The same papers as lines of plain text: authors, title, year, arXiv id."""
    lines = []
    seen: set[str] = set()
    for record in _cited(source):
        if not (record.arxiv or record.authors) or (record.arxiv or record.title) in seen:
            continue
        seen.add(record.arxiv or record.title)
        authors = ", ".join(record.authors).replace(", others", " et al.")
        where = f"arXiv:{record.arxiv}" if record.arxiv else ""
        parts = [part for part in (authors, record.title, str(record.published or ""), where) if part]
        lines.append(textwrap.fill(". ".join(parts), width, subsequent_indent="  "))
    return "\n".join(lines)
