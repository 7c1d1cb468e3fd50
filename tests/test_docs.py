"""Every block of Python in the README and the pages runs, from top to bottom of its page; every page is in the navigation."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_python_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, f"{page.name} (python block)", "exec"), names)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES[1:] if page.name not in navigation] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_the_page_exist(page: Path) -> None:
    import typer

    from fokker.cli.app import app

    known = set(typer.main.get_command(app).commands)
    said = set(re.findall(r"^(?:\$ |    |`?)fokker (\w+)", page.read_text(), re.MULTILINE))
    assert said <= known, f"{page.name} names commands that do not exist: {sorted(said - known)}"
