"""Several modalities, each with its own noise level: one network that knows every marginal, conditional and joint law.

A `JointDenoiser` answers E[x_m | all noisy parts] for parts at different times. Time says what is asked: a part at time 0 is
known, a part at time 1 is pure noise and says nothing, parts that share a time are drawn together. So

    joint()                      every part at t
    marginal("image")            the image at t, the others noise at time 1
    conditional("image", text=y) the image at t, the text known at time 0, the others noise

are ordinary denoisers of the free parts, on which every solver and wrapper works.

Reference: Bao et al. 2023, arXiv 2303.06555 (UniDiffuser).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError, unknown
from fokker.laws.law import Level
from fokker.laws.mixture import GaussianMixture
from fokker.process import Process, Time, as_time

Parts = dict[str, Tensor]
Times = Mapping[str, Time]
Shapes = Mapping[str, Sequence[int]]


class JointDenoiser(nn.Module, ABC):
    """E[x_m | x_1 at t_1, x_2 at t_2, ...] for every part m.

    `shapes` {name: shape of one sample} names the parts in order; `process` is one plain process, or {name: Process}.
    Subclasses define `beliefs(x, t, **cond)`: x {name: (batch, *shape)} and t {name: one time or (batch,)} to {name: belief}.
    """

    def __init__(self, shapes: Shapes, process: Process | Mapping[str, Process]) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if len(self.shapes) < 2:
            raise FokkerError(f"parts {list(shapes)}: a joint denoiser has at least two; use a plain denoiser for one")
        self.processes = dict(process) if isinstance(process, Mapping) else dict.fromkeys(self.shapes, process)
        if set(self.processes) != set(self.shapes) or any(p.anchored or p.tokens for p in self.processes.values()):
            raise FokkerError(f"give one plain process, or one for each of {', '.join(self.shapes)}")

    @abstractmethod
    def beliefs(self, x: Parts, t: Times, **cond: Cond) -> Parts:
        """The belief about every part."""

    def forward(self, x: Parts, t: Times, **cond: Cond) -> Parts:
        return self.beliefs(x, t, **cond)

    def joint(self, scale: float = 1.0) -> "View":
        """All parts together, as states packed by `pack`; guided away from independent parts where scale is not 1."""
        return View(self, list(self.shapes), {}, scale)

    def marginal(self, *free: str) -> "View":
        """One part, or some together, whatever the others."""
        return View(self, list(free), {})

    def conditional(self, *free: str, scale: float = 1.0, **given: Tensor) -> "View":
        """The free parts, given others (batch, *shape); scale 1 is no guidance, which here needs no training of its own."""
        if not given:
            raise FokkerError("conditional(...) needs a part that is given, as name=tensor; use marginal(...) without")
        return View(self, list(free), given, scale)

    def pack(self, parts: Parts, names: Sequence[str] | None = None) -> Tensor:
        """Parts as one state: the part itself if it is one, else (batch, all numbers)."""
        chosen = list(self.shapes) if names is None else list(names)
        if len(chosen) == 1:
            return parts[chosen[0]]
        return torch.cat([parts[name].flatten(1) for name in chosen], 1)

    def unpack(self, state: Tensor, names: Sequence[str] | None = None) -> Parts:
        """The parts of a state."""
        chosen = list(self.shapes) if names is None else list(names)
        sizes = [math.prod(self.shapes[name]) for name in chosen]
        if state[0].numel() != sum(sizes):
            raise FokkerError(f"a state of shape {tuple(state.shape)} does not hold {', '.join(chosen)}, {sum(sizes)} numbers")
        split = state.flatten(1).split(sizes, 1)
        return {name: part.reshape(-1, *self.shapes[name]) for name, part in zip(chosen, split, strict=True)}


class View(Denoiser):
    """The denoiser of some parts, with the others given or lost.

    Guidance: scale D(given) + (1 - scale) D(given lost) for a conditional; for a joint of all parts each part's own marginal is
    what is moved away from. Parts of other processes than the first free one are met at equal log-SNR. The noise in place of a
    lost part is fresh at every call, keyed by sample and row.
    """

    evaluations = 0

    def __init__(self, inner: JointDenoiser, free: list[str], given: Parts, scale: float = 1.0) -> None:
        for name in [*free, *given]:
            if name not in inner.shapes:
                raise unknown("part", name, inner.shapes)
        if not free or len({*free, *given}) != len(free) + len(given):
            raise FokkerError(f"free {free} and given {list(given)}: at least one part is free, and none is named twice")
        for name, value in given.items():
            if tuple(value.shape[1:]) != inner.shapes[name]:
                raise FokkerError(f"{name} has shape {tuple(value.shape)}; give (batch, *{inner.shapes[name]})")
        super().__init__(inner.processes[free[0]])
        self.inner, self.free, self.given, self.scale = inner, free, given, float(scale)
        self.stackable = not given
        guided = len(free) > 1 and not given
        if self.scale != 1 and not given and not guided:
            raise FokkerError("a marginal has nothing to be guided by; leave out scale")

    @property
    def conditions(self) -> None:
        return None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        parts = self.inner.unpack(x_t, self.free)
        tied, scales = self._tied(t, x_t)
        states = {name: parts[name] * scales[name] for name in self.free}
        known = {name: value.to(x_t) for name, value in self.given.items()}
        full = self._ask(states, tied, known, x_t, cond)
        if self.scale == 1:
            return self.inner.pack(full, self.free)
        if known:
            other = self._ask(states, tied, {}, x_t, cond)
        else:
            alone = (self._ask({name: states[name]}, tied, {}, x_t, cond) for name in self.free)
            other = {name: belief[name] for name, belief in zip(self.free, alone, strict=True)}
        guided = {name: self.scale * full[name] + (1 - self.scale) * other[name] for name in self.free}
        return self.inner.pack(guided, self.free)

    def _tied(self, t: Time, x_t: Tensor) -> tuple[dict[str, Time], dict[str, Tensor | float]]:
        """Each free part's time at the log-SNR of t, and what takes the shared state to its own scale."""
        times: dict[str, Time] = {}
        scales: dict[str, Tensor | float] = {}
        alpha, _, sigma = self.process.coefficients(t, x_t)
        for name in self.free:
            own = self.inner.processes[name]
            times[name], scales[name] = t, 1.0
            if own is not self.process:
                at = own.time(self.process.logsnr(as_time(t)))
                times[name] = at if isinstance(t, Tensor) else float(at)
                a, _, s = own.coefficients(times[name], x_t)
                ratio = ((a**2 + s**2) / (alpha**2 + sigma**2)) ** 0.5
                wide = len(self.inner.shapes[name]) + 1
                scales[name] = ratio.reshape(-1, *[1] * (wide - 1)) if isinstance(ratio, Tensor) else ratio
        return times, scales

    def _ask(self, states: Parts, times: dict[str, Time], known: Parts, x_t: Tensor, cond: dict[str, Cond]) -> Parts:
        """One evaluation: the states at their times, known parts at 0, all others noise at 1."""
        if self.run is not None:
            self.run.evaluations += len(x_t)
        row, seed, ids = (0, 0, None) if self.run is None else (self.run.row, self.run.seed, self.run.ids)
        x, t = dict(states), {name: times[name] for name in states}
        for k, (name, shape) in enumerate(self.inner.shapes.items()):
            if name in known:
                x[name], t[name] = known[name], 0.0
            elif name not in states:
                process = self.inner.processes[name]
                # an index of its own, apart from those of the solvers' noise
                index = 1 << 48 | row << 8 | k
                where = {"stream": "step", "index": index, "dtype": x_t.dtype, "device": x_t.device}
                x[name], t[name] = process.start(process.sample_noise((len(x_t), *shape), seed, ids, **where)), 1.0
        return self.inner.beliefs(x, t, **cond)


def levels(joint: JointDenoiser, name: str, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a part at t as float64 (batch,)."""
    time = as_time(t).to(x.device).expand(len(x))
    return joint.processes[name].alpha(time), joint.processes[name].sigma(time)


class LawJoint(JointDenoiser):
    """The exact beliefs of a mixture whose flat coordinates are the parts one after the other."""

    def __init__(self, law: GaussianMixture, shapes: Shapes, process: Process | Mapping[str, Process]) -> None:
        super().__init__(shapes, process)
        if law.dim != sum(math.prod(shape) for shape in self.shapes.values()):
            raise FokkerError(f"the law has dimension {law.dim}, which is not that of the parts {self.shapes} together")
        self.law = law

    def beliefs(self, x: Parts, t: Times, **cond: Cond) -> Parts:
        flat = self.pack(x).to(torch.float64)
        pairs = [levels(self, name, t[name], flat) for name in self.shapes]
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        alpha, sigma = (
            torch.cat([pair[k][:, None].expand(-1, size) for pair, size in zip(pairs, sizes, strict=True)], 1) for k in (0, 1)
        )
        belief = self.law.belief(flat, Level(alpha, sigma), self.law.prior())
        return self.unpack(belief.to(next(iter(x.values())).dtype))


class NetworkJoint(JointDenoiser):
    """A network net(x, c, **cond) of dictionaries (parts scaled to unit variance, c_noise (batch,) of each) as beliefs.

    Each part is preconditioned by itself as in EDM, D = (alpha sd^2 / s^2) x + (sigma sd / s) F with s^2 = alpha^2 sd^2 +
    sigma^2, and told c_noise = ln(sigma / alpha) / 4 in [-5, 5]; `sigma_data` is one number or {name: number}.
    """

    def __init__(
        self,
        net: nn.Module,
        shapes: Shapes,
        process: Process | Mapping[str, Process],
        sigma_data: float | Mapping[str, float] = 1.0,
    ) -> None:
        super().__init__(shapes, process)
        self.net = net
        self.sigma_data = dict(sigma_data) if isinstance(sigma_data, Mapping) else dict.fromkeys(self.shapes, float(sigma_data))
        if set(self.sigma_data) != set(self.shapes) or any(not sd > 0 for sd in self.sigma_data.values()):
            raise FokkerError(f"sigma_data={sigma_data}: give one number above 0, or one for each of {', '.join(self.shapes)}")

    def beliefs(self, x: Parts, t: Times, **cond: Cond) -> Parts:
        dtype = next(self.net.parameters()).dtype
        inputs, told, mixes = {}, {}, {}
        for name, value in x.items():
            alpha, sigma = levels(self, name, t[name], value)
            sd = self.sigma_data[name]
            s = torch.sqrt(alpha**2 * sd**2 + sigma**2)
            # no signal or no noise at all: the clock stops at its ends
            told[name] = (torch.log(sigma / alpha) / 4).clamp(-5, 5).to(value.device, torch.float32)
            wide = (-1, *[1] * (value.ndim - 1))
            keep, out, scale = (v.reshape(wide).to(value) for v in (alpha * sd**2 / s**2, sigma * sd / s, 1 / s))
            inputs[name], mixes[name] = (value * scale).to(dtype), (keep * value, out)
        answer = self.net({name: inputs[name] for name in self.shapes}, told, **cond)
        return {name: mixes[name][0] + mixes[name][1] * answer[name].to(x[name].dtype) for name in self.shapes}


__all__ = ["JointDenoiser", "LawJoint", "NetworkJoint", "View"]
