"""`fokker arena`: methods on equal terms."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fokker.cli import arena_inverse, choose, job, spec
from fokker.cli.terminal import Progress
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from fokker.denoiser import Denoiser

EXAMPLE = "fokker arena solvers --law lowrank64 --process vp --nfe 5,6,8 --out arena"


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Compare methods on equal terms.", epilog=f"Example: {EXAMPLE}")
    group.callback()(_group)
    group.command(epilog=f"Example: {EXAMPLE}")(solvers)
    group.command(epilog=f"Example: {arena_inverse.EXAMPLE}")(arena_inverse.inverse)
    app.add_typer(group, name="arena")


def _group() -> None:
    """Compare methods on equal terms."""


def solvers(
    law: Annotated[str | None, typer.Option(help="A law: lowrank64, ring, lowrank:dim=8,rank=2, ...")] = None,
    model: Annotated[str | None, typer.Option(help="A model, in place of a law.")] = None,
    label: Annotated[int | None, typer.Option(min=0, help="Class, for a law or model with classes.")] = None,
    process: Annotated[str | None, typer.Option(help="The process of a law: vp (unless told), edm, flow, ...")] = None,
    nfe: Annotated[str, typer.Option(help="Budgets of evaluations.")] = "5,6,8,10,15,20,30,50",
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Only this grid; may be repeated.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=8, max=100_000, help="Samples.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    end: Annotated[float | None, typer.Option(min=0, max=1, help="Time to end at; 0 goes to x_0.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to print for each budget.")] = 5,
    out: Annotated[Path | None, typer.Option(help="A folder for arena.json, arena.txt and arena.png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Every solver on every grid at equal evaluations, on the same noise, against the exact flow (or the model's own)."""
    import torch

    from fokker import arena
    from fokker import model as models

    if (law is None) == (model is None):
        raise FokkerError("give either --law or --model")
    if model is not None and process is not None:
        raise FokkerError("a model has its own process; leave out --process")
    if out is not None:
        job.check_writable(out / "arena.json") if out.is_dir() else job.check_writable(out)
    denoiser: Denoiser
    if law is not None:
        exact = choose.law(law)
        noising = choose.process("vp" if process is None else process)
        denoiser, shape, subject = exact.denoiser(noising), exact.shape, f"--law {law}"
    else:
        loaded = models.load(str(model))
        denoiser, shape, subject = loaded.denoiser, job.shape_of(loaded), f"--model {model}"
    cond = {} if label is None else {"label": torch.full((n,), label)}
    subject += "" if label is None else f" --label {label}"
    budgets = spec.numbers(nfe, "budgets")
    if max(budgets) > choose.MOST_STEPS:
        raise FokkerError(f"--nfe {max(budgets)} is not accepted; a budget is at most {choose.MOST_STEPS} evaluations")
    own = next((name for name in [*(solver or []), *(grid or [])] if ":" in name), "")
    with Progress("arena") as bar, choose.own_code(own):
        found = arena.solvers(denoiser, shape, budgets, n, seed, solver, grid, end, subject, bar.update, **cond)
    if out is not None:
        out.mkdir(exist_ok=True)
        (out / "arena.json").write_text(found.json() + "\n", encoding="utf-8")
        (out / "arena.txt").write_text(found.table(top) + "\n", encoding="utf-8")
        if any(row.rms is not None for row in found.rows):
            found.plot(out / "arena.png")
    typer.echo(found.json() if json else found.table(top))
