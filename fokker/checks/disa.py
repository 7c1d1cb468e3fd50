"""Diffusion step annealing: many diffusion steps for the first tokens, few for the last.

Theory: the law of a token narrows as more tokens are known, so late tokens need fewer steps. Eight tokens of four
coordinates under a low-rank mixture are drawn one by one, in random order, by DDIM on their exact conditional mixture; judged
by the Frechet distance of all tokens together to the exact law.

Null: the schedule reversed (few steps first).
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, exactly
from fokker.denoiser import Cond, Denoiser
from fokker.laws import GaussianMixture, lowrank
from fokker.measure import frechet_distance
from fokker.process import Process, Time
from fokker.solve.autoregress import StepAnnealing, TokenDiffusion

EXPECT = (
    "20 -> 2 steps <= 0.5 x uniform at equal calls and <= 1.1 x all 20 at 55 % of their calls; 50 -> 5 <= 0.8 x uniform; "
    "reversed >= 10 x worse; the conditional variance decreases along the order"
)
TOKENS, WIDTH, SAMPLES = 8, 4, 4000
PROCESS = fk.VP()


class Conditional(Denoiser):
    """E[x_0 | x_t] of a token under a mixture whose component means and weights belong to the sample."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        means, logits, covs = cond["means"], cond["logits"], cond["covs"]
        alpha, _, sigma = self.process.coefficients(t, x_t)
        eye = torch.eye(x_t[0].numel(), dtype=means.dtype)
        total = alpha**2 * covs[0] + sigma**2 * eye
        off = x_t.flatten(1)[:, None] - alpha * means
        pull = torch.linalg.solve(total, off[..., None])[..., 0]
        fit = logits - 0.5 * (off * pull).sum(-1) - 0.5 * torch.logdet(total)
        each = means + alpha * (covs[0] @ pull[..., None])[..., 0]
        belief: Tensor = (torch.softmax(fit, 1)[..., None] * each).sum(1).reshape(x_t.shape)
        return belief


class Exact:
    """The exact conditional law of a token given others."""

    def __init__(self, law: GaussianMixture) -> None:
        self.means, self.covs, self.log_weights = law.means, law.covs, law.log_weights

    def __call__(self, tokens: Tensor, done: list[int], group: list[int]) -> dict[str, Tensor]:
        a, b = (
            torch.tensor([WIDTH * p + i for p in places for i in range(WIDTH)], dtype=torch.int64)
            for places in (done, group)
        )
        n = len(tokens)
        off = tokens.flatten(1).to(self.means)[:, a][:, None] - self.means[:, a]
        inner = self.covs[:, a][:, :, a]
        gain = torch.linalg.solve(inner, self.covs[:, a][:, :, b]).mT  # (K, b, a)
        means = self.means[:, b] + (gain @ off[..., None])[..., 0]
        covs = self.covs[:, b][:, :, b] - gain @ self.covs[:, a][:, :, b]
        fit = (off * torch.linalg.solve(inner, off[..., None])[..., 0]).sum(-1) + torch.logdet(inner)
        return {"means": means, "logits": self.log_weights - 0.5 * fit, "covs": covs.expand(n, *covs.shape)}


def variance(law: GaussianMixture, order: list[int], x: Tensor) -> list[float]:
    """The mean variance of each token given the ones before it, for true tokens x."""
    exact, found = Exact(law), []
    for k, place in enumerate(order):
        c = exact(x, order[:k], [place])
        w = torch.softmax(c["logits"], 1)[..., None]
        mean = (w * c["means"]).sum(1, keepdim=True)
        spread = c["covs"].diagonal(dim1=-2, dim2=-1) + (c["means"] - mean).square()
        found.append(float((w * spread).sum((1, 2)).mean()))
    return found


def check(seed: int, null: bool = False) -> Outcome:
    law = lowrank(TOKENS * WIDTH, 8, 8, seed=seed)
    order = torch.argsort(fk.noise((1, TOKENS), seed, stream="check")[0]).tolist()

    def distance(first: int, last: int) -> tuple[float, float]:
        sampler = TokenDiffusion(Conditional(PROCESS), Exact(law), StepAnnealing(first, last))
        drawn = sampler.sample((SAMPLES, TOKENS, WIDTH), [[k] for k in order], seed)
        x = drawn.tokens.flatten(1).to(torch.float64)
        return frechet_distance(x.mean(0), torch.cov(x.T), law.mean(), law.cov()), sum(drawn.nfe)

    annealed, calls = distance(2, 20) if null else distance(20, 2)
    longer, longer_calls = distance(5, 50) if null else distance(50, 5)
    uniform, uniform_calls = distance(11, 11)
    longer_uniform, longer_uniform_calls = distance(28, 28)
    full, full_calls = distance(20, 20)
    backwards, _ = distance(20, 2) if null else distance(2, 20)
    # every place of the order is taken by every token once, so that tokens of unequal variance average out
    true = law.sample(500, seed).reshape(500, TOKENS, WIDTH)
    rows = [variance(law, order[k:] + order[:k], true) for k in range(TOKENS)]
    along = torch.tensor(rows).mean(0)
    return Outcome(
        measured={
            "20 to 2": annealed,
            "50 to 5": longer,
            "evaluations of 20 to 2": calls,
            "evaluations of 50 to 5": longer_calls,
            "first variance": float(along[0]),
            "last variance": float(along[-1]),
        },
        baseline={
            "uniform 11": uniform,
            "uniform 28": longer_uniform,
            "evaluations of uniform 28": longer_uniform_calls,
            "all 20": full,
            "reversed": backwards,
        },
        criteria=[
            Criterion("20 to 2 over uniform", annealed / uniform, "<=", 0.5),
            Criterion("20 to 2 over all 20", annealed / full, "<=", 1.1),
            Criterion("share of the evaluations of all 20", calls / full_calls, "<=", 0.55),
            exactly("uniform has as many evaluations", calls == uniform_calls),
            Criterion("50 to 5 over uniform", longer / longer_uniform, "<=", 0.8),
            Criterion("reversed over 20 to 2", backwards / annealed, ">=", 10.0),
            Criterion("largest growth of the variance along the order", float(along.diff().max()), "<", 0.0),
        ],
    )
