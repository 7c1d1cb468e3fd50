"""What a diffusers scheduler says about the network behind it: process, prediction, clock, and where it stops on its way.

    scheduler                                   process                     the network is told
    betas (DDIM, DDPM, Euler, DPM-Solver, ...)  TableVP(betas)              the row t n - 1 of the table
    flow matching, `use_flow_sigmas`            Flow()                      1000 t
    EDM (Euler, DPM-Solver)                     EDM(sigma_min, sigma_max)   ln(sigma) / 4
    variance exploding (score SDE)              VE(sigma_min, sigma_max)    sigma

A shift (of SD3, or by resolution of FLUX) is no property of the noising: it only moves the times at which a run stops, and so
belongs to the grid. Zero terminal SNR is in the table.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.grids import Times
from fokker.process import EDM, VE, Flow, Process, TableVP

PREDICTED = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
_TABLES = (
    "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DDIMInverse", "PNDM", "LMSDiscrete", "EulerDiscrete",
    "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep",
    "DPMSolverMultistepInverse", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep", "UniPCMultistep", "SASolver", "LCM",
    "TCD",
)  # fmt: skip
_FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
_EDMS = ("EDMEuler", "EDMDPMSolverMultistep")


@dataclass(frozen=True)
class Row:
    """The row of a table of n betas that the time t is, t n - 1, between rows where t is; not below row 0."""

    n: int

    def __call__(self, t: Tensor) -> Tensor:
        return (t * self.n - 1).clamp_min(0)


@dataclass(frozen=True)
class Scaled:
    """The time in thousandths, `factor` t."""

    factor: float = 1000.0

    def __call__(self, t: Tensor) -> Tensor:
        return t * self.factor


@dataclass(frozen=True)
class NoiseLevel:
    """The noise-to-signal ratio sigma / alpha of a process."""

    process: Process

    def __call__(self, t: Tensor) -> Tensor:
        return self.process.sigma(t) / self.process.alpha(t)


@dataclass(frozen=True)
class LogNoise:
    """ln(sigma / alpha) / 4 of a process, as EDM networks are told."""

    process: Process

    def __call__(self, t: Tensor) -> Tensor:
        return torch.log(NoiseLevel(self.process)(t)) / 4


Clock = Row | Scaled | NoiseLevel | LogNoise


@dataclass(frozen=True)
class Schedule:
    """`process`, `prediction` (of `fokker.process.PREDICTIONS`), `clock` and `sigma_data` of a network, from its scheduler.

    `sign` is -1 where the network predicts the negative of that.
    """

    process: Process
    prediction: str
    clock: Clock
    scheduler: Any
    sigma_data: float = 1.0
    sign: float = 1.0

    def grid(self, steps: int, tokens: int | None = None, spread: bool = False) -> Times:
        """The times of the scheduler's own `steps` steps; a step that would stay where it is is left out.

        `tokens` is the length of the image's sequence, for a shift by resolution; with `spread` the unshifted times are
        1, 1 - 1/steps, ..., 1/steps (as FLUX has it) and not the scheduler's own.
        """
        walker = copy.deepcopy(self.scheduler)
        config = walker.config
        given: dict[str, Any] = {}
        if config.get("use_dynamic_shifting") and tokens is not None:
            given["mu"] = _shift(config, tokens)
        try:
            if spread and not config.get("use_flow_sigmas"):
                walker.set_timesteps(sigmas=[1 - k / steps for k in range(steps)], **given)
            else:
                walker.set_timesteps(steps, **given)
        except (ValueError, TypeError, IndexError) as error:
            name = type(walker).__name__
            raise FokkerError(f"{name} lays out no {steps} steps ({error}); use a grid of fokker.grids") from None
        if hasattr(walker, "set_sigmas"):
            walker.set_sigmas(steps)
        times = self._rows(walker) if self._at_rows(walker) else self._levels(walker.sigmas)
        kept = [t for k, t in enumerate(times) if k == 0 or t < times[k - 1]]
        return Times(values=kept, to_x0=kept[-1] == 0)

    def _levels(self, sigmas: Tensor) -> list[float]:
        """Times of noise levels, 0 where there is no noise."""
        sigmas = sigmas.to("cpu", torch.float64)
        if isinstance(self.process, Flow):
            times = sigmas
        elif isinstance(self.process, EDM):
            times = sigmas / self.process.sigma_max
        else:
            times = torch.where(sigmas > 0, self.process.time(-2 * torch.log(sigmas.clamp_min(1e-300))), 0.0)
        whole: list[float] = times.clamp(0, 1).tolist()
        return whole

    def _at_rows(self, walker: Any) -> bool:
        """Whether the scheduler stops at rows of its table, and not at noise levels between them."""
        spaced = any(
            walker.config.get(f"use_{k}") for k in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
        )
        rows = walker.timesteps.to(torch.float64)
        return isinstance(self.process, TableVP) and not spaced and bool((rows == rows.round()).all())

    def _rows(self, walker: Any) -> list[float]:
        """Times of the rows of a table, and where the scheduler ends: at x_0, or at the first row."""
        assert isinstance(self.process, TableVP)
        n = len(self.process.betas)
        # some schedulers ask some rows twice
        rows = sorted({int(k) for k in walker.timesteps.tolist()}, reverse=True)
        if rows[0] >= n:
            raise FokkerError(
                f"{type(walker).__name__} begins at row {rows[0]} of {n}; set its steps_offset to 0, or use fewer steps"
            )
        if hasattr(walker, "sigmas"):
            whole = float(walker.sigmas[-1]) == 0
        else:
            whole = float(getattr(walker, "final_alpha_cumprod", 1.0)) == 1
        return [(k + 1) / n for k in rows] + [0.0 if whole else 1 / n]


def _shift(config: Mapping[str, Any], tokens: int) -> float:
    """The exponent of the shift, linear in the number of tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu: float = base + (most - base) * (tokens - low) / (high - low)
    return mu


def read_scheduler(scheduler: Any) -> Any:
    """A diffusers scheduler from itself, its config, its folder, or the path of its JSON file."""
    import json

    import diffusers

    if isinstance(scheduler, str | Path):
        path = Path(scheduler)
        path = path / "scheduler_config.json" if path.is_dir() else path
        if not path.is_file():
            raise FokkerError(
                f"there is no scheduler at {str(scheduler)!r}; give the folder of a scheduler_config.json"
            )
        scheduler = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(scheduler, Mapping):
        return scheduler
    name = str(scheduler.get("_class_name", ""))
    known = [f"{k}Scheduler" for k in (*_TABLES, *_FLOWS, *_EDMS, "ScoreSdeVe")]
    if name not in known:
        raise unknown("scheduler", name, known)
    return getattr(diffusers, name).from_config(dict(scheduler))


def read_schedule(scheduler: Any) -> Schedule:
    """The `Schedule` of a scheduler, which is given as itself, its config, or the folder that holds it.

    Raises FokkerError for a scheduler whose networks are no posterior means, or a prediction that says nothing at its ends.
    """
    scheduler = read_scheduler(scheduler)
    config: Any = getattr(scheduler, "config", {})
    kind = type(scheduler).__name__.removesuffix("Scheduler")
    if kind in _FLOWS or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return Schedule(Flow(), "flow", Scaled(float(config.num_train_timesteps)), scheduler)
    if kind in _EDMS:
        edm = EDM(config.sigma_min, config.sigma_max)
        # the scheduler's c_out for a v-prediction is the negative of its c_out for a noise prediction
        sign = -1.0 if config.prediction_type == "v_prediction" else 1.0
        return Schedule(edm, "edm", LogNoise(edm), scheduler, config.sigma_data, sign)
    if kind == "ScoreSdeVe":
        ve = VE(config.sigma_min, config.sigma_max)
        return Schedule(ve, "score", NoiseLevel(ve), scheduler)
    if kind not in _TABLES:
        known = [f"{k}Scheduler" for k in (*_TABLES, *_FLOWS, *_EDMS, "ScoreSdeVe")]
        raise unknown("scheduler", type(scheduler).__name__, known)
    if config.get("timestep_type") == "continuous":
        raise FokkerError(
            f"{kind}Scheduler with timestep_type='continuous' is not read; give the EDM scheduler of the same network"
        )
    process = TableVP(tuple(scheduler.betas.to(torch.float64).tolist()))
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTED:
        raise unknown("prediction type", name, PREDICTED)
    if PREDICTED[name] == "eps" and float(process.alpha(1.0)) < 1e-6:
        raise FokkerError(
            "this table ends without signal (zero terminal SNR), where a prediction of the noise says nothing about x_0; "
            "use prediction_type='v_prediction', or rescale_betas_zero_snr=False"
        )
    return Schedule(process, PREDICTED[name], Row(len(process.betas)), scheduler)
