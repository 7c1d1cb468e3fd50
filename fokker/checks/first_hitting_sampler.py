"""First hitting: one call a token and the exact law; Gumbel draws of low precision are a lower temperature.

Theory: (a) a sampler that goes from one unmasking event to the next has the law of infinitely many ancestral steps, here the
exact joint of an order-1 chain of real text. (b) Gumbels cut at M = -log(-log(1 - 2^-b)) draw tokens by a law known in closed
form. (c) A token that is uncovered with a small chance a step must beat the mask, which takes rare Gumbels: with the 24 bits
of float32 its entropy falls, with 53 it does not. The same is read off the lattice of real float32 numbers. (d) On real
characters, with the text model of the zoo, first hitting and 1,024 ancestral steps write text of the same statistics.

Null: three tokens an event, the law of (b) without the truncation, and (c) at float32 in both places.
"""

import functools

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._tokens import english
from fokker.discrete import Ancestral, FirstHitting, Remembered, TokenProcess, token_entropy, truncated_gumbel_law
from fokker.discrete.draw import gumbel_max
from fokker.discrete.model import TokenModel, load
from fokker.measure import TotalVariation

EXPECT = (
    "(a) total variation to the exact joint (4 symbols, length 6, 4,000 samples) <= exact sampling's + 0.03, in 6 calls; (b) "
    "8-bit truncated Gumbels follow the predicted law to 5e-4 (1e7 draws); (c) entropy of a token uncovered with chance 1e-5 a "
    "step: lower by >= 0.1 nat in float32, by <= 0.001 with 53 bits; (d) pairs of characters of written text: total variation "
    "between first hitting and 1,024 cached ancestral steps <= 1.25 x that of two first-hitting runs"
)
LENGTH, SAMPLES, TEXTS = 6, 4000, 48


def uncovered(p: Tensor, chance: float, bits: int) -> float:
    """The entropy in nats of the token drawn from p, given that it beat the mask."""
    law = truncated_gumbel_law(torch.cat([chance * p, torch.tensor([1 - chance], dtype=torch.float64)]), bits)
    return float(token_entropy(law[:-1] / law[:-1].sum()))


def on_the_lattice(p: Tensor, chance: float, bits: int = 24, top: int = 1 << 14) -> float:
    """The same for u = k / 2^bits as float32 hardware draws it, summed over the cells that can win."""
    cells = 2.0**bits - torch.arange(1, top + 1, dtype=torch.float64)
    rare = -torch.log(-torch.log(cells * 2.0**-bits))
    every = torch.cat([chance * p, torch.tensor([1 - chance], dtype=torch.float64)])
    won = []
    for i in range(len(p)):
        # how many cells of each competitor lie below
        level = torch.exp(-torch.exp(-(rare + torch.log(every[i]))[:, None] + torch.log(every)))
        below = torch.ceil(level * 2.0**bits).clamp(0, 2.0**bits) * 2.0**-bits
        below[:, i] = 1.0
        won.append(float(below.log().sum(1).exp().sum()) * 2.0**-bits)
    law = torch.tensor(won, dtype=torch.float64)
    return float(token_entropy(law / law.sum()))


@functools.cache
def writer() -> TokenModel:
    return load("text")


def pairs(model: TokenModel, x: Tensor) -> Tensor:
    """Frequencies (K, K) of neighbouring characters."""
    size = model.process.size
    return torch.bincount((x[:, :-1] * size + x[:, 1:]).flatten(), minlength=size * size).double() / x[:, 1:].numel()


def check(seed: int, null: bool = False) -> Outcome:
    law, process = english(LENGTH), TokenProcess(4)
    joint, belief = law.joint(), law.denoiser(process)
    start = process.start(process.sample_noise((SAMPLES, LENGTH), seed))
    variation = TotalVariation()
    hit = fk.run(belief, start, FirstHitting(3 if null else 1).plan(process, LENGTH), seed=seed)
    many = fk.run(belief, start, Ancestral().plan(process, fk.grids.Uniform(128)), seed=seed)
    own = variation(law.sample(SAMPLES, seed), joint).value
    hitting = variation(hit.x0, joint).value

    generator = torch.Generator().manual_seed(seed)
    p = torch.softmax(fk.noise((1, 8), seed, stream="check", dtype=torch.float64)[0], 0)
    counts = torch.zeros(8, dtype=torch.int64)
    for _ in range(10):
        u = torch.rand(1_000_000, 8, generator=generator, dtype=torch.float64) * (1 - 2.0**-8)
        counts += torch.bincount(gumbel_max(p, u), minlength=8)
    predicted = p if null else truncated_gumbel_law(p, 8)
    law_error = float((counts / 1e7 - predicted).abs().max())

    q = torch.softmax(1.5 * fk.noise((1, 50), seed, stream="check", index=1, dtype=torch.float64)[0], 0)
    true, low = float(token_entropy(q)), uncovered(q, 1e-5, 24)
    fine = low if null else uncovered(q, 1e-5, 53)

    model = writer()
    blank = model.encode("").expand(TEXTS, -1)
    first = FirstHitting(8 if null else 1).plan(model.process, model.length)
    one, two = (
        fk.run(model.denoiser, blank, plan, seed=seed + 10 * k)
        for k, plan in ((1, first), (2, FirstHitting().plan(model.process, model.length)))
    )
    slow = fk.run(
        Remembered(model.denoiser), blank, Ancestral().plan(model.process, fk.grids.Uniform(1024)), seed=seed + 30
    )
    seen = [pairs(model, run.x0) for run in (one, two, slow)]
    apart, same = (float((seen[0] - other).abs().sum()) / 2 for other in (seen[2], seen[1]))
    return Outcome(
        measured={
            "variation, first hitting": hitting,
            "calls, first hitting": hit.nfe,
            "largest deviation from the truncated law": law_error,
            "entropy lost, float32": true - low,
            "entropy lost, float32 lattice": true - on_the_lattice(q, 1e-5),
            "entropy lost, 53 bits": true - fine,
            "pairs of characters, against ancestral": apart,
            "calls, first hitting on text": one.nfe,
        },
        baseline={
            "variation, exact draws": own,
            "variation, 128 ancestral steps": variation(many.x0, joint).value,
            "largest deviation from the law meant": float((counts / 1e7 - p).abs().max()),
            "pairs of characters, two runs of first hitting": same,
            "calls, 1,024 cached ancestral steps on text": slow.nfe,
        },
        criteria=[
            Criterion("variation above exact draws'", hitting - own, "<=", 0.03),
            exactly("one call a token", hit.nfe == LENGTH),
            Criterion("deviation from the predicted law", law_error, "<=", 5e-4),
            Criterion("entropy lost in float32", true - low, ">=", 0.1),
            Criterion("entropy lost with 53 bits", true - fine, "<=", 0.001),
            Criterion("pairs of characters, ancestral over two runs", apart / same, "<=", 1.25),
        ],
    )
