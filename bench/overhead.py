"""Microseconds a row that sampling loops add to a denoiser that costs nothing: ours, diffusers', k-diffusion's, a bare one.

    python bench/overhead.py [--rows 50] [--repeats 200] [--out bench/results/overhead.json]

The bare loop of a solver is its arithmetic written out line after line: the numbers, the same denoiser, a product and a sum
for every term. All loops run in one process, in turns: medians over turns, and ratios as medians of the ratio within a turn,
which a busy machine moves least. Targets: every solver at most 1.3 x its own bare loop, DPM-Solver++(2M) at most a fifth of
diffusers' DPMSolverMultistepScheduler.
"""

import argparse
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import provenance
from fokker.denoiser import Denoiser
from fokker.loop import compiled
from fokker.process import Time

SHAPES = ((1, 4, 64, 64), (64, 3, 32, 32))
SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc", "deis")


class Free(Denoiser):
    """A belief that costs nothing."""

    def x0(self, x_t: Tensor, t: Time) -> Tensor:
        return x_t


def ours(solver: str, x: Tensor, rows: int) -> Callable[[], Any]:
    denoiser = Free(fk.VP())
    plan = fk.solve.get(solver).plan(denoiser.process, fk.grids.logsnr(rows))
    return lambda: fk.sample(denoiser, x, plan)


def bare(solver: str, x: Tensor, rows: int) -> Callable[[], Any]:
    """The arithmetic of a plan written out, line after line, as one would by hand: no table, no slots, no bookkeeping."""
    denoiser = Free(fk.VP())
    plan = fk.solve.get(solver).plan(denoiser.process, fk.grids.logsnr(rows))
    lines = ["def loop():", "    x0 = x"]
    for row in compiled(plan):
        for n, ((kind, i), c) in enumerate(plan.rows[row.row].terms):
            lines.append(f"    x{row.row} = {kind}{i} * {c!r}" if n == 0 else f"    x{row.row}.add_({kind}{i}, alpha={c!r})")
        if row.t is not None:
            lines.append(f"    D{row.row} = denoiser(x{row.row}, {row.t!r})")
        gone = [("x", k) if k < len(plan.rows) else ("D", k - len(plan.rows)) for k in row.free]
        lines += [f"    del {kind}{k}" for kind, k in gone if kind == "x" or k < row.row or row.t is not None]
    lines.append(f"    return x{plan.outputs[0]}")
    names: dict[str, Any] = {"x": x, "denoiser": denoiser}
    exec("\n".join(lines), names)
    return torch.no_grad()(names["loop"])


def diffusers_loop(name: str, x: Tensor, rows: int, **options: Any) -> Callable[[], Any]:
    import diffusers

    made = getattr(diffusers, name)(**{"prediction_type": "sample", **options})

    @torch.no_grad()
    def loop() -> Tensor:
        made.set_timesteps(rows)
        state = x
        for t in made.timesteps:
            state = made.step(made.scale_model_input(state, t), t, state).prev_sample
        return state

    return loop


def k_diffusion_loop(name: str, x: Tensor, rows: int) -> Callable[[], Any]:
    from k_diffusion import sampling

    sigmas = sampling.get_sigmas_karras(rows, 0.02, 80.0)
    function = getattr(sampling, name)
    return torch.no_grad()(lambda: function(lambda state, sigma: state, x, sigmas, disable=True))


def contestants(x: Tensor, rows: int) -> dict[str, Callable[[], Any]]:
    loops: dict[str, Callable[[], Any]] = {}
    for name in SOLVERS:
        loops |= {f"bare {name}": bare(name, x, rows), f"fokker {name}": ours(name, x, rows)}
    if importlib.util.find_spec("diffusers"):
        loops["diffusers DDIM"] = diffusers_loop("DDIMScheduler", x, rows, clip_sample=False)
        loops["diffusers DPMSolverMultistep"] = diffusers_loop("DPMSolverMultistepScheduler", x, rows)
        # as it comes, its model predicts the noise: one more conversion, which with us is the denoiser's
        name = "DPMSolverMultistepScheduler"
        loops["diffusers DPMSolverMultistep (eps)"] = diffusers_loop(name, x, rows, prediction_type="epsilon")
        loops["diffusers UniPC-3"] = diffusers_loop("UniPCMultistepScheduler", x, rows, solver_order=3)
    if importlib.util.find_spec("k_diffusion"):
        loops["k-diffusion dpmpp_2m"] = k_diffusion_loop("sample_dpmpp_2m", x, rows)
    return loops


@dataclass
class Found:
    """One loop over its turns: median and least microseconds a row, and the median of its ratio to a bare loop's turn: its own
    solver's, and that of dpmpp-2m for other libraries."""

    microseconds: float
    least: float
    over_bare: float


def measured(shape: tuple[int, ...], rows: int, repeats: int) -> dict[str, Found]:
    loops = contestants(fk.noise(shape), rows)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(repeats + 3):
        for name, loop in loops.items():
            # the slow ones need fewer turns
            if turn > 3 + repeats // 4 and not name.startswith(("bare", "fokker")):
                continue
            begin = time.perf_counter()
            loop()
            times[name].append(time.perf_counter() - begin)

    def found(name: str) -> Found:
        seconds = times[name][3:]
        own = name.replace("fokker", "bare")
        floor = times[own if own.startswith("bare") else "bare dpmpp-2m"][3:]
        ratio = statistics.median(a / b for a, b in zip(seconds, floor))
        return Found(round(1e6 * statistics.median(seconds) / rows, 2), round(1e6 * min(seconds) / rows, 2), round(ratio, 3))

    return {name: found(name) for name in times}


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of sampling loops over a free denoiser.")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"rows": options.rows, "repeats": options.repeats, **provenance()}
    for shape in SHAPES:
        found = measured(shape, options.rows, options.repeats)
        results["x".join(map(str, shape))] = {name: asdict(value) for name, value in found.items()}
        print(f"\n{shape}: microseconds a row")
        for name, value in found.items():
            print(f"  {name:36}{value.microseconds:9.1f} (least {value.least:.1f})   {value.over_bare:6.2f} x bare")
        mine, slow = found["fokker dpmpp-2m"], found.get("diffusers DPMSolverMultistep")
        worst = max(value.over_bare for name, value in found.items() if name.startswith("fokker"))
        print(f"  over its own bare loop at most {worst:.2f} (bar 1.3)", end="")
        print(f", dpmpp-2m of diffusers' 1/{slow.over_bare / mine.over_bare:.2f} (bar 1/5)" if slow else "", end="")
        print(f"; by least times 1/{slow.least / mine.least:.2f}" if slow else "")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
