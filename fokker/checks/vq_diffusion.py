"""Mask-and-replace corruption of tokens, with strided sampling from the belief.

Theory: the cumulative transition is Q = a I + (b / K) 1 1' + g e_mask 1', closed under products, and its posterior is Bayes'
rule. A sparse chain whose exact marginals come from two passes then judges the corruptions at equal steps: a replaced token
is noise that looks like a token, a mask says that it is one, so uniform corruption needs more steps.

Null: the share of masks is zero, so that the process only replaces.
"""

import itertools

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.checks._tokens import forbidden, sparse
from fokker.discrete import Ancestral, TokenProcess

EXPECT = (
    "cumulative and posterior formulae equal matrix products to 1e-12; forbidden pairs (sparse chain, 6 symbols, length 12, "
    "exact belief, 4,000 samples) at 4, 8 and 16 steps <= 0.6 x uniform corruption's and within 1.5 x of mask-only"
)
SIZE, LENGTH, SAMPLES = 6, 12, 4000


def matrix(kept: float, replaced: float, masked: float) -> Tensor:
    """q(next = row | now = column), the mask last."""
    Q = torch.zeros(SIZE + 1, SIZE + 1, dtype=torch.float64)
    Q[:SIZE, :SIZE] = kept * torch.eye(SIZE, dtype=torch.float64) + replaced / SIZE
    Q[SIZE, :SIZE], Q[SIZE, SIZE] = masked, 1.0
    return Q


def formula_error(process: TokenProcess, steps: int = 20) -> float:
    """The largest deviation of cumulative shares and posteriors from products of `steps` single-step matrices."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    product, worst, before = torch.eye(SIZE + 1, dtype=torch.float64), 0.0, None
    for s, t in itertools.pairwise(times):
        kept, replaced, masked = (float(c) for c in process.between(s, t))
        single = matrix(kept, replaced, masked)
        before, product = product, single @ product
        direct = matrix(*(float(c) for c in process.shares(t)))
        worst = max(worst, float((product - direct).abs().max()))
        for state, clean in itertools.product(range(SIZE + 1), range(SIZE)):
            if product[state, clean] > 0 and s > 0:
                truth = single[state] * before[:, clean] / product[state, clean]
                known = torch.eye(SIZE, dtype=torch.float64)[clean][None]
                found = process.reverse(torch.tensor([state]), known, float(t), float(s))[0]
                worst = max(worst, float((found - truth).abs().max()))
    return worst


def check(seed: int, null: bool = False) -> Outcome:
    law = sparse(SIZE, LENGTH, seed)
    both = TokenProcess(SIZE, replace=1.0 if null else 0.1)
    kinds = {"mask and replace": both, "uniform": TokenProcess(SIZE, replace=1.0), "mask": TokenProcess(SIZE)}
    rates: dict[str, list[float]] = {}
    for name, process in kinds.items():
        start = process.start(process.sample_noise((SAMPLES, LENGTH), seed))
        plans = [Ancestral().plan(process, fk.grids.Uniform(steps)) for steps in (4, 8, 16)]
        rates[name] = [forbidden(law, fk.sample(law.denoiser(process), start, plan, seed=seed)) for plan in plans]
    error = formula_error(both)
    over_uniform = max(a / b for a, b in zip(rates["mask and replace"], rates["uniform"], strict=True))
    over_mask = max(a / b for a, b in zip(rates["mask and replace"], rates["mask"], strict=True))

    def rows(name: str) -> dict[str, float]:
        return {f"forbidden pairs, {name}, {steps} steps": r for steps, r in zip((4, 8, 16), rates[name], strict=True)}

    return Outcome(
        measured={"formula error": error, **rows("mask and replace")},
        baseline={**rows("uniform"), **rows("mask")},
        criteria=[
            Criterion("largest deviation from matrix products", error, "<=", 1e-12),
            Criterion("forbidden pairs over uniform's, worst", over_uniform, "<=", 0.6),
            Criterion("forbidden pairs over mask-only's, worst", over_mask, "<=", 1.5),
        ],
    )
