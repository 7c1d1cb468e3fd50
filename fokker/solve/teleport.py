"""The first part of a trajectory in closed form: where there is much noise, all data look like a Gaussian."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker import store
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import LogSNR
from fokker.laws.algebra import gaussian, mixture
from fokker.laws.forms import as64
from fokker.laws.law import Law
from fokker.laws.mixture import GaussianMixture
from fokker.loop import run
from fokker.process import Process, Time, as_time

FORMAT = "fokker moments 1"


@dataclass(frozen=True, eq=False)
class GaussianTeleport:
    """Noise is carried from t = 1 to time `t` by the flow of a Gaussian, in one product and no call; any solver finishes.

        x_t = alpha_t mu + sum_k (psi_k(t) / psi_k(1)) u_k u_k^T (x_1 - alpha_1 mu),  psi_k^2 = alpha^2 lambda_k + sigma^2

        jump = GaussianTeleport.fit(data, process, t=0.3)
        x0 = fk.sample(denoiser, jump(fk.noise((64, *data.shape[1:]))), solver="heun", steps=5, start=jump.t)

    `law` is any mixture, of which the mean and covariance are taken; with labels each class has its own (`label=` of a call,
    -1 for all classes), which is what guidance wants. States keep the right noise level, so that stochastic solvers may go on
    from there. Jump from the space that the model works in: moments of latents for a latent model. Where modes have begun to
    separate, a jump pulls samples to the mean: `deviation` measures it on a model, `until` chooses t by it.

    Raises FokkerError for t outside [0, 1) and for processes with an anchor, heavy tails or tokens.
    Reference: Wang & Vastola 2023, arXiv 2303.02490.
    """

    law: GaussianMixture
    process: Process
    t: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.t < 1:
            raise FokkerError(f"t={self.t} is not accepted; a jump from t = 1 ends at a time in [0, 1)")
        if self.process.anchored or self.process.tokens or self.process.dof is not None:
            raise FokkerError(f"GaussianTeleport needs a plain process with normal noise, not {self.process.name}")
        labels = self.law.labels
        names = [] if labels is None else sorted(set(labels.tolist()))
        whole = {-1: gaussian(self.law)}
        object.__setattr__(self, "_moments", whole | {c: gaussian(self.law.conditional(c)) for c in names})

    @classmethod
    def fit(
        cls,
        data: Tensor,
        process: Process,
        t: float = 0.4,
        rank: int | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> "GaussianTeleport":
        """From the mean and covariance of `data` (n, *shape), those of each class if there are `labels` (n,).

        `rank` keeps so many principal components and one variance for all other directions, None keeps all; the cost is
        that of the eigenvectors of the smaller of n x n and dim x dim.
        """
        points = as64(data)
        if points.ndim < 2 or len(points) < 2 or not bool(torch.isfinite(points).all()):
            raise FokkerError(f"data has shape {tuple(points.shape)}; give finite numbers (n, ...) with n > 1")
        shape, flat = tuple(points.shape[1:]), points.flatten(1)
        if labels is None:
            return cls(_fitted(flat, rank, shape), process, t)
        classes = torch.as_tensor(labels, dtype=torch.int64, device=flat.device)
        if classes.shape != (len(flat),) or bool((classes < 0).any()):
            raise FokkerError(f"labels have shape {tuple(classes.shape)} for {len(flat)} items; give one each, not negative")
        names = sorted(set(classes.tolist()))
        members = [flat[classes == c] for c in names]
        laws = [_fitted(points, rank, shape) for points in members]
        return cls(mixture(laws, [float(len(points)) for points in members], names), process, t)

    def moments(self, label: int = -1) -> GaussianMixture:
        """The Gaussian of a class, or of all data, as a law of one component; its denoiser is Wiener's filter."""
        known: dict[int, GaussianMixture] = self._moments  # type: ignore[attr-defined]
        if label not in known:
            raise FokkerError(f"there are no moments of class {label}; known: {sorted(known)} (-1 stands for all data)")
        return known[label]

    def __call__(self, x_1: Tensor, label: int | Tensor | None = None) -> Tensor:
        """The states at time `t` from those at t = 1, (batch, *shape); `label` one class or (batch,)."""
        return self.carry(x_1, 1.0, self.t, label)

    def carry(self, x: Tensor, t: Time, s: Time, label: int | Tensor | None = None) -> Tensor:
        """The Gaussian's flow from time t to time s, numbers, in either order; raises FokkerError where it has no density."""
        shape = self.law.shape
        if x.shape[1:] != shape:
            raise FokkerError(f"states of shape {tuple(x.shape)} for moments of data of shape {shape}")
        wanted = torch.as_tensor(-1 if label is None else label, dtype=torch.int64, device="cpu")
        if wanted.ndim == 0:
            return self._carried(x, t, s, self.moments(int(wanted)))
        if wanted.shape != (len(x),):
            raise FokkerError(f"label has shape {tuple(wanted.shape)} for {len(x)} states; give one each")
        out = torch.empty_like(x)
        for c in sorted(set(wanted.tolist())):
            rows = (wanted == c).to(x.device)
            out[rows] = self._carried(x[rows], t, s, self.moments(c))
        return out

    def _carried(self, x: Tensor, t: Time, s: Time, law: GaussianMixture) -> Tensor:
        law = law.to(x.device)
        (a, _, b), (c, _, d) = self.process.at(float(t)), self.process.at(float(s))
        variances = torch.cat([law.eigenvalues[0], law.variance])
        if b == 0 and bool((variances == 0).any()):
            raise FokkerError(f"a direction has neither variance nor noise at t={float(t):g}; start where there is noise")
        gains = ((c * c * variances + d * d) / (a * a * variances + b * b)).sqrt()
        mean, basis, inside, outside = law.means[0], law.basis[0], gains[:-1], gains[-1]
        y = x.flatten(1).to(torch.float64) - a * mean
        moved = c * mean + outside * y + ((y @ basis) * (inside - outside)) @ basis.T
        return moved.to(x.dtype).reshape(x.shape)

    def path(self, x_1: Tensor, times: Tensor, label: int | Tensor | None = None) -> Tensor:
        """The trajectory that the Gaussian predicts, (times, batch, *shape)."""
        return torch.stack([self.carry(x_1, 1.0, t, label) for t in as_time(times).tolist()])

    def deviation(
        self, denoiser: Denoiser, x_1: Tensor, steps: int = 48, start: float = 1.0, **cond: Cond
    ) -> tuple[Tensor, Tensor]:
        """(times, how far the jump would be from the denoiser's own trajectory there, RMS over RMS of the state), (steps,).

        The trajectory is that of dpmpp-2m in equal steps of log-SNR. With guidance around the denoiser it is the guided one.
        Moments are those of the class `label` where the run has that condition and they are known, else those of all data.
        """
        self.check(denoiser)
        label = cond.get("label") if self.law.labels is not None else None
        seen: list[tuple[float, float]] = []

        def watch(context: Any, x: Tensor, belief: Tensor) -> None:
            t = float(context.t)
            gap = (self.carry(x_1, 1.0, t, label) - x).to(torch.float64)
            seen.append((t, float(gap.square().mean().sqrt() / x.to(torch.float64).square().mean().sqrt())))

        run(denoiser, x_1, solver="dpmpp-2m", grid=LogSNR(steps, start=start), watch=watch, **cond)
        times, far = zip(*seen, strict=True)
        return torch.tensor(times, dtype=torch.float64), torch.tensor(far, dtype=torch.float64)

    def until(
        self, denoiser: Denoiser, x_1: Tensor, tolerance: float = 0.02, steps: int = 48, **cond: Cond
    ) -> "GaussianTeleport":
        """The same jump to the last time at which its `deviation` is within `tolerance`, for which a few x_1 are enough.

        Raises FokkerError where there is none.
        """
        times, far = self.deviation(denoiser, x_1, steps, **cond)
        beyond = (far > tolerance).nonzero()
        last = int(beyond[0]) - 1 if len(beyond) else len(times) - 1
        if last < 1:
            raise FokkerError(
                f"these moments are {float(far[1]):.2g} off the model's trajectory one step from t = 1, beyond "
                f"tolerance={tolerance}; are they of the space and the classes that the model works on?"
            )
        return GaussianTeleport(self.law, self.process, float(times[last]))

    def save(self, path: str | Path) -> Path:
        """Write moments, process and time to one safetensors file."""
        law, labels = self.law, self.law.labels
        basis, values, variance = law.form
        tensors = {
            "means": law.means, "basis": basis, "eigenvalues": values, "variance": variance, "log_weights": law.log_weights
        }  # fmt: skip
        header = {
            "format": FORMAT,
            "shape": list(law.shape),
            "labels": None if labels is None else labels.tolist(),
            "process": self.process.config,
            "t": self.t,
        }
        store.write(path, tensors, header)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "GaussianTeleport":
        """What `save` wrote; raises FokkerError for any other file."""
        from fokker.model import build_process

        tensors, header = store.read(path)
        if header.get("format") != FORMAT:
            raise FokkerError(f"{path} is a {header.get('format')!r}, not moments; write them with GaussianTeleport.save")
        labels = None if header["labels"] is None else torch.tensor(header["labels"])
        form = tensors["basis"], tensors["eigenvalues"], tensors["variance"]
        law = GaussianMixture.build(tensors["log_weights"], tensors["means"], form, labels, tuple(header["shape"]))
        return cls(law, build_process(header["process"]), header["t"])

    def check(self, denoiser: Denoiser) -> None:
        """Raise FokkerError unless the denoiser is on the process of these moments."""
        if repr(denoiser.process) != repr(self.process):
            raise FokkerError(f"the denoiser is on {denoiser.process!r} and these moments on {self.process!r}")


def _fitted(points: Tensor, rank: int | None, shape: tuple[int, ...]) -> GaussianMixture:
    """The Gaussian of the moments of points (n, dim), as a law of one component."""
    n, dim = points.shape
    if rank is not None and not 0 <= rank <= dim:
        raise FokkerError(f"rank={rank} is not accepted for data of dimension {dim}; give 0 .. dim, or None")
    mean = points.mean(0)
    y = (points - mean) / n**0.5
    if n < dim:
        values, left = torch.linalg.eigh(y @ y.T)
        # rounding has no direction
        kept = values > dim * 1e-15 * values[-1:].clamp_min(1e-300)
        values, vectors = values[kept], y.T @ (left[:, kept] / values[kept].sqrt())
    else:
        values, vectors = torch.linalg.eigh(y.T @ y)
    top = len(values) if rank is None else min(rank, len(values))
    values, vectors = values[len(values) - top :].clamp_min(0), vectors[:, vectors.shape[1] - top :]
    total = y.square().sum()
    left_out = total - values.sum()
    rest = torch.where(left_out > dim * 1e-15 * total, left_out, torch.zeros_like(total)) / max(dim - top, 1)
    form = vectors[None], values[None], (rest if top < dim else values.amax())[None]
    return GaussianMixture.build(torch.zeros(1, dtype=torch.float64), mean[None], form, None, shape)


def feature_times(law: Law, process: Process) -> Tensor:
    """When each principal direction of the data commits, alpha^2 lambda_k = sigma^2, the largest variance first, (dim,).

    Times are in [0, 1]; outline comes first and detail last. Reference: Wang & Vastola 2023, arXiv 2303.02490.
    """
    return process.time(-torch.log(_spectrum(law).clamp_min(1e-300)))


def perturbation_gain(law: Law, process: Process, t: Time) -> Tensor:
    """How much of a perturbation of x_t along each principal direction arrives in x_0: sqrt(lambda_k) / psi_k(t), (dim,)."""
    alpha, _, sigma = process.at(float(t))
    values = _spectrum(law)
    return (values / (alpha**2 * values + sigma**2)).sqrt()


def _spectrum(law: Law) -> Tensor:
    """The eigenvalues of a law's covariance from the largest down, (dim,)."""
    values: Tensor = torch.linalg.eigvalsh(law.cov())
    return values.flip(0).clamp_min(0)
