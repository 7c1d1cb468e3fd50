"""`fokker demo`: the main job on real digits, from nothing to a report."""

from pathlib import Path
from typing import Annotated

import typer

from fokker.cli.terminal import print_json


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker demo --out out/demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The folder for report, pictures, numbers and model.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the order of the data, and all noise.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage in seconds; its numbers mean nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Train on scikit-learn's 1,797 digits, draw with three solvers, restore and classify held-out ones, report.

    Interrupted while training, it goes on from its last checkpoint.
    """
    from fokker.demo.budget import FULL, QUICK
    from fokker.demo.main import main

    found = main(out, QUICK if quick else FULL, seed, quiet=json)
    if json:
        print_json(found)
    else:
        typer.echo(f"{out / 'report.html'}: see also `fokker sample --model {out / 'model.safetensors'} --label 3 -n 64`")
