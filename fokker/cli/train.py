"""`fokker train`: a recipe in YAML becomes a model and a folder of evidence."""

from pathlib import Path
from typing import Annotated

import typer

from fokker.cli.terminal import print_json


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker train zoo/digits.yaml out=runs/digits rate.peak=1e-3")(train)


def train(
    config: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, with dotted keys.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train by a recipe; if its folder holds a run of the same recipe, go on from its last checkpoint.

    On several processes: accelerate launch -m fokker train config.yaml
    """
    from fokker.model import build_process
    from fokker.store import read_header
    from fokker.train import main

    path = main(config, overrides or [])
    if json:
        print_json({"model": str(path)})
    else:
        restores = build_process(read_header(path)["process"]).anchored
        typer.echo(f"{path}: see `fokker {f'restore in.png out.png --model {path}' if restores else f'sample --model {path}'}`")
