"""The training loop: a pure function of samples seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fokker import store
from fokker.data.source import Source
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.errors import FokkerError, unknown
from fokker.train.ema import EMA, Average
from fokker.train.feed import Feed
from fokker.train.objective import Objective, Tensors
from fokker.train.optimiser import Optimiser, flag, pace
from fokker.train.rate import Rate
from fokker.train.report import Report, say
from fokker.train.shard import gathered, local, shard, synchronise, whole
from fokker.train.state import Checkpoints, State

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = ("auto", "no", "bf16")


class Step(nn.Module):
    """What is trained, as one module: everything inside is moved, wrapped for several processes, averaged and saved."""

    def __init__(self, denoiser: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, drawn: Tensors) -> Tensor:
        return self.objective.loss(self.denoiser, drawn)


@dataclass(frozen=True)
class Every:
    """Call `action(trainer)` on the main process whenever a multiple of `samples` was passed, and at the end."""

    samples: int
    action: Callable[["Trainer"], None]


class Trainer:
    """Trains a denoiser on a source under an objective; the contract is in `fokker.train`.

    `run()` goes on from the newest whole checkpoint in `out`, if there is one, to `samples` samples seen, in updates of
    `batch` (over all processes, in `accumulate` parts each). Learning rate, average, data order and noise are functions of
    (seed, samples seen), so it does not matter when or how often a run was interrupted, and the number of processes matters
    only through rounding.

    precision  "no", "bf16" (autocast; weights stay float32) or "auto": bf16 where the accelerator supports it
    sharded    each process keeps a slice of weights and optimiser state (FSDP) in place of a copy
    patience   updates in a row whose loss or gradient is not finite that are skipped before the run stops
    every      samples between checkpoints, of which the last `keep` stay; log_every: samples between log lines
    header     what checkpoints carry beside the state

    Raises FokkerError where the batch does not divide, a checkpoint does not fit, or the loss stays non-finite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        source: Source,
        objective: Objective,
        samples: int,
        batch: int,
        rate: Rate | None = None,
        optimiser: Optimiser | None = None,
        average: Average | None = None,
        seed: int = 0,
        conditions: tuple[str, ...] = (),
        out: str | Path | None = None,
        every: int = 50_000,
        keep: int = 3,
        log_every: int = 5_000,
        tensorboard: bool = False,
        precision: str = "no",
        compile: bool = False,
        accumulate: int = 1,
        sharded: bool = False,
        patience: int = 10,
        callbacks: Sequence[Every] = (),
        header: Mapping[str, Any] | None = None,
        cpu: bool = False,
        quiet: bool = False,
    ) -> None:
        counts = {"samples": samples, "every": every, "log_every": log_every}
        for name, value in (counts | {"patience": patience, "accumulate": accumulate}).items():
            if value < 1:
                raise FokkerError(f"{name}={value} is not accepted; use at least 1")
        self.denoiser, self.source, self.objective = denoiser, source, objective
        self.samples, self.batch, self.seed, self.patience = samples, batch, seed, patience
        self.rate, self.settings = rate or Rate(), optimiser or Optimiser()
        self.every, self.log_every, self.callbacks, self.quiet = every, log_every, tuple(callbacks), quiet
        self.header = dict(header or {})
        self.out = Path(out) if out is not None else None
        self.checkpoints = Checkpoints(self.out / "checkpoints", keep) if self.out else None
        if self.out is None and tensorboard:
            raise FokkerError("tensorboard=True needs out=, the folder to write to")
        self.accelerator = _accelerator(precision, cpu, self.out if tensorboard else None)
        self._tracking = tensorboard
        self.module = Step(denoiser, objective)
        self.sharded = sharded and self.accelerator.num_processes > 1
        if self.sharded:
            self._prepared: nn.Module = shard(self.module, self.accelerator.device)
        else:
            self._prepared = self.accelerator.prepare(self.module)
        if compile and isinstance(denoiser, NetworkDenoiser):
            denoiser.net.compile()
        elif compile:
            raise FokkerError(f"compile=True needs a NetworkDenoiser, not {type(denoiser).__name__}; leave it out")
        self.optimiser = (self.settings.build_sharded if self.sharded else self.settings.build)(self.module)
        self.ema = EMA(self.module, average or Average())
        self.state = State(self.module, self.optimiser, self.ema)
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.feed = Feed(
            source, objective, denoiser, batch, seed, conditions, rank, world, accumulate, self.accelerator.device
        )

    # --- one update -------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """One update of weights, average and counter; the device is not waited for."""
        state, first = self.state, self.state.samples
        # the middle of the batch: neither end of the schedule is a wasted update
        pace(self.optimiser, self.rate.at(first + self.batch / 2, self.samples))
        _seed((self.seed * 1_000_003 + first * 1_009 + self.accelerator.process_index) % 2**63, self.accelerator.device)
        parts = self.feed.take(first, first + self.batch < self.samples)
        loss = torch.zeros((), device=self.accelerator.device)
        for i, drawn in enumerate(parts):
            last = i + 1 == len(parts)
            with self._pass(last):
                part = self._prepared(drawn).mean() / len(parts)
                # 1, or NaN where the loss is not finite: so every process sees it in the gradient
                part.backward(torch.ones_like(part) + 0 * part.detach())
            loss += part.detach()
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(grads))
        bad = state.meter.update(loss, norm)
        scale = (norm / self.settings.clip).clamp_min(1.0) if self.settings.clip else None
        if not self.sharded:
            flag(self.optimiser, scale, bad)
            self.optimiser.step()
        elif not bool(bad):
            if scale is not None:
                torch._foreach_mul_([local(g) for g in grads], 1 / scale)
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        state.samples = first + self.batch
        self.ema.update(first, state.samples)

    @contextmanager
    def _pass(self, last: bool) -> Iterator[None]:
        """Around one forward and backward pass; gradients are summed over the processes in the last one of an update."""
        if self.sharded:
            synchronise(self._prepared, last)
            with self.accelerator.autocast():
                yield
        else:
            with nullcontext() if last else self.accelerator.no_sync(self._prepared):
                yield

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> State:
        """Resume if there is a checkpoint, train to `until` (default: all `samples`), save, and return the state."""
        self.resume()
        target = min(self.samples, until or self.samples)
        report = Report(self.out, self.samples, self.state.samples, self.accelerator.is_main_process, self.quiet)
        if self._tracking:
            self.accelerator.init_trackers("tensorboard", config={})
        self.module.train()
        try:
            with torch.random.fork_rng([self.accelerator.device] if self.accelerator.device.type == "cuda" else []):
                while self.state.samples < target:
                    before = self.state.samples
                    self.update()
                    self._after(before, target, report)
        finally:
            report.close()
            self.feed.close()
            self.module.eval()
            if self._tracking:
                self.accelerator.end_training()
        return self.state

    def _after(self, before: int, target: int, report: Report) -> None:
        """Everything that happens at some multiples of the counter."""
        state, now = self.state, self.state.samples
        # a slice that ends early saves and does nothing else, so that slices add up to the whole
        done = now >= self.samples

        def due(interval: int) -> bool:
            return now // interval > before // interval

        log, save = due(self.log_every) or done, due(self.every) or now >= target
        # all processes look at the same updates, so that they stop together
        if (log or save or self.accelerator.device.type == "cpu") and state.meter.read()["longest"] >= self.patience:
            self._stop()
        if report.looks:
            report.show(now, state.meter.read()["loss"])
        if log or save:
            # processes have their own losses; from here on they agree
            state.meter.values[0] = self.accelerator.reduce(state.meter.values[0], "mean")
        if log:
            values = state.meter.read()
            line = {"loss": values["loss"], "norm": values["norm"], "rate": self.rate.at(now, self.samples)}
            report.line({"samples": now, **line, "bad": int(values["bad"])})
            if self._tracking:
                self.accelerator.log(line, step=now)
            state.meter.restart()
        if save:
            self.save()
        for callback in self.callbacks:
            # a sharded network runs on all processes or on none
            if (due(callback.samples) or done) and (self.sharded or self.accelerator.is_main_process):
                self.module.eval()
                callback.action(self)
                self.module.train()

    def _stop(self) -> None:
        # skipped updates changed no weight: the state is still the last good one
        self.state.meter.values[3:5] = 0
        saved = self.save()
        where = f"the last good state is {saved}" if saved else "the weights are the last good ones"
        raise FokkerError(
            f"loss or gradient was not finite {self.patience} updates in a row up to sample {self.state.samples}; {where}: "
            "lower rate.peak or optimiser.clip, or check the data"
        )

    def averaged(self) -> dict[str, Tensor]:
        """The denoiser's state with its averaged weights, whole on every process; all of them must ask."""
        with self.ema.swapped():
            return gathered(self.denoiser.state_dict(), main=True)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self) -> Path | None:
        """Write a checkpoint (by the main process), if the trainer has a folder."""
        path = None
        if self.checkpoints and (self.sharded or self.accelerator.is_main_process):
            path = self.checkpoints.save(self.state, self.header, self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> Path | None:
        """Load the newest whole checkpoint, telling which newer ones were refused; None if there is none."""
        if self.checkpoints is None:
            return None
        found: list[str | None] = [None]
        if self.accelerator.is_main_process:
            self.checkpoints.sweep()
            path, refused = self.checkpoints.newest()
            found = [str(path) if path else None]
            if not self.quiet and (refused or path):
                notes = [f"skipped: {sentence}" for sentence in refused]
                say(*notes, f"resuming from {path}" if path else "no whole checkpoint: starting anew")
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found)
        if found[0] is None:
            return None
        tensors, header = store.read(found[0], self.accelerator.device)
        self.state.load(tensors, header, found[0])
        return Path(found[0])


def _accelerator(precision: str, cpu: bool, tensorboard: Path | None) -> "Accelerator":
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    cuda = torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16" if cuda and not cpu and torch.cuda.is_bf16_supported() else "no"
    if AcceleratorState._shared_state:
        # accelerate remembers the precision of the first run in a process and refuses another
        AcceleratorState._reset_state()
    found = Accelerator(
        mixed_precision=precision,
        # without an accelerator several processes must be told that the CPU is meant
        cpu=cpu or not (cuda or torch.backends.mps.is_available()),
        log_with="tensorboard" if tensorboard else None,
        project_dir=str(tensorboard) if tensorboard else None,
    )
    if found.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise FokkerError(
            f"{found.distributed_type.value} is not supported here; launch with --multi_gpu, and say sharded: true for FSDP"
        )
    return found


def _seed(seed: int, device: torch.device) -> None:
    """Seed what layers with randomness of their own (dropout) draw from."""
    # torch.manual_seed would queue a call, with its stack, for every kind of device that was never used
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
