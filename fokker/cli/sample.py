"""`fokker sample` and `fokker rerun`: samples of a model in a file that says how to make it again."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from fokker.cli import choose, edit, job, picture, provenance, restore, spec
from fokker.cli.plan import End, GridName, Nfe, Steps
from fokker.cli.terminal import Progress, print_json
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from fokker.cli.job import Done, Job

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STEPS = 18
SEED = "{seed}"  # in the name of the output: one file a seed


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: fokker sample --model digits --label 3 -n 64 --steps 10 --out grid.png")(sample)
    app.command(epilog="Example: fokker rerun grid.png")(rerun)


def sample(
    model: Annotated[str, typer.Option(help="A model of the zoo, or the path of one.")],
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=job.MOST_SAMPLES, help="Samples for each seed.")] = 1,
    seed: Annotated[str, typer.Option(help="Seeds: 7, 0..15 or 1,5,9.")] = "0",
    label: Annotated[str | None, typer.Option(help="Class: a number or name; several go round, as 0..9.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Words, for a model that takes words.")] = None,
    negative: Annotated[str | None, typer.Option(help="Words that guidance moves away from.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels, if not the model's own.")] = None,
    cond: Annotated[list[str] | None, typer.Option(help="Any other condition, as name=value.")] = None,
    solver: Annotated[str, typer.Option(help="ddim, dpmpp-2m, heun, ..., or mymodule:MySolver.")] = "dpmpp-2m",
    steps: Steps = None,
    nfe: Nfe = None,
    grid: GridName = "logsnr",
    end: End = None,
    plan: Annotated[Path | None, typer.Option(help="A stored plan, in place of solver, steps and grid.")] = None,
    jump: Annotated[
        Path | None, typer.Option(help="Moments of the data: the first part of the run in closed form, at no cost.")
    ] = None,
    guidance: Annotated[list[str] | None, typer.Option(help="Guidance, as cfg:3; several are stacked.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Samples a call, at most; what fits into memory if left out.")
    ] = None,
    slim: Annotated[
        bool,
        typer.Option(
            "--slim", help="Attention in slices, decoding in tiles; by itself where one sample would not fit."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path, typer.Option(help="A .png of all (one a seed: name-{seed}.png), or the numbers as .safetensors or .npz.")
    ] = Path("samples.png"),
    json: Json = False,
) -> None:
    """Draw samples of a model; the file carries version, configuration, seed and model hash, and `fokker rerun` repeats it."""
    provenance.check_suffix(out)
    if plan is not None and (steps is not None or nfe is not None or end is not None):
        raise FokkerError("--plan has its own steps; leave out --steps, --nfe and --end")
    if plan is None and steps is None and nfe is None:
        steps = STEPS
    wanted = job.Job(
        model=model,
        n=n,
        seeds=tuple(spec.seeds(seed)),
        solver=solver,
        steps=steps,
        nfe=nfe,
        grid=grid,
        end=end,
        plan=None if plan is None else choose.stored_plan(plan).json(),
        jump=None if jump is None else str(jump),
        guidance=tuple(guidance or ()),
        negative=negative,
        size=None if size is None else spec.size(size),
        conditions=conditions(label, prompt, cond or []),
        batch=batch,
        slim=slim,
        device=job.device_of(device),
    )
    written, done, seconds = _make(wanted, out)
    last, digest = written[-1]
    said = {"out": str(out), "n": len(done.x0), "nfe": done.nfe, "seconds": round(seconds, 3), "digest": digest}
    if json:
        files = {"files": {str(path): digest for path, digest in written}} if len(written) > 1 else {}
        print_json({**said, **files, "model_sha256": done.sha256})
    else:
        where = str(out) if len(written) == 1 else f"{written[0][0]} to {last}"
        typer.echo(
            f"{where}: {len(done.x0)} samples, {done.nfe:g} evaluations each, {seconds:.1f} s; see `fokker rerun {last}`"
        )


def conditions(label: str | None, prompt: str | None, cond: list[str]) -> dict[str, Any]:
    """What is asked for, in words."""
    given: dict[str, Any] = {}
    if label is not None:
        ranged = label.replace(".", "").replace(",", "").isdigit() and (".." in label or "," in label)
        given["label"] = [str(value) for value in spec.seeds(label)] if ranged else label
    if prompt is not None:
        given["prompt"] = prompt
    for text in cond:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or name.strip() in given:
            raise FokkerError(f"--cond {text!r} is not understood, or given twice; write name=value")
        given[name.strip()] = value.strip()
    return given


def _make(wanted: "Job", out: Path) -> "tuple[list[tuple[Path, str]], Done, float]":
    """Run a job into its files: these with the digest of what is in each, what was made, seconds."""
    begin = time.perf_counter()
    with Progress("sampling") as bar:
        done = job.run(wanted, lambda made, total: bar.update(made, total))
    if not done.main:
        raise typer.Exit  # the first process writes for all
    shown = None
    if out.suffix.lower() == ".png":
        # seed by seed, so that a seed's picture does not depend on which others there are
        shown = np.concatenate([done.model.decode(part) for part in done.x0.split(wanted.n)])
    ran = dataclasses.replace(done.job, slim=done.model.slim)
    written = []
    for path, seeds, rows in _files(out, ran):
        options = dataclasses.asdict(dataclasses.replace(ran, seeds=seeds))
        record = provenance.record("sample", options, nfe=done.nfe, model_sha256=done.sha256)
        if shown is not None:
            digest = picture.save_page(path, picture.tile(shown[rows]), record)
        else:
            digest = picture.save_numbers(path, done.x0[rows], record)
        written.append((path, digest))
    return written, done, time.perf_counter() - begin


def _files(out: Path, ran: "Job") -> list[tuple[Path, tuple[int, ...], slice]]:
    """Each file with the seeds and the rows that go into it: one of all, or one a seed where its name has {seed}."""
    if SEED not in out.name:
        return [(out, ran.seeds, slice(None))]
    names = (out.with_name(out.name.replace(SEED, str(seed))) for seed in ran.seeds)
    return [
        (name, (seed,), slice(k * ran.n, (k + 1) * ran.n))
        for k, (name, seed) in enumerate(zip(names, ran.seeds, strict=True))
    ]


def rerun(
    file: Annotated[Path, typer.Argument(help="A file that fokker wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it again; NAME.rerun beside it if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it moved.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Only print the record; run nothing.")] = False,
    json: Json = False,
) -> None:
    """Make a file again from the record inside it, and compare the bits; exit code 1 if they differ."""
    record = provenance.read(file)
    if show:
        print_json(record)
        return
    if record["command"] not in ("sample", "restore", "edit"):
        raise FokkerError(f"{str(file)!r} was made by {record['command']!r}, which cannot be rerun")
    out = out or file.with_name(f"{file.stem}.rerun{file.suffix}")
    provenance.check_suffix(out)
    if out.suffix.lower() != file.suffix.lower():
        raise FokkerError(f"--out {str(out)!r} is of another kind than {str(file)!r}; use the same ending")
    if record["command"] == "restore":
        digest, sha256, seconds = restore.again(record["options"], model, out)
    elif record["command"] == "edit":
        digest, sha256, seconds = edit.again(record, model, out)
    else:
        wanted = job.Job.read(record["options"])
        if model is not None:
            wanted = dataclasses.replace(wanted, model=model)
        written, done, seconds = _make(wanted, out)
        (_, digest), sha256 = written[-1], done.sha256
    same = digest == record["digest"]
    if json:
        print_json(
            {"file": str(file), "out": str(out), "identical": same, "digest": digest, "seconds": round(seconds, 3)}
        )
    elif same:
        typer.echo(f"{out}: identical to {file} to the bit")
    else:
        typer.echo(f"{out}: differs from {file}; {_why(record, sha256)}")
    raise typer.Exit(0 if same else 1)


def _why(record: dict[str, Any], sha256: str) -> str:
    """The first thing that is not as it was."""
    now = provenance.record("sample", {}, model_sha256=sha256)
    for name in ("model_sha256", "fokker", "torch"):
        if now[name] != record.get(name):
            return f"{name} was {record.get(name)} and is {now[name]}"
    return "the machine or its number of threads may be another one"
