"""Any plan inside a pipeline of diffusers: a scheduler that runs its rows.

    plan = fk.tune(denoiser, nfe=8, shape=denoiser.shape)            # denoiser = fk.from_diffusers(pipe)
    pipe.scheduler = PlanScheduler.of(plan, pipe.scheduler)
    pipe("a red circle", num_inference_steps=8)

A pipeline calls its network once a step and hands what came out to `step`; a plan's rows without a call are folded into the
step before. Earlier states and beliefs that later rows use are kept here, so multistep, Runge-Kutta, predictor-corrector,
two-state and stochastic plans all run. What is kept belongs to one run and is dropped by `set_timesteps`.
"""

import json
from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fokker.adapt.schedule import Clock, LogNoise, NoiseLevel, Row, Scaled, read_schedule
from fokker.errors import FokkerError, unknown
from fokker.keyed import Brownian
from fokker.loop import combine, compiled
from fokker.plan import Plan

CLOCKS: dict[type[Any], str] = {Row: "row", Scaled: "scaled", NoiseLevel: "level", LogNoise: "log"}


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """The scheduler of a stored plan.

    plan        what `Plan.json` wrote, as a mapping
    prediction  what the network predicts: eps, v, x0, score, flow or edm (with `sigma_data` and the `sign` of its output)
    clock       what the network is told about a time t: "row" (t n - 1 of n = `num_train_timesteps` rows, between rows where t
                is), "scaled" (n t), "level" (sigma / alpha) or "log" (a quarter of its logarithm)
    seed        of the noise of a stochastic plan where the pipeline gives no generator: keyed, each sample has its own

    `init_noise_sigma` is the size of the state that the plan asks about first, below that of the process where a plan starts
    late. Pipelines that draw unit noise and do not multiply it (DDPMPipeline, DDIMPipeline) take only plans whose size is 1.
    Raises FokkerError for a plan that decides its steps as it runs, varies from sample to sample, or draws noise before its
    first call.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        plan: Mapping[str, Any],
        prediction: str = "eps",
        clock: str = "row",
        num_train_timesteps: int = 1000,
        sigma_data: float = 1.0,
        sign: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.plan = Plan.from_json(json.dumps(plan))
        process = self.plan.process
        made: dict[str, Clock] = {
            "row": Row(num_train_timesteps),
            "scaled": Scaled(float(num_train_timesteps)),
            "level": NoiseLevel(process),
            "log": LogNoise(process),
        }
        if clock not in made:
            raise unknown("clock", clock, made)
        if any(isinstance(t, Tensor) for t in self.plan.times) or process.anchored or not self.plan.nfe:
            raise FokkerError(
                "a pipeline runs one time for all samples, on a process without an anchor; lay the plan out so"
            )
        self._told = [float(made[clock](torch.tensor(float(t), dtype=torch.float64))) for t in self.plan.times]
        self._rows = compiled(self.plan)
        self._first = next(row.row for row in self._rows if row.t is not None)
        self._scale = self._of_start()
        self.init_noise_sigma = self._scale * float(process.start(torch.ones((), dtype=torch.float64)))
        self.set_timesteps()

    @classmethod
    def of(cls, plan: Plan, scheduler: Any, seed: int = 0) -> Self:
        """The scheduler of `plan` for the network whose own is `scheduler` (itself, its config, or its folder).

        Raises FokkerError where the plan is laid out on another process than that scheduler's.
        """
        known = read_schedule(scheduler)
        if repr(known.process) != repr(plan.process):
            raise FokkerError(
                f"this plan is laid out for {_short(plan.process)} and the scheduler is on {_short(known.process)}; "
                "lay it out on fk.from_diffusers(pipe).process"
            )
        rows = {Row: "n", Scaled: "factor"}.get(type(known.clock))
        made: Self = cls(
            json.loads(plan.json()),
            known.prediction,
            CLOCKS[type(known.clock)],
            int(getattr(known.clock, rows)) if rows else 1000,
            known.sigma_data,
            known.sign,
            seed,
        )
        return made

    def _of_start(self) -> float:
        """What the first state that is asked about is of the start."""
        share: dict[int, float] = dict.fromkeys(range(self.plan.inputs), 1.0)
        for row in self._rows[self.plan.inputs : self._first + 1]:
            if row.step is not None or any(slot not in share for slot, _ in row.terms):
                raise FokkerError(
                    "this plan does something else than scale the state before its first call; use fokker.run"
                )
            share[row.row] = sum(float(c) * share[slot] for slot, c in row.terms)
        if not share[self._first]:
            raise FokkerError("this plan begins without noise; use fokker.run")
        return share[self._first]

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Begin a run. Raises FokkerError for another number of steps than the plan has calls."""
        if num_inference_steps not in (None, self.plan.nfe):
            raise FokkerError(
                f"num_inference_steps={num_inference_steps}, but the plan makes {self.plan.nfe} calls; use that number"
            )
        self.num_inference_steps = self.plan.nfe
        self.timesteps = torch.tensor(self._told, dtype=torch.float32, device=device)
        self._slots: list[Any] = []
        self._noise: Brownian | None = None
        self._at = 0  # how many instructions ran
        self._calls = 0

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is shown of a state: the state, or for an EDM network the state over its own size."""
        if self.config.prediction != "edm":
            return sample
        alpha, _, sigma = self.plan.process.at(float(self.plan.times[min(self._calls, self.plan.nfe - 1)]))
        return sample / float((alpha**2 * self.config.sigma_data**2 + sigma**2) ** 0.5)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state that is asked about next, or the sample after the last call; `generator` draws a plan's noise."""
        if self._calls >= self.plan.nfe:
            raise FokkerError("all calls of this plan were made; call set_timesteps before the next run")
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        n = len(self.plan.rows)
        if not self._slots:
            self._begin(wide)
        t = float(self.plan.times[self._calls])
        k = self._at - 1  # the row that was asked about
        self._slots[n + k] = self._belief(model_output.to(wide.dtype), wide, t)
        if self._slots[k] is not None:
            # what the pipeline made of the state is the state
            self._slots[k] = wide
        self._calls += 1
        self._forget(k)
        out = self._advance(generator).to(sample.dtype)
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _begin(self, first: Tensor) -> None:
        """The start from the first state, and all rows up to the one that it is."""
        self._fits(first)
        n = len(self.plan.rows)
        self._slots = [None] * (2 * n + len(self.plan.noises) + 1)
        self._slots[-1] = first.new_ones(()).expand(first.shape)
        self._slots[: self.plan.inputs] = [first / self._scale] * self.plan.inputs
        for row in self._rows[: self._first + 1]:
            if row.terms:
                self._slots[row.row] = combine(row.terms, self._slots)
            if row.row < self._first:
                self._forget(row.row)
        self._at = self._first + 1

    def _fits(self, first: Tensor) -> None:
        """FokkerError where a pipeline plainly gives unit noise to a plan that starts from another size."""
        wanted, size = self.init_noise_sigma, float(first.square().mean().sqrt())
        spread = 5 / (2 * first.numel()) ** 0.5
        if abs(size - 1) < spread and abs(size / wanted - 1) > spread:
            raise FokkerError(
                f"this pipeline begins with unit noise and the plan with noise of size {wanted:.4g}; multiply the noise by "
                "scheduler.init_noise_sigma, or tune a plan that starts at t=1"
            )

    def _belief(self, output: Tensor, x: Tensor, t: float) -> Tensor:
        """E[x_0 | x] from what the network put out."""
        process, kind = self.plan.process, self.config.prediction
        output = self.config.sign * output
        if kind != "edm":
            belief: Tensor = process.to_x0(kind, output, x, t)
            return belief
        alpha, _, sigma = process.at(t)
        data = self.config.sigma_data
        s = float((alpha**2 * data**2 + sigma**2) ** 0.5)
        inside: Tensor = (alpha * data**2 / s**2) * x + (sigma * data / s) * output
        return inside

    def _advance(self, generator: Any) -> Tensor:
        """Run rows up to the next that is asked about, or to the end."""
        while self._at < len(self._rows):
            row = self._rows[self._at]
            for slot, a, b in row.draws:
                self._slots[slot] = self._drawn(float(a), float(b), generator)
            if row.terms:
                self._slots[row.row] = combine(row.terms, self._slots)
            self._at += 1
            if row.t is not None:
                state: Tensor = self._slots[row.row]
                return state
            self._forget(row.row)
        result: Tensor = self._slots[self.plan.outputs[0]]
        self._slots = self._slots[:0]
        return result

    def _drawn(self, a: float, b: float, generator: Any) -> Tensor:
        like: Tensor = self._slots[-1]
        if generator is not None:
            from diffusers.utils.torch_utils import randn_tensor

            drawn: Tensor = randn_tensor(tuple(like.shape), generator=generator, device=like.device, dtype=like.dtype)
            return drawn
        if self._noise is None:
            self._noise = Brownian(tuple(like.shape), self.config.seed, None, like.dtype, like.device)
        increment: Tensor = self._noise.increment(a, b)
        return increment

    def _forget(self, k: int) -> None:
        for slot in self._rows[k].free:
            self._slots[slot] = None

    def __len__(self) -> int:
        return self.plan.nfe


def _short(process: Any) -> str:
    text = repr(process)
    return (
        text if len(text) < 80 else f"a table of {len(process.betas)} betas" if hasattr(process, "betas") else text[:80]
    )
