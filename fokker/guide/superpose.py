"""Superposition of models: sums of beliefs whose weights follow the log-densities of the models along the path."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.ahead import Ahead, ahead
from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError, unknown
from fokker.guide.terms import Part, Weight, beliefs, chosen, summed
from fokker.increments import Move
from fokker.process import Time, expand

MODES = ("or", "and", "average")


class Superposition(Wrapper):
    """D = sum_j k_j D_j over models and conditions, with weights k that sum to 1 and follow log q_j along a stochastic run.

    "or"       k = softmax_j(temperature log q_j + bias_j): a sample of the mixture with prior weights exp(bias) at
               temperature 1, of one model at a high one
    "and"      k such that all log q_j + bias_j are equal after the step: a sample that is as likely under every model. The
               step's own noise is known beforehand (`fokker.ahead`), and so is what a change of k does to it
    "average"  k = 1 / M always: what the others improve on

    log q_j starts at `start` and grows by the Ito density estimator, without any divergence; the run must draw the process's
    noise (solver ddpm, dpmpp-2m-sde). The terms are `inner` under the run's conditions, or under each of `conditions`
    (mappings, or values of the one discrete condition, such as classes), then each of `models` under the run's conditions.
    With one term it is off. The notes of a run tell `log_densities` (batch, M) at the last state that was asked about, up to
    a constant that all share, and `weights`.

    temperature  of "or"
    bias         one number a term: log prior weights ("or"), wanted differences of log-density with the sign turned ("and")
    start        log q_j at the start, one number a term; equal by default, which is right when sigma is large against the data
    damping      "and": how many nats a change of k by 1 must move for k to be changed; keeps k finite where the models agree

    One evaluation a term. Raises FokkerError where terms live on different processes, or lists have the wrong length.
    Reference: Skreta, Atanackovic, Bose, Tong, Neklyudov 2024, arXiv 2412.17762.
    """

    def __init__(
        self,
        inner: Denoiser,
        conditions: Sequence[Any] = (),
        models: Sequence[Denoiser] = (),
        mode: str = "or",
        temperature: float = 1.0,
        bias: Sequence[float] | None = None,
        start: Sequence[float] | None = None,
        damping: float = 1e-4,
        batched: bool = True,
    ) -> None:
        super().__init__(inner)
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        if not temperature >= 0 or not damping > 0:
            raise FokkerError(f"temperature={temperature}, damping={damping}: use temperature >= 0 and damping > 0")
        for model in models:
            if repr(model.process) != repr(inner.process):
                raise FokkerError(f"a term is on {model.process!r}, not on {inner.process!r}; wrap it in OnProcess")
        self.models = torch.nn.ModuleList(models)
        self.given = list(conditions)
        self.count = max(1, len(self.given)) + len(models)
        for name, values in (("bias", bias), ("start", start)):
            if values is not None and len(values) != self.count:
                raise FokkerError(f"{name} has {len(values)} numbers for {self.count} terms; give one a term")
        self.mode, self.temperature, self.damping, self.batched = mode, float(temperature), float(damping), batched
        self.bias = torch.tensor(bias or [0.0] * self.count, dtype=torch.float64)
        self.begin = torch.tensor(start or [0.0] * self.count, dtype=torch.float64)
        self.stackable = False
        self.last: tuple[Tensor, Time, list[Tensor]] | None = None
        self.log_q: Tensor | None = None
        self.weights: Tensor | None = None

    def reset(self, run: Run) -> None:
        self.last = self.log_q = self.weights = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        terms = self._terms(cond, len(x_t), x_t.device)
        found = beliefs(terms, x_t, t, self.batched)
        if len(terms) == 1:
            return found[0]
        if self.run is None:
            k = torch.softmax(self.bias if self.mode == "or" else torch.zeros_like(self.bias), 0)
            return summed(self.process, x_t, t, k.tolist(), found)
        if self.log_q is None:
            self.log_q = self.begin.to(x_t.device).expand(len(x_t), -1)
        if self.last is not None:
            before, then, their = self.last
            move = Move(self.process, before, then, x_t, t)
            self.log_q = self.log_q + torch.stack([move.ito(D) for D in their], 1)
            self.log_q = self.log_q - self.log_q.mean(1, keepdim=True)
        self.last = x_t, t, found
        level = self.log_q + self.bias.to(x_t.device)
        k = torch.full_like(level, 1 / self.count)
        if self.mode == "or":
            k = torch.softmax(self.temperature * self.log_q + self.bias.to(x_t.device), 1)
        elif self.mode == "and":
            step = ahead(self.run)
            # the last step, to x_0 itself, has no density at its end: it keeps the weights
            k = self._equal(x_t, t, step, found, level) if step.s is not None else (k if self.weights is None else self.weights)
        self.weights = k
        self.run.notes |= {"log_densities": self.log_q, "weights": k}
        return summed(self.process, x_t, t, list(k.unbind(1)), found)

    def parts(self, x_t: Tensor, t: Time, **cond: Cond) -> list[Part]:
        """Its terms, with the weights of the run so far."""
        terms = self._terms(cond, len(x_t), x_t.device)
        if self.weights is None:
            return terms
        return [Part(p.denoiser, p.cond, k) for p, k in zip(terms, self.weights.unbind(1), strict=True)]

    def _terms(self, cond: dict[str, Cond], n: int, device: torch.device) -> list[Part]:
        even: Weight = 1 / self.count
        own = [chosen(self.inner, value, n, device) for value in self.given] or [{}]
        out = [Part(self.inner, cond | mine, even) for mine in own]
        for model in self.models:
            assert isinstance(model, Denoiser)
            out.append(Part(model, cond, even))
        return out

    def _equal(self, x_t: Tensor, t: Time, step: Ahead, found: list[Tensor], level: Tensor) -> Tensor:
        """The weights nearest to equal ones that make all log-densities equal after the step.

        d log q_i = <du, s_i> - (D / 2) |s_i|^2 is linear in k, for du = sum_j k_j (gain / alpha_s) D_j + rest.
        """
        wide = torch.float64
        assert step.s is not None
        gain = expand(step.gain, x_t).to(x_t) if isinstance(step.gain, Tensor) else step.gain
        even = step.rest + gain * sum(found) / self.count
        move = Move(self.process, x_t, t, even, step.s)
        after = level + torch.stack([move.ito(D) for D in found], 1)
        alpha = self.process.coefficients(step.s, x_t)[0]
        scores = torch.stack([move.score(D).flatten(1) for D in found], 1).to(wide)
        moved = torch.stack([(gain / alpha * D).flatten(1) for D in found], 1).to(wide)
        # in the space of changes that sum to 0: what all terms share does not matter
        basis = torch.linalg.svd(torch.ones(1, self.count, dtype=wide, device=x_t.device)).Vh[1:]
        effect = basis @ (scores @ moved.mT) @ basis.mT
        gap = basis @ after[..., None]
        eye = torch.eye(self.count - 1, dtype=wide, device=x_t.device)
        change = torch.linalg.solve(effect.mT @ effect + self.damping**2 * eye, effect.mT @ -gap)
        weights: Tensor = 1 / self.count + (basis.mT @ change)[..., 0]
        return weights
