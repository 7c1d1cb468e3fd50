"""`fk.from_torch`: any module as a denoiser, whatever it predicts, however it is told the noise level, and on whose scale."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fokker.adapt.network import Told
from fokker.adapt.schedule import LogNoise, NoiseLevel, Row, Scaled
from fokker.denoiser import NetworkDenoiser, _keywords
from fokker.errors import FokkerError, unknown
from fokker.process import EDM, PREDICTIONS, Flow, Process, TableVP

CLOCKS = ("row", "sigma", "c_noise", "t", "1000t")
Clock = Callable[[Tensor], Tensor]


class Foreign(nn.Module):
    """A module behind `net(x, clock, **cond)`: the first of what it returns, of that the first half if a variance follows."""

    def __init__(self, net: nn.Module, null: Mapping[str, Any], learned_variance: bool) -> None:
        super().__init__()
        self.net, self.learned_variance = net, learned_variance
        self.null = {name: torch.as_tensor(value) for name, value in null.items()}
        self.conditions = _keywords(net.forward)

    def forward(self, x: Tensor, clock: Tensor, **cond: Any) -> Tensor:
        for name, none in self.null.items():
            value = cond.get(name)
            if isinstance(value, Tensor) and not value.is_floating_point() and none.ndim == 0:
                cond[name] = torch.where(value < 0, none.to(value), value)
        out: Any = self.net(x, clock, **cond)
        out = getattr(out, "sample", out)
        answer: Tensor = out[0] if isinstance(out, tuple | list) else out
        if self.learned_variance:
            if answer.shape[1] != 2 * x.shape[1]:
                raise FokkerError(
                    f"learned_variance=True, but {answer.shape[1]} channels came out for {x.shape[1]}; leave it out"
                )
            answer = answer[:, : x.shape[1]]
        if answer.shape != x.shape:
            raise FokkerError(
                f"{type(self.net).__name__} gave {tuple(answer.shape)} for x of {tuple(x.shape)}; they must be equal"
            )
        return answer

    def null_conditions(self, **cond: Any) -> dict[str, Any]:
        """The same conditions, meaning "none": as given, else -1 for integers and zeros for other tensors."""
        out = {}
        for name, value in cond.items():
            if name == "y":
                out[name] = value
            elif name in self.null:
                out[name] = self.null[name].to(value).expand_as(value)
            elif isinstance(value, Tensor):
                whole = not value.is_floating_point() and value.dtype != torch.bool
                out[name] = torch.full_like(value, -1) if whole else torch.zeros_like(value)
            else:
                raise FokkerError(f"the condition {name!r} has no known null; give from_torch null={{{name!r}: ...}}")
        return out


def from_torch(
    net: nn.Module,
    process: Process | Sequence[float] | Tensor | None = None,
    prediction: str | None = None,
    *,
    clock: str | Clock | None = None,
    sigma_data: float = 1.0,
    null: Mapping[str, Any] | None = None,
    learned_variance: bool = False,
) -> NetworkDenoiser:
    """Any module `net(x, clock, **cond)` as a denoiser E[x_0 | x_t].

    process     what noised its data: a `Process`, or the betas (n,) of a discrete one. None for a module that states its
                `sigma_min` and `sigma_max`, as EDM networks and the wrappers of k-diffusion do: those answer with x_0 itself at
                x = x_0 + sigma eps, on `EDM(sigma_min, sigma_max)`
    prediction  x0, eps, v, score, flow, or edm for the bare network inside EDM's preconditioning (with `sigma_data`)
    clock       what it is told: "row" t n - 1 of the betas (default for betas), "sigma" sigma / alpha, "c_noise"
                ln(sigma / alpha) / 4, "t" (default for Flow), "1000t", or a function of t; otherwise c_noise
    null        by condition, what stands for none (a class number, an embedding), for guidance; else -1 and zeros
    learned_variance   whether twice the channels come out, of which the second half is a variance

    The conditions are the module's own keywords. An answer may be a tensor, the first of a tuple, or `.sample` of an object.
    Raises FokkerError for names that do not exist, or where process and prediction are not said.
    """
    if not isinstance(net, nn.Module):
        raise FokkerError(
            f"{type(net).__name__} is no torch module; use fk.as_denoiser(function, process) for a function"
        )
    if process is None:
        if clock is not None or prediction not in (None, "x0"):
            raise FokkerError("give process= beside prediction and clock; it says what noised the data")
        process, prediction, clock = _stated(net), "x0", "sigma"
    elif not isinstance(process, Process):
        process = TableVP(tuple(torch.as_tensor(process, dtype=torch.float64).tolist()))
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    if learned_variance and prediction == "score":
        raise FokkerError("a network that predicts the score has no learned variance; leave learned_variance out")
    wrapped = Foreign(net, null or {}, learned_variance)
    return Told(wrapped, process, prediction, sigma_data, _clock(clock, process)).eval()


def _stated(net: nn.Module) -> EDM:
    """The process of a module that states its range of noise levels."""
    low, high = getattr(net, "sigma_min", None), getattr(net, "sigma_max", None)
    if low is None or high is None:
        raise FokkerError(f"{type(net).__name__} states no sigma_min and sigma_max; give process= and prediction=")
    low, high = float(low), float(high)
    # where a network says that it takes any level, EDM's own range
    return EDM(low if low > 0 else EDM.sigma_min, high if high < float("inf") else EDM.sigma_max)


def _clock(clock: str | Clock | None, process: Process) -> Clock | None:
    if callable(clock):
        return clock
    if clock is None:
        if isinstance(process, TableVP):
            return Row(len(process.betas))
        return Scaled(1.0) if isinstance(process, Flow) else None
    if clock == "row":
        if not isinstance(process, TableVP):
            raise FokkerError(f"clock='row' needs betas, but the process is {process.name}; give the betas as process=")
        return Row(len(process.betas))
    known: dict[str, Clock] = {
        "sigma": NoiseLevel(process),
        "c_noise": LogNoise(process),
        "t": Scaled(1.0),
        "1000t": Scaled(1000.0),
    }
    if clock not in known:
        raise unknown("clock", clock, CLOCKS)
    return known[clock]
