"""The arena of inverse problems: every restorer under every operator, against the exact posterior of a mixture."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from fokker import catalogue, grids, solve
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.laws.posterior import posterior
from fokker.loop import run
from fokker.measure import SlicedWasserstein
from fokker.process import Process
from fokker.restore import Operator, Wrapper
from fokker.restore.posterior import Restorer
from fokker.solve import Solver

Maker = Callable[..., Wrapper]
OPERATORS = ("mask:0.5", "downsample:2", "blur:0.8", "gaussian:0.25", "ct:6", "mri:2", "colourise")


@dataclass(frozen=True)
class Row:
    """One restorer under one operator, the mean over measurements; `floor` is what exact posterior samples score.

    mean      RMS distance of the sample mean to the posterior's, in posterior standard deviations
    cov       Frobenius distance of the covariances, relative to the posterior's
    distance  sliced Wasserstein distance to exact samples, in posterior standard deviations
    misfit    RMS of y - A x over the noise level, about 1 for exact samples
    """

    operator: str
    restorer: str
    solver: str
    nfe: float
    mean: float
    mean_floor: float
    cov: float
    cov_floor: float
    distance: float
    floor: float
    misfit: float
    misfit_floor: float
    seconds: float


@dataclass(frozen=True)
class Leaderboard:
    """All rows, what they were measured on, and what was left out and why."""

    rows: tuple[Row, ...]
    subject: str
    process: str
    noise_std: float
    measurements: int
    n: int
    seed: int
    refused: tuple[str, ...]

    def table(self) -> str:
        """The rows of each operator, best distance first, as text."""
        head = f"{'restorer':<30}{'solver':<18}{'nfe':>5}{'mean':>8}{'cov':>8}{'distance':>10}{'misfit':>8}{'ms':>8}"
        lines = [
            f"{self.subject} on {self.process}, noise {self.noise_std:g}: {self.measurements} measurements, {self.n} samples "
            f"each, seed {self.seed}; mean and sliced Wasserstein distance in posterior standard deviations"
        ]
        for operator in dict.fromkeys(r.operator for r in self.rows):
            rows = sorted((r for r in self.rows if r.operator == operator), key=lambda r: r.distance)
            lines += ["", operator, head]
            for r in rows:
                lines.append(
                    f"{r.restorer:<30}{r.solver:<18}{r.nfe:>5g}{r.mean:>8.3f}{r.cov:>8.3f}{r.distance:>10.3f}{r.misfit:>8.2f}"
                    f"{1e3 * r.seconds:>8.0f}"
                )
            first = rows[0]
            lines.append(
                f"{'exact samples':<30}{'':<23}{first.mean_floor:>8.3f}{first.cov_floor:>8.3f}{first.floor:>10.3f}"
                f"{first.misfit_floor:>8.2f}"
            )
        lines += [f"left out: {reason}" for reason in self.refused]
        return "\n".join(lines)

    def json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self), indent=1)

    def plot(self, path: str | Path) -> Path:
        """The distance of every restorer under every operator over the floor of exact samples, as a coloured table."""
        from fokker.restore.scores import scores

        value = {(r.restorer, r.operator): r.distance / r.floor for r in self.rows}
        return scores(value, path, "sliced Wasserstein distance to the posterior, over that of exact samples")


def leaderboard(
    law: GaussianMixture,
    process: Process,
    operators: Sequence[tuple[str, Operator]],
    restorers: Sequence[tuple[str, Maker]] | None = None,
    steps: int = 100,
    noise_std: float = 0.1,
    measurements: int = 4,
    n: int = 256,
    seed: int = 0,
    subject: str = "",
    solver: Solver | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Leaderboard:
    """Every restorer, or those given as (name, function of denoiser, operator, y, noise_std), in `steps` steps to x_0.

    Each with its own solver, or with `solver`, on a grid uniform in t.

    For each operator `measurements` draws of the law are measured, and each measurement restored `n` times; the law's
    posterior is a mixture again, with known mean and covariance. `progress` is called with (done, all). Raises FokkerError
    where a measurement has too little noise for the law, or nothing could be run.
    """
    if not noise_std > 0:
        raise FokkerError(f"noise_std={noise_std} is not accepted; the posterior has a covariance for noise above 0")
    known_restorers = [(name, partial(catalogue.resolve, "restorer", name)) for name in catalogue.names("restorer")]
    makers: Sequence[tuple[str, Maker]] = known_restorers if restorers is None else restorers
    rows: list[Row] = []
    refused: list[str] = []
    jobs = [(o, r) for o in operators for r in makers]
    known: dict[str, _Truth] = {}
    for k, ((label, operator), (name, make)) in enumerate(jobs):
        if progress is not None:
            progress(k, len(jobs))
        try:
            truth = known.get(label) or known.setdefault(label, _Truth.of(law, operator, noise_std, measurements, n, seed))
            many = truth.y.repeat_interleave(n, 0)
            restorer = make(law.denoiser(process), operator, many, noise_std=noise_std)
            rows.append(_score(restorer, label, name, solver, steps, truth, law.shape, n, seed))
        except FokkerError as problem:
            refused.append(f"{name} under {label}: {problem}")
    if not rows:
        raise FokkerError(f"nothing could be run: {refused[0] if refused else 'no operator and restorer were given'}")
    return Leaderboard(tuple(rows), subject, repr(process), noise_std, measurements, n, seed, tuple(refused))


@dataclass(frozen=True)
class _Truth:
    """The measurements of an operator with their posteriors, and two sets of exact samples of each."""

    operator: Operator
    noise_std: float
    y: Tensor
    laws: list[GaussianMixture]
    samples: list[Tensor]
    others: list[Tensor]

    @classmethod
    def of(cls, law: GaussianMixture, operator: Operator, noise_std: float, m: int, n: int, seed: int) -> "_Truth":
        y = operator.measure(law.sample(m, seed), noise_std, seed)
        matrix = operator(torch.eye(law.dim, dtype=torch.float64).reshape(-1, *law.shape)).flatten(1).T
        rows = matrix.abs().sum(1) > 1e-12  # hidden pixels measure nothing
        laws = [posterior(law, matrix[rows], one.flatten()[rows], noise_std) for one in y]
        sets = [[p.sample(n, seed + s).flatten(1) for p in laws] for s in (1, 2)]
        return cls(operator, noise_std, y, laws, *sets)

    @cached_property
    def floors(self) -> tuple[float, float, float]:
        """What exact samples score against exact ones."""
        return self.errors(self.others)

    def misfit(self, x: Tensor) -> float:
        """RMS of y - A x over the noise level, x (measurements * n, ...)."""
        many = self.y.repeat_interleave(len(x) // len(self.y), 0)
        off = self.operator.seen(many - self.operator(x)).square().sum() / self.operator.seen(torch.ones_like(many)).sum()
        return float(off.sqrt()) / self.noise_std

    @cached_property
    def misfit_floor(self) -> float:
        """The misfit of exact samples."""
        return self.misfit(torch.cat([x.reshape(-1, *p.shape) for x, p in zip(self.samples, self.laws)]))

    def errors(self, found: list[Tensor]) -> tuple[float, float, float]:
        """(mean, cov, distance) of sets of samples (n, dim), the mean over the measurements."""
        distance = SlicedWasserstein(projections=64)
        total = torch.zeros(3, dtype=torch.float64)
        for x, law, exact in zip(found, self.laws, self.samples, strict=True):
            cov = law.cov()
            std = float(cov.diagonal().mean().sqrt())
            off = x.mean(0) - law.mean().flatten()
            total += torch.tensor(
                [
                    float(off.square().mean().sqrt()) / std,
                    float((torch.cov(x.T) - cov).norm() / cov.norm()),
                    distance(x, exact).value / std,
                ],
                dtype=torch.float64,
            )
        mean, spread, far = (total / len(found)).tolist()
        return mean, spread, far


def _score(
    restorer: Wrapper,
    label: str,
    name: str,
    solver: Solver | None,
    steps: int,
    truth: _Truth,
    shape: tuple[int, ...],
    n: int,
    seed: int,
) -> Row:
    if not isinstance(restorer, Restorer):
        raise FokkerError(f"{name} is no restorer of the contract; subclass fokker.restore.posterior.Restorer")
    process, many = restorer.process, len(restorer.measured)
    called, options = restorer.solver
    chosen = solver or solve.get(called, **options)
    begin = time.perf_counter()
    plan = chosen.plan(process, grids.Uniform(steps, end=0))
    trace = run(restorer, process.start(noise((many, *shape), seed, dtype=torch.float64)), plan, seed=seed)
    seconds = time.perf_counter() - begin
    mean, cov, distance = truth.errors([x.flatten(1) for x in trace.x0.split(n)])
    floors = truth.floors
    eta = getattr(chosen, "eta", 0.0)
    words = type(chosen).__name__ + (f" eta={eta:g}" if eta else "")
    found = (mean, floors[0], cov, floors[1], distance, floors[2], truth.misfit(trace.x0), truth.misfit_floor)
    return Row(label, name, words, trace.nfe, *found, seconds)


def pairs_of_digits(components: int = 2, rank: int = 24) -> GaussianMixture:
    """A mixture (2, 8, 8) fitted to digits times a smooth random phase, real and imaginary part: an exact prior of small
    images.

    Two channels, so that it can be scanned (a complex picture) and greyed (a colour picture of two colours).
    """
    from fokker.data.toys import digits
    from fokker.keyed import uniform

    train = digits.build(split="train")
    x, label = (train.x.double() + 1) / 2, train.label
    u = uniform((len(x), 3), 0, stream="law") - 0.5
    at = torch.linspace(-1, 1, 8, dtype=torch.float64)
    angle = 0.785 + 0.8 * u[:, :1, None] + 0.8 * u[:, 1:2, None] * at[:, None] + 0.8 * u[:, 2:, None] * at
    complex_ = torch.cat([x * torch.cos(angle)[:, None], x * torch.sin(angle)[:, None]], 1)
    law = GaussianMixture.fit(complex_, components=components, rank=rank, labels=label, floor=1e-2)
    return GaussianMixture.build(law.log_weights, law.means, law.form, None, law.shape)
