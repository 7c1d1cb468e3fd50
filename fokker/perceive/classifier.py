"""Classification by denoising: the condition under which a noised sample is denoised best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fokker.denoiser import Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, sample_ids, uniform

WEIGHTINGS = ("logsnr", "uniform")
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Scores:
    """What a classification found.

    logits      (n, candidates), float64: -1/2 of the integrated error, -inf for candidates that a stage dropped
    errors      (n, candidates): the mean squared error |eps - eps_hat|^2 so far, summed over a sample's numbers
    nfe         evaluations of the denoiser a sample
    """

    logits: Tensor
    errors: Tensor
    nfe: float

    @property
    def label(self) -> Tensor:
        """The best candidate of each sample, (n,)."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """softmax of the logits: the posterior of the candidates under equal priors, as far as the logits are calibrated."""
        return torch.softmax(self.logits, 1)


@dataclass(frozen=True)
class DiffusionClassifier:
    """p(c | x) = softmax_c(-L_c),  L_c = 1/2 E_{t, eps} [ w(t) |eps - eps_hat(x_t, t, c)|^2 ],  x_t = alpha x + sigma eps.

    denoiser    conditional, without guidance
    candidates  conditions by name with one row a candidate: {"label": torch.arange(10)}
    samples     pairs (t, eps) of the last stage; `stages` may drop candidates earlier
    weighting   logsnr   the log-SNR uniform in `span`, w its length: then log p(x | c) = const - L_c (the pointwise relation
                         of information and estimation), so logits are log-likelihoods up to a constant
                uniform  t uniform, w = 1 times the number of times: the reweighted bound of the paper
    paired      every candidate sees the same (t, eps), which takes most of the variance out of the differences
    stages      [(keep, samples), ...]: after so many samples only the `keep` best go on
    span        (low, high) of the log-SNR; by default what the process covers between its end and t = 1
    batch       samples times candidates in one call

    Times follow a golden-ratio sequence from an offset of the seed, evenly spread after any number of samples. Raises
    FokkerError for an unknown weighting, stages that do not shrink, or candidates of unequal number.
    Reference: Li et al. 2023, arXiv 2303.16203; Kong et al. 2023, arXiv 2302.03792 (the exact relation).
    """

    denoiser: Denoiser
    candidates: Mapping[str, Tensor]
    samples: int = 256
    weighting: str = "logsnr"
    paired: bool = True
    stages: Sequence[tuple[int, int]] = ()
    span: tuple[float, float] | None = None
    batch: int = 4096

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        sizes = {len(v) for v in self.candidates.values()}
        if len(sizes) != 1 or min(sizes) < 1 or self.samples < 1:
            raise FokkerError(
                f"candidates have {sorted(sizes)} rows and samples={self.samples}; give one row a candidate in every "
                "condition, and at least one sample"
            )
        ladder = [(self.count, 0), *self.stages, (1, self.samples)]
        for (keep, before), (fewer, after) in pairwise(ladder):
            if not 1 <= fewer <= keep or not after > before:
                raise FokkerError(
                    f"stages={list(self.stages)} for {self.count} candidates and {self.samples} samples; each (keep, samples) "
                    "keeps no more candidates than the one before and looks at more samples"
                )

    @property
    def count(self) -> int:
        """How many candidates there are."""
        return len(next(iter(self.candidates.values())))

    @torch.no_grad()
    def __call__(self, x: Tensor, seed: int = 0, ids: Sequence[int] | Tensor | None = None) -> Scores:
        """Scores of samples x (n, ...), in the denoiser's space; noise is keyed by sample, so each is classified by itself."""
        process = self.denoiser.process
        if process.anchored or process.tokens:
            raise FokkerError(f"{process.name} is not plain noise on numbers; the classifier needs a plain process")
        n, which = len(x), sample_ids(len(x), ids)
        run = Run(n, seed, which)
        bound = self.denoiser.bind(run)
        alive = torch.arange(self.count, device=x.device).expand(n, -1)
        sums = torch.zeros(n, self.count, dtype=torch.float64, device=x.device)
        times, length = self.times(seed)
        done = 0
        for keep, until in [*self.stages, (1, self.samples)]:
            for k in range(done, until):
                sums.scatter_add_(1, alive, self.one(bound, x, float(times[k]), alive, k, seed, which))
            done = until
            if until < self.samples:
                best = sums.gather(1, alive).topk(keep, 1, largest=False).indices
                alive = alive.gather(1, best)
        seen = torch.zeros_like(sums).scatter_(1, alive, 1.0) > 0
        errors = sums / done
        logits = torch.where(seen, -0.5 * length * errors, -torch.inf)
        return Scores(logits, torch.where(seen, errors, torch.nan), run.nfe)

    def times(self, seed: int) -> tuple[Tensor, float]:
        """The times (samples,) of the noise levels, and the length of the interval that they stand for."""
        process = self.denoiser.process
        start = float(uniform((1, 1), seed, stream="measure")[0, 0])
        u = (start + _GOLDEN * torch.arange(self.samples, dtype=torch.float64)) % 1.0
        ends = process.logsnr(torch.tensor([1.0, max(float(process.end), 1e-4)], dtype=torch.float64))
        low, high = self.span or (max(float(ends[0]), -20.0), min(float(ends[1]), 20.0))
        if self.weighting == "logsnr":
            return process.time(low + (high - low) * u), high - low
        first, last = (float(process.time(v)) for v in (high, low))
        return first + (last - first) * u, 1.0

    def one(self, denoiser: Denoiser, x: Tensor, t: float, alive: Tensor, k: int, seed: int, ids: Tensor) -> Tensor:
        """|eps - eps_hat|^2 of each sample under its living candidates, (n, living), float64."""
        n, m = alive.shape
        alpha, _, sigma = denoiser.process.at(t)
        if self.paired:
            eps = noise(tuple(x.shape), seed, ids, "measure", 1 + k, x.dtype, x.device)[:, None].expand(
                n, m, *x.shape[1:]
            )
        else:
            own = [
                noise(tuple(x.shape), seed, ids, "measure", 1 + k + (1 + c << 32), x.dtype, x.device)
                for c in range(self.count)
            ]
            eps = torch.stack(own, 1)[torch.arange(n, device=x.device)[:, None], alive]
        found = []
        rows = max(1, self.batch // m)
        for a in range(0, n, rows):
            part = slice(a, a + rows)
            clean = x[part, None].expand_as(eps[part])
            x_t = (alpha * clean + sigma * eps[part]).flatten(0, 1)
            cond = {name: value.to(x.device)[alive[part]].flatten(0, 1) for name, value in self.candidates.items()}
            belief = denoiser(x_t, t, **cond).reshape(clean.shape)
            # eps - eps_hat = alpha (D - x) / sigma, without the cancellation of two large numbers
            error = (belief - clean).to(torch.float64).square().flatten(2).sum(2)
            found.append(error * (alpha / sigma) ** 2)
        return torch.cat(found)
