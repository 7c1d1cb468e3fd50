"""BibTeX for what was used: ids of the catalogue, or the trace or the plan of a run."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from fokker.catalogue import Record, get, records


@runtime_checkable
class Configured(Protocol):
    """Anything that says in `config` what it was made of: the trace of a run, a plan, a solver."""

    @property
    def config(self) -> Mapping[str, Any]: ...


Source = str | Record | Configured | Iterable[str]


def cite(source: Source) -> str:
    """The BibTeX entries of one id, of several, or of what a run used; one paper comes once.

    Ids must exist. The names in a `config` may be ids or class names, and those without a paper are left out.
    """
    return "\n".join(bibtex(record) for record in papers(source))


def papers(source: Source) -> list[Record]:
    """The records with a paper that the source names, one for each paper, published systems before building blocks."""
    found: dict[str, Record] = {}
    for record in sorted(_named(source), key=lambda record: not record.system):
        if record.arxiv or record.authors:
            found.setdefault(record.arxiv or record.title, record)
    return list(found.values())


def _named(source: Source) -> Iterator[Record]:
    if isinstance(source, Record):
        yield source
    elif isinstance(source, str):
        yield get(source)
    elif isinstance(source, Configured):
        words = set(_words(source.config))
        yield from (record for record in records(planned=False) if record.id in words or record.name in words)
    else:
        yield from map(get, source)


def _words(config: object) -> Iterator[str]:
    """Every piece of text in nested plain data, names of options left out."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping):
        for value in config.values():
            yield from _words(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _words(value)


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


def paragraph(source: Source, width: int = 100) -> str:
    """The same papers as lines of plain text: authors, title, year, arXiv id."""
    lines = []
    for record in papers(source):
        authors = ", ".join(record.authors).replace(", others", " et al.")
        where = f"arXiv:{record.arxiv}" if record.arxiv else ""
        parts = [part for part in (authors, record.title, str(record.published or ""), where) if part]
        lines.append(textwrap.fill(". ".join(parts), width, subsequent_indent="  "))
    return "\n".join(lines)
