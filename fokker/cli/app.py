"""All commands. Each file of this package holds one group of them and a function `add(app)`."""

from typing import Annotated

import typer

from fokker.cli import (
    arena,
    catalogue,
    classify,
    data,
    demo,
    distil,
    edit,
    enhance,
    likelihood,
    plan,
    restore,
    sample,
    train,
    tune,
    write,
)

app = typer.Typer(
    name="fokker",
    help="Diffusion models on one algebra: sample, train, restore, edit, measure, cite.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: fokker systems --family solvers",
)


def _version(wanted: bool) -> None:
    if wanted:
        from fokker import __version__

        typer.echo(f"fokker {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, in any command.")] = False,
) -> None:
    """Diffusion models on one algebra: sample, train, restore, edit, measure, cite."""


GROUPS = (demo, sample, restore, edit, enhance, train, distil, plan, tune, arena, data, catalogue, likelihood, classify, write)
for group in GROUPS:
    group.add(app)
