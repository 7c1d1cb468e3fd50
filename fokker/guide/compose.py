"""Composition: products and quotients of conditions and models, as sums of their scores."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.guide.terms import Part, Weight, beliefs, chosen, summed
from fokker.process import Time


class Compose(Wrapper):
    """The score sum_i w_i s_i of several terms, with (`base`) or without what is left to the null condition.

        base       s = s_null + sum_i w_i (s_i - s_null):  p(x) prod_i (p(x | c_i) / p(x))^{w_i};  AND, and NOT with w_i < 0
        no base    s = sum_i w_i s_i:                      prod_i p_i(x)^{w_i};  products of experts, annealing p^b

    Terms are `inner` under each of `conditions` (mappings, or values of the one discrete condition, such as classes; without
    any, under the run's own where there is no base), then each of `models` under the run's conditions. Terms of one denoiser
    are asked in one batch. Exact at every noise level where the factors are independent given the noise; else the composed
    score is not that of the noised product, and particle weights correct it (`fokker.particles`).

    weights   one a term, all 1 by default; they need not sum to 1
    interval  (low, high) of sigma / alpha in which the terms act; outside, the null belief alone (with base only)

    One evaluation a term and one for the base. Raises FokkerError where terms live on different processes or numbers are
    missing. Reference: Liu, Li, Du, Torralba, Tenenbaum 2022, arXiv 2206.01714.
    """

    tokens = True

    def __init__(
        self,
        inner: Denoiser,
        conditions: Sequence[Any] = (),
        weights: Sequence[float] | None = None,
        models: Sequence[Denoiser] = (),
        base: bool = True,
        interval: Sequence[float] | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(inner)
        for model in models:
            if repr(model.process) != repr(inner.process):
                raise FokkerError(f"a term is on {model.process!r}, not on {inner.process!r}; wrap it in OnProcess")
        self.models = torch.nn.ModuleList(models)
        self.given, self.base, self.batched = list(conditions), base, batched
        own = 0 if base and models and not self.given else max(1, len(self.given))
        count = own + len(models)
        if weights is not None and len(weights) != count:
            raise FokkerError(f"weights has {len(weights)} numbers for {count} terms; give one a term")
        if interval is not None and not (base and len(interval) == 2 and 0 <= interval[0] < interval[1]):
            raise FokkerError(f"interval={interval} is not accepted; give (low, high) of sigma / alpha, and base=True")
        self.term_weights: list[Weight] = list(weights or [1.0] * count)
        self.interval, self.own = interval, own
        self.stackable = False

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        parts = self.parts(x_t, t, **cond)
        found = beliefs(parts, x_t, t, self.batched)
        return summed(self.process, x_t, t, [part.weight for part in parts], found)

    def parts(self, x_t: Tensor, t: Time, **cond: Cond) -> list[Part]:
        """Its terms, the base last; those of weight 0 are left out."""
        n, device = len(x_t), x_t.device
        own = [cond | chosen(self.inner, value, n, device) for value in self.given] or [cond] * self.own
        terms = [Part(self.inner, c, w) for c, w in zip(own, self.term_weights, strict=False)]
        for model, w in zip(self.models, self.term_weights[self.own :], strict=True):
            assert isinstance(model, Denoiser)
            terms.append(Part(model, cond, w))
        if not self.base:
            return terms
        free = {k: v for k, v in (own[0] if own else {}).items() if k != "y" and v is not None}
        null = Part(self.inner, cond | self.inner.null(**free), 1.0)
        inside = self._inside(t, x_t)
        if inside is not None:
            terms = [Part(p.denoiser, p.cond, p.weight * inside) for p in terms]
        rest: Any = 1.0 - sum(p.weight for p in terms)
        out = [*terms, Part(null.denoiser, null.cond, rest)]
        kept = [p for p in out if isinstance(p.weight, Tensor) or abs(p.weight) > 1e-12]
        return kept or [null]

    def _inside(self, t: Time, x: Tensor) -> Weight | None:
        """1 where the terms act and 0 elsewhere; None where they always do."""
        if self.interval is None:
            return None
        alpha, _, sigma = self.process.coefficients(t, x)
        low, high = self.interval
        inside = (sigma >= low * alpha) & (sigma <= high * alpha)
        return inside.to(x.dtype).flatten(1)[:, 0] if isinstance(inside, Tensor) else float(inside)
