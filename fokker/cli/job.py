"""A sampling job: everything that determines its samples, as plain data that a file can carry and a rerun can read."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fokker.cli import choose, spec
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from torch import Tensor

    from fokker.denoiser import Denoiser
    from fokker.model import Model
    from fokker.plan import Plan
    from fokker.solve.teleport import GaussianTeleport

MOST_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Job:
    """`n` samples of a model for each seed.

    model       a name of the zoo or a path
    plan        the JSON of a stored plan, in place of solver, steps, nfe, grid and end
    guidance    wrappers as `cfg:3`, the first one innermost
    conditions  what is asked for, in words; a list goes round over the samples
    negative    what guidance moves away from, in words, in place of nothing
    jump        a file of moments, by which the run begins in mid-way (`fokker.solve.teleport`)
    size        height and width of the pictures, if not the model's own
    batch       samples a call, at most; as many as fit into memory where None. Rounding may depend on it
    slim        attention in slices and a codec in tiles, which needs less memory; so anyway where one sample does not fit
    """

    model: str
    n: int = 1
    seeds: tuple[int, ...] = (0,)
    solver: str = "dpmpp-2m"
    steps: int | None = None
    nfe: int | None = None
    grid: str = "logsnr"
    end: float | None = None
    plan: str | None = None
    guidance: tuple[str, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    negative: str | None = None
    jump: str | None = None
    size: tuple[int, int] | None = None
    batch: int | None = None
    slim: bool = False
    device: str = "cpu"

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> "Job":
        """The job of a record; raises FokkerError for one of another version."""
        names = {f.name for f in dataclasses.fields(cls)}
        strange = set(options) - names
        if strange or "model" not in options:
            raise FokkerError(
                f"the record has options {sorted(strange)} that this version does not know; use its own version"
            )
        lists = {name: tuple(options[name]) for name in ("seeds", "guidance", "size") if options.get(name)}
        return cls(**{**options, **lists})

    def laid(self, on: "Denoiser", start: float | None = None) -> "Plan":
        """The plan that this job runs, from `start` on."""
        from fokker.plan import Plan

        if self.plan is None:
            return choose.plan(self.solver, on.process, self.steps, self.nfe, self.grid, self.end, start)
        plan = Plan.from_json(self.plan)
        if start is not None and plan.start != start:
            raise FokkerError(f"the jump ends at t={start:g} and the plan begins at t={plan.start}; give one that fits")
        return plan


@dataclass(frozen=True)
class Done:
    """What a job made: samples (seeds * n, ...) in the denoiser's space, and what they took.

    `job` is the job with the batch that was taken and whether it was slim, on which the rounding depends.
    Of several processes only the first one holds the samples; `main` says whether this is it.
    """

    job: Job
    x0: "Tensor"
    model: "Model"
    sha256: str
    nfe: float
    main: bool = True


def run(job: Job, show: Callable[[int, int], None] = lambda done, total: None) -> Done:
    """Run a job; `show` is told after each evaluation how many of all were made."""
    import torch

    from fokker import batches
    from fokker import model as models
    from fokker import run as run_plan
    from fokker.ranks import ranks

    team = ranks(cpu=job.device == "cpu")
    path, device = models.locate(job.model), device_of(job.device)
    model = models.load(path, device, job.size)
    denoiser: Denoiser = model.denoiser
    if denoiser.process.anchored:
        raise FokkerError(
            f"{job.model!r} restores an observation and does not sample from nothing; use fokker restore --model {job.model}"
        )
    shape = shape_of(model)
    jump = None if job.jump is None else _jump(job.jump, denoiser, shape)
    plan = job.laid(denoiser, None if jump is None else jump.t)
    cond, away = conditions_of(model, job), negative_of(model, job)
    one, eps = {k: value[:1] for k, value in cond.items()}, denoiser.process.sample_noise((1, *shape), device=device)
    single = guided(denoiser, job.guidance, away)
    smaller = model.save_memory
    if job.slim:
        smaller()
    most = job.batch or batches.size(
        lambda: single(denoiser.process.start(eps), 1.0, **one), device=device, smaller=smaller
    )
    # the parts must not depend on who is there to make them
    most, slim = team.agreed((min(most, job.n), model.slim))
    if slim:
        smaller()
    parts = [(seed, i, min(i + most, job.n)) for seed in job.seeds for i in range(0, job.n, most)]
    total, finished, nfe = max(plan.nfe, 1) * len(job.seeds) * job.n, 0, 0.0

    def one_part(seed: int, first: int, last: int) -> "Tensor":
        nonlocal finished, nfe
        ids, made = range(first, last), 0

        def watch(*_: object) -> None:
            nonlocal made
            made += len(ids) * team.size
            show(min(finished + made, int(total)), total)

        eps = denoiser.process.sample_noise((len(ids), *shape), seed, ids, device=device)
        here = {name: value[first:last] for name, value in cond.items()}
        wrapped = guided(denoiser, job.guidance, {k: v.expand(len(ids), *v.shape[1:]) for k, v in away.items()})
        begin = wrapped.process.start(eps)
        if jump is not None:
            begin = jump(begin, here.get("label") if jump.law.labels is not None else None)
        trace = run_plan(wrapped, begin, plan, seed=seed, ids=list(ids), watch=watch, **here)
        finished, nfe = finished + made, trace.nfe
        x_0: Tensor = trace.x0.cpu()
        return x_0

    def survived(part: tuple[int, int, int]) -> "Tensor":
        seed, first, last = part
        return batches.over(last - first, most, lambda i, j: one_part(seed, first + i, first + j), smaller)

    found = team.map(parts, survived)
    x0 = torch.cat(found) if found is not None else torch.empty(0)
    return Done(dataclasses.replace(job, batch=most, slim=model.slim), x0, model, models.digest(path), nfe, team.main)


def _jump(path: str, denoiser: "Denoiser", shape: tuple[int, ...]) -> "GaussianTeleport":
    """The jump of a file; raises FokkerError unless it is of this process and of data of this shape."""
    from fokker.solve.teleport import GaussianTeleport

    jump = GaussianTeleport.load(path)
    jump.check(denoiser)
    if jump.law.shape != shape:
        raise FokkerError(f"{path!r} has moments of data of shape {jump.law.shape}, the model makes {shape}")
    return jump


def guided(denoiser: "Denoiser", wrappers: Sequence[str], negative: "Mapping[str, Tensor] | None" = None) -> "Denoiser":
    """The denoiser in wrappers as `cfg:3`, the first one innermost; `negative` goes to the one that guides."""
    from fokker import catalogue, guide

    for text in wrappers:
        named = spec.method(text)
        options: dict[str, Any] = {}
        if negative and "negative" in inspect.signature(catalogue.find("guidance", named.name)[0]).parameters:
            options, negative = {"negative": dict(negative)}, None
        with choose.own_code(named.name):
            denoiser = choose.build("guidance", named, denoiser, **options)
        if not isinstance(denoiser, guide.Wrapper):
            raise FokkerError(f"{text!r} is a {type(denoiser).__name__}, not a wrapper around a denoiser")
    if negative:
        raise FokkerError("--negative says what guidance moves away from; give it with --guidance, such as cfg:7.5")
    return denoiser


def negative_of(model: "Model", job: Job) -> "dict[str, Tensor]":
    """The conditions to move away from, one row; those that are not words stay as they are asked for."""
    if job.negative is None:
        return {}
    return conditions_of(model, dataclasses.replace(job, n=1, conditions={**job.conditions, "prompt": job.negative}))


def conditions_of(model: "Model", job: Job) -> dict[str, "Tensor"]:
    """The job's conditions as tensors of n rows; `prompt` stands for the model's condition that is made of words."""
    from fokker.data.words import PAD

    words = {name for name, c in model.conditions.items() if len(c.shape) == 1 and PAD in c.names}
    out: dict[str, Tensor] = {}
    for name, text in job.conditions.items():
        known = next(iter(words), "") if name == "prompt" and name not in model.conditions else name
        if not known:
            accepted = ", ".join(model.conditions) or "none"
            raise FokkerError(f"model {job.model!r} takes no --prompt; the conditions that it takes: {accepted}")
        texts = text if isinstance(text, list) else [text]
        c = model.conditions.get(known)
        values: list[Any] = list(texts)
        if c is not None and not c.discrete:
            values = [_number(name, value, c.shape) for value in texts]
        elif c is not None and c.shape and known not in words:
            values = [[c.names.index(v) if v in c.names else _number(name, v, ()) for v in t.split(",")] for t in texts]
        rows = [i % len(values) for i in range(job.n)]
        out |= {key: made[rows] for key, made in model.condition(len(values), **{known: values}).items()}
    return out


def _number(name: str, text: str, shape: tuple[int, ...]) -> Any:
    """A number, or a list of as many as `shape` wants."""
    value = spec.literal(text)
    wanted = list if shape else int | float
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise FokkerError(f"{name}={text!r} is not {'a list of numbers such as [0.5,1]' if shape else 'a number'}")
    return value


def device_of(name: str) -> str:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        raise FokkerError(
            f"device {name!r} is not here; use auto or cpu" + (" or cuda" if torch.cuda.is_available() else "")
        )
    return name


def shape_of(model: "Model") -> tuple[int, ...]:
    """The shape of one sample in the denoiser's space."""
    return model.x_shape


def check_writable(*paths: Path | None) -> None:
    """FokkerError, before any work is done, unless files can be written to all of these names."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise FokkerError(
                f"{str(path)!r} is a folder, or lies in one that does not exist; give the name of a new file"
            )
