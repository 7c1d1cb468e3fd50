"""`fokker data`: look at a data set before a training does."""

from pathlib import Path
from typing import Annotated

import typer

from fokker.cli import spec
from fokker.cli.terminal import print_json, print_table
from fokker.errors import FokkerError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Look at data sets.", epilog="Example: fokker data check photos/")
    group.command(epilog="Example: fokker data check photos/ --size 64x64 --json")(check)
    group.command("list", epilog="Example: fokker data list")(listing)
    app.add_typer(group, name="data")


def check(
    path: Annotated[Path, typer.Argument(help="A folder of images, a tar, an npz or a safetensors file.")],
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH that training will resize to.")] = None,
    background: Annotated[str, typer.Option(help="The colour under transparent pixels.")] = "white",
    json: Json = False,
) -> None:
    """Name every broken, transparent, rotated, odd-sized or doubled file; exit code 1 if the set cannot be opened as it is."""
    from fokker import data

    if not path.exists():
        raise FokkerError(
            f"there is no file or folder {str(path)!r}; give a folder of images, a tar or a file of arrays"
        )
    report = data.check(path, None if size is None else spec.size(size), background)
    typer.echo(report.json() if json else report.table())
    raise typer.Exit(0 if report.ok else 1)


def listing(json: Json = False) -> None:
    """List the embedded data sets, which open as `toy:NAME`."""
    import importlib

    from fokker import data

    rows = []
    for name in data.names():
        text = importlib.import_module(f"fokker.data.toys.{name}").__doc__ or ""
        rows.append({"name": f"toy:{name}", "what": " ".join(text.split("\n\n")[0].split())})
    if json:
        print_json(rows)
    else:
        print_table(rows, ("name", "what"))
