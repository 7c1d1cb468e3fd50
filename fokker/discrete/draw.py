"""Categorical draws that keep rare tokens, and the exact law of those that do not.

The usual draw, argmax_i (log p_i + g_i) with Gumbel g_i = -log(-log u_i), is exact only for real u. With b-bit uniforms the
largest Gumbel is M = -log(-log(1 - 2^-b)), 16.6 for the 24 bits of float32: a token whose log p_i lies further below the best
than any Gumbel can lift it is never drawn, which is a lower temperature that nobody asked for. Ancestral sampling in small
steps asks for just such draws. Here tokens are drawn by inversion from float64 probabilities and 52-bit uniforms.
"""

import math

import torch
from torch import Tensor

from fokker.errors import FokkerError


def categorical(p: Tensor, u: Tensor) -> Tensor:
    """One draw from each row of p (..., K), which need not sum to one, by inversion at u (...) in (0, 1); int64 (...)."""
    total = p.to(torch.float64).cumsum(-1)
    place = (u * total[..., -1])[..., None]
    chosen = torch.searchsorted(total, place, right=True)[..., 0]
    # rounding may end a hair above the last step of the sum, behind which nothing has mass
    last = (total < total[..., -1:]).sum(-1)
    return torch.minimum(chosen, last)


def gumbel_max(p: Tensor, u: Tensor, bits: int | None = None) -> Tensor:
    """argmax (log p + g) with one Gumbel an entry, from u (..., K); `bits` rounds u down to that many bits, as hardware does.

    For the comparison with `categorical`; entries of probability 0 are never drawn.
    """
    if bits is not None:
        u = torch.floor(u * 2.0**bits) * 2.0**-bits
    return (torch.log(p) - torch.log(-torch.log(u))).argmax(-1)


def truncated_gumbel_law(p: Tensor, bits: int) -> Tensor:
    """The law that Gumbel-max draws have when no Gumbel exceeds M = -log(-log(1 - 2^-bits)); p (K,), float64 (K,).

    With p ascending, S_i = sum_{k >= i} p_k, c_i = (K - i + 1) e^-M and s_i = e^-M / p_i (s_0 infinite),

        P(n) = p_n sum_{i <= n} [exp(c_i - S_i s_i) - exp(c_i - S_i s_{i-1})] / S_i.

    Raises FokkerError unless p is one row that sums to 1 and bits >= 1. Reference: Zheng et al. 2024, arXiv 2409.02908.
    """
    p = p.detach().to("cpu", torch.float64)
    if p.ndim != 1 or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-9 or bits < 1:
        raise FokkerError(f"p of shape {tuple(p.shape)} and bits={bits}; give one row of probabilities, and bits >= 1")
    # e^-M
    tail = -math.log1p(-(2.0**-bits))
    order = p.argsort()
    asc = p[order].clamp_min(1e-300)
    K = len(asc)
    above = asc.flip(0).cumsum(0).flip(0)
    c = torch.arange(K, 0, -1, dtype=torch.float64) * tail
    s = tail / asc
    before = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), s[:-1]])
    parts = (torch.exp(c - above * s) - torch.exp(c - above * before)) / above
    law = torch.empty_like(asc)
    law[order] = asc * parts.cumsum(0)
    return law


def token_entropy(p: Tensor) -> Tensor:
    """-sum p log p in nats over the last axis, float64; 0 log 0 is 0."""
    p = p.to(torch.float64)
    return -torch.xlogy(p, p).sum(-1)
