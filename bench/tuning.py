"""`fk.tune` on laws that nobody has seen before, and on the models of the zoo, against the best fixed solver x grid.

    python bench/tuning.py --seed 1 --cases 0..14 [--nfe 5,6,8,10] [--out bench/results/tuning.json]
    python bench/tuning.py --seed 1 --zoo digits,sprites,photos

Case k of a seed is a random Gaussian mixture: dense or low rank, dimension 2 to 256, 1 to 20 components, its anisotropy, scale,
spread and weights drawn, on VP, EDM or Flow. Plans are judged on noises that tuning never saw, against the exact flow (a
model's own, converged): the RMS distance of the end points over that of the best solver x grid of the arena in hindsight,
chosen on the very noises that judge. Cases are added to the file as they finish, and what it holds is not measured again.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
import fokker.solve.tune
from fokker import arena
from fokker.checks import provenance
from fokker.cli import spec
from fokker.denoiser import Denoiser
from fokker.laws import GaussianMixture, LawDenoiser
from fokker.plan import Plan
from fokker.solve.pool import Pool

DIMS = (2, 8, 32, 64, 256)
PROCESSES = (fk.VP, fk.EDM, fk.Flow)
NFES = (5, 6, 8, 10)
HELD = 2048  # noises that judge
UNSEEN = 900_001  # added to the seed of these


def law_of(seed: int, k: int) -> tuple[GaussianMixture, fk.Process, str]:
    """Case k of a seed. Fifteen in a row have all pairs of dimension and process, thirty all with both forms."""
    draw = torch.Generator().manual_seed(1_000_003 * seed + k)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    dim, process, dense = DIMS[k % 5], PROCESSES[k % 3](), k % 2 == 0
    components = int(torch.randint(1, 21, (), generator=draw))
    rank = dim if dense else max(1, min(int(torch.randint(1, 13, (), generator=draw)), dim - 1))
    scale = math.exp(uniform(math.log(0.4), math.log(2.5)))
    within = 1.0 if components == 1 else uniform(0.1, 0.8)  # share of the variance that is inside the components
    weights = torch.exp(uniform(0.0, 1.0) * normal(components))
    basis = torch.linalg.qr(normal(components, dim, dim))[0][..., :rank]
    # standard deviations inside a component: log-normal, or falling like a power
    spread = uniform(0.1, 1.2)
    values = torch.exp(2 * spread * normal(components, rank))
    if not dense:
        values = values * torch.arange(1, rank + 1, dtype=torch.float64) ** -uniform(0.0, 2.0)
    values = within * dim * values / values.sum(1, keepdim=True)
    rest = torch.full((components,), math.exp(uniform(math.log(0.01), math.log(0.1))), dtype=torch.float64)
    means = normal(components, dim)
    means = means - means.mean(0)
    if components > 1:
        means = means * math.sqrt((1 - within) * dim / float(means.square().sum(1).mean()))
    law = GaussianMixture(weights, scale * means, (basis, scale**2 * values, scale * rest))
    words = f"{'dense' if dense else f'rank {rank}'}, dim {dim}, {components} components, scale {scale:.2f}, {process.name}"
    return law, process, words


def judged(denoiser: Denoiser, shape: tuple[int, ...], seed: int, cond: dict[str, Any], n: int) -> Pool:
    """Noises that tuning never saw, with their true end points."""
    process = denoiser.process
    if not isinstance(denoiser, LawDenoiser):
        x1, truth, _ = arena.reference(denoiser, shape, n, seed + UNSEEN, None, **cond)
        return Pool(denoiser, x1, truth, cond)
    x1 = process.start(fk.noise((n, *shape), seed + UNSEEN, dtype=torch.float64))
    return Pool(denoiser, x1, denoiser.law.flow(process, x1, 1.0, process.end, tol=1e-9))


def best_fixed(pool: Pool, nfe: int) -> tuple[float, str]:
    """The smallest error of any deterministic solver x grid within the budget, on the noises that judge.

    For a network, those that are not among the best 24 on 16 of them are not run on all.
    """
    plans = {
        f"{name} on {grid}": plan
        for name, grid, _, plan in arena.combinations(pool.denoiser.process, [nfe], None, None, None)
        if isinstance(plan, Plan) and not plan.stochastic and plan.nfe <= nfe
    }
    if not isinstance(pool.denoiser, LawDenoiser):
        few = pool.part(slice(0, 16))
        good = sorted(plans, key=lambda name: few.rms(plans[name]))[:24]
        plans = {name: plans[name] for name in good}
    found = {name: pool.rms(plan) for name, plan in plans.items()}
    best = min(found, key=found.__getitem__)
    return found[best], best


def measured(denoiser: Denoiser, shape: tuple[int, ...], words: str, nfe: int, pool: Pool, seed: int, seconds: float | None,
             **cond: Tensor) -> dict[str, Any]:  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    options = {} if seconds is None else {"seconds": seconds}
    plan = fk.tune(denoiser, nfe=nfe, shape=shape, seed=seed, **options, **cond)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    fixed, name = best_fixed(pool, nfe)
    error = pool.rms(plan)
    median = float(pool.errors(plan).sqrt().median())
    kept = ("from", "floor", "below_floor", "cut_short", "samples", "steps")
    return {
        "case": words,
        "nfe": nfe,
        "ratio": round(error / fixed, 4),
        "error": error,
        "median": median,
        "chosen_by": plan.config["value"],
        "best_fixed": name,
        "best_fixed_error": fixed,
        "seconds": round(wall, 1),
        "cpu": round(cpu, 1),
        **{k: plan.config.get(k) for k in kept},
    }


def zoo(name: str) -> tuple[Denoiser, tuple[int, ...], Any]:
    """A model of the zoo and what makes its conditions for any number of samples."""
    model = fk.load(name)
    labels = model.labels

    def cond(many: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(many)
        return {"label": torch.randint(len(labels), (many,), generator=draw)} if labels else {}

    return model.denoiser, model.shape, cond


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ratio = [r["ratio"] for r in rows]
    return {
        "cases": len(rows),
        "geometric_mean": round(math.exp(sum(map(math.log, ratio)) / len(ratio)), 4),
        "worst": max(ratio),
        "above_half": sum(r > 0.5 for r in ratio),
        "seconds": max(r["seconds"] for r in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Tuned plans against the best fixed ones, on unseen laws and noises.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default="0..14")
    parser.add_argument("--zoo", default="")
    parser.add_argument("--nfe", default=",".join(map(str, NFES)))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--cpu", action="store_true", help="count the CPU's seconds, on a machine that does other things too")
    parser.add_argument("--held", type=int, default=HELD)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu:
        sys.modules["fokker.solve.tune"].clock = time.process_time  # type: ignore[attr-defined]
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"rows": []}
    jobs = [("zoo", name) for name in options.zoo.split(",") if name]
    jobs = jobs or [("law", str(k)) for k in spec.seeds(options.cases)]
    for kind, which in jobs:
        pool: Pool | None = None
        for nfe in map(int, options.nfe.split(",")):
            key = f"{options.seed}/{which}/{nfe}"
            if any(r["key"] == key for r in known["rows"]):
                continue
            cond: dict[str, Tensor] = {}
            if kind == "law":
                law, process, words = law_of(options.seed, int(which))
                denoiser: Denoiser = law.denoiser(process)
                # many components in many dimensions are slow to judge
                shape, held = law.shape, options.held if law.components * law.rank * law.dim < 2e5 else options.held // 8
            else:
                denoiser, shape, conditions = zoo(which)
                words, held = which, 256
                cond = conditions(held)
            if pool is None:
                pool = judged(denoiser, shape, options.seed, cond, held)
            given = {} if kind == "law" else conditions(192)
            row = {"key": key} | measured(denoiser, shape, words, nfe, pool, options.seed, options.seconds, **given)
            known["rows"].append(row)
            errors = f"{row['error']:.2e} / {row['best_fixed_error']:.2e} ({row['best_fixed']}; from {row['from']})"
            print(f"{row['ratio']:7.3f}  nfe {nfe:<3}{words:58} {errors} {row['cpu']:.0f} s", flush=True)
            if options.out:
                laws = [r for r in known["rows"] if not r["key"].split("/")[1].isalpha()]
                models = [r for r in known["rows"] if r["key"].split("/")[1].isalpha()]
                known |= {"laws": summary(laws)} if laws else {}
                known |= {"models": summary(models)} if models else {}
                known |= {"rerun": " ".join(["python", *sys.argv]), **provenance()}
                options.out.write_text(json.dumps(known, indent=1) + "\n")
    rows = known["rows"]
    if rows:
        print(summary(rows))


if __name__ == "__main__":
    main()
