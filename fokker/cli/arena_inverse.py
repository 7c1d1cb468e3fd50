"""`fokker arena inverse`: restorers against exact posteriors."""

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fokker.cli import choose, job, spec
from fokker.cli.terminal import Progress
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from fokker.restore import Operator

EXAMPLE = "fokker arena inverse --operator mask:0.5 --operator ct:6 --steps 50 --out arena"


def inverse(
    operator: Annotated[list[str] | None, typer.Option(help="Only this operator, as mask:0.5; may be repeated.")] = None,
    restorer: Annotated[list[str] | None, typer.Option(help="Only this restorer, as dps:step=2; may be repeated.")] = None,
    solver: Annotated[str | None, typer.Option(help="One solver for all; each its own if left out.")] = None,
    law: Annotated[
        str | None, typer.Option(help="A law of images of your own, file.py:function; pairs of digits if left out.")
    ] = None,
    process: Annotated[str, typer.Option(help="The process: vp, edm, flow, ...")] = "vp",
    steps: Annotated[int, typer.Option(min=1, max=choose.MOST_STEPS, help="Steps of every run.")] = 100,
    noise: Annotated[float, typer.Option(min=1e-6, max=100, help="Standard deviation of the noise.")] = 0.1,
    measurements: Annotated[int, typer.Option(min=1, max=1000, help="Measurements of each operator.")] = 4,
    n: Annotated[int, typer.Option("-n", "--n", min=8, max=100_000, help="Samples of each posterior.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder for inverse.json, inverse.txt and inverse.png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Every restorer under every operator against the exact posterior of a mixture: mean, covariance, distance, misfit."""
    from fokker.laws import GaussianMixture
    from fokker.restore import leaderboard

    if out is not None:
        job.check_writable(out / "inverse.json") if out.is_dir() else job.check_writable(out)
    exact = leaderboard.pairs_of_digits() if law is None else choose.law(law)
    if not isinstance(exact, GaussianMixture):
        raise FokkerError(f"--law {law} is a {type(exact).__name__}, whose posterior is not known; give a Gaussian mixture")
    problems = [(text, _operator(text, exact.shape)) for text in operator or leaderboard.OPERATORS]
    makers = [(text, _maker(text)) for text in restorer] if restorer else None
    with Progress("arena") as bar:
        found = leaderboard.leaderboard(
            exact, choose.process(process), problems, makers, steps, noise, measurements, n, seed,
            "pairs of digits" if law is None else f"--law {law}", None if solver is None else choose.solver(solver), bar.update,
        )  # fmt: skip
    if out is not None:
        out.mkdir(exist_ok=True)
        (out / "inverse.json").write_text(found.json() + "\n", encoding="utf-8")
        (out / "inverse.txt").write_text(found.table() + "\n", encoding="utf-8")
        found.plot(out / "inverse.png")
    typer.echo(found.json() if json else found.table())


def _operator(text: str, shape: tuple[int, ...]) -> "Operator":
    """An operator for samples of a shape."""
    from fokker import catalogue
    from fokker.restore import Operator

    named = spec.method(text)
    accepted = inspect.signature(catalogue.find("operator", named.name)[0]).parameters
    made = choose.build("operator", named, **({"shape": shape} if "shape" in accepted else {}))
    if not isinstance(made, Operator):
        raise FokkerError(f"{text!r} is a {type(made).__name__}, not an operator")
    return made


def _maker(text: str) -> Any:
    """What makes the restorer of these words; refused at once if there is none."""
    from fokker import catalogue

    named = spec.method(text)
    catalogue.find("restorer", named.name)
    return partial(choose.build, "restorer", named)
