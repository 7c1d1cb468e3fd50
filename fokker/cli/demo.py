"""`fokker demo`: the main job on real digits."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fokker.cli.terminal import print_json


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker demo --out out/demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="How many; 0 takes the number that is fastest now.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds in place of minutes; its numbers mean nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json.")] = False,
) -> None:
    """Train on 1,797 scanned digits, sample, restore, classify, and write a report with pictures and numbers."""
    # read when torch is loaded: threads that spin while they wait for a busy core make an update fifty times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fokker.demo import budget, main

    found = main.main(out, budget.QUICK if quick else budget.FULL, seed, threads, quiet=json)
    if json:
        print_json(found)
    else:
        typer.echo(str(out / "report.html"))
