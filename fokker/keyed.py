"""Noise that belongs to a sample.

Every number is a pure function of (seed, sample id, stream, index, position): a counter-based generator (Philox-4x32-10)
evaluated with integer tensor arithmetic. Sample 17 therefore gets the same noise alone, in a batch of 64, on any device
and over any number of processes, and there is no generator state that something could advance by accident.

`Brownian` extends this to paths: the noise of a step from t to s is an increment of one Brownian motion per sample that
runs in the signal-to-noise ratio alpha^2 / sigma^2. In that clock the noise of the exact reverse transition is a plain
increment, so refining a grid or changing the process keeps the path.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_STREAMS = {"start": 0, "step": 1, "brownian": 2, "data": 3, "train": 4, "measure": 5, "law": 6, "check": 7}


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four broadcastable int64 tensors of 32-bit counter words to four of random 32-bit words.

    Reference: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around; masking after the shift undoes the sign extension, so the words are exact
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def sample_ids(n: int, ids: Sequence[int] | Tensor | None, device: torch.device | str | None = None) -> Tensor:
    """The ids 0..n-1, or the given ones, as an int64 tensor; raises FokkerError unless there are n in [0, 2**32)."""
    if ids is None:
        return torch.arange(n, dtype=torch.int64, device=device)
    out = torch.as_tensor(ids, dtype=torch.int64, device=device)
    if out.shape != (n,):
        raise FokkerError(f"ids has shape {tuple(out.shape)} for {n} samples; give one id per sample")
    # ids on a device are not looked at, which would wait for it
    if out.device.type == "cpu" and n and not 0 <= int(out.min()) <= int(out.max()) <= _WORD:
        raise FokkerError(f"ids run from {int(out.min())} to {int(out.max())}; use integers from 0 to 2**32 - 1")
    return out


def _words(shape: Sequence[int], seed: int, ids: Tensor, stream: str, index: int | Tensor) -> Tensor:
    """Random 32-bit words as int64, shape (len(ids), 4, ceil(prod(shape[1:]) / 4))."""
    if stream not in _STREAMS:
        raise unknown("noise stream", stream, _STREAMS)
    if not 0 <= seed < 2**63:
        raise FokkerError(f"seed={seed} is not accepted; use an integer from 0 to 2**63 - 1")
    blocks = -(-math.prod(shape[1:]) // 4)
    index = torch.as_tensor(index, dtype=torch.int64, device=ids.device).reshape(-1, 1)
    counter = (
        torch.arange(blocks, dtype=torch.int64, device=ids.device),
        index & _WORD,
        ids[:, None],
        ((index >> 32) & 0xFFFFFF) | (_STREAMS[stream] << 24),
    )
    key = (seed & _WORD, seed >> 32)
    return torch.stack([w.expand(len(ids), blocks) for w in philox(counter, key)], dim=1)


def uniform(
    shape: Sequence[int],
    seed: int = 0,
    ids: Sequence[int] | Tensor | None = None,
    stream: str = "start",
    index: int | Tensor = 0,
    device: torch.device | str | None = None,
    bits: int = 32,
) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64, keyed per sample like `noise`.

    `bits` is 32, or 52 where events rarer than 2^-32 must not be lost: draws of tokens.
    """
    which = sample_ids(shape[0] if ids is None else len(ids), ids, device)
    n = math.prod(shape[1:])
    if bits == 32:
        u = (_words(shape, seed, which, stream, index).to(torch.float64) + 0.5) * 2.0**-32
        return u.flatten(1)[:, :n].reshape(len(which), *shape[1:])
    words = _words((len(which), 2 * n), seed, which, stream, index).flatten(1)
    fine = (words[:, :n] << 20) | (words[:, n : 2 * n] >> 12)
    return ((fine.to(torch.float64) + 0.5) * 2.0**-52).reshape(len(which), *shape[1:])


def noise(
    shape: Sequence[int],
    seed: int = 0,
    ids: Sequence[int] | Tensor | None = None,
    stream: str = "start",
    index: int | Tensor = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Unit normal noise of `shape` (n, ...), one independent stream per sample.

    `ids` (n,) names the samples (default 0..n-1): `noise((1, 64), ids=[17])` is row 17 of `noise((64, 64))`. When ids are
    given, their number replaces shape[0]. `stream` separates uses (the start of a run, its steps, a law's own draws),
    `index` (an integer below 2**56, or one per sample) the draws within a use. Computed in float64 and cast to `dtype`
    (default: torch's default), so that float32 and float64 runs see the same noise.

    Raises FokkerError for a negative seed or an unknown stream. Reference: Box-Muller on Philox-4x32-10 words.
    """
    which = sample_ids(shape[0] if ids is None else len(ids), ids, device)
    words = _words(shape, seed, which, stream, index).to(torch.float64)
    radius = torch.sqrt(-2.0 * torch.log((words[:, 0::2] + 0.5) * 2.0**-32))
    angle = words[:, 1::2] * (2.0 * math.pi * 2.0**-32)
    normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    flat = normal.flatten(1)[:, : math.prod(shape[1:])]
    return flat.reshape(len(which), *shape[1:]).to(dtype or torch.get_default_dtype())


# The Brownian clock: log-SNR is clamped to +-RANGE, and the path is resolved to RANGE * 2**(1 - DEPTH) in log-SNR.
RANGE = 64.0
DEPTH = 17


def _cell(logsnr: float) -> int:
    """The nearest node of the finest dyadic level, 0 .. 2**DEPTH."""
    clamped = min(max(logsnr, -RANGE), RANGE)
    return round((clamped + RANGE) / (2 * RANGE) * (1 << DEPTH))


def _snr(cell: int) -> float:
    """The Brownian time of a node; the lowest stands for SNR 0."""
    return math.exp(cell / (1 << DEPTH) * 2 * RANGE - RANGE) if cell else 0.0


@dataclass
class Brownian:
    """One Brownian path per sample in the clock SNR = alpha^2 / sigma^2, evaluated lazily by bisection in log-SNR.

    `increment(a, b)` is (B(snr_b) - B(snr_a)) / sqrt(snr_b - snr_a), a unit normal of `shape`, for log-SNR a < b. Sums of
    increments over a refined grid equal the coarse ones, whatever the process. Steps that go up in noise (a > b: churn,
    restarts) draw fresh noise keyed by the interval and by how often it was visited before in this run. Samples may each
    have an interval of their own.

    Reference: Li, Wong, Chen, Duvenaud 2020, "Scalable gradients for stochastic differential equations", arXiv 2001.01328
    (the virtual Brownian tree).
    """

    shape: Sequence[int]
    seed: int = 0
    ids: Sequence[int] | Tensor | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    _nodes: OrderedDict[int, Tensor] = field(default_factory=OrderedDict, repr=False)
    _visits: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    _alone: list["Brownian"] = field(default_factory=list, repr=False)
    _last: tuple[int, Tensor] | None = field(default=None, repr=False)

    def increment(self, a: float | Tensor, b: float | Tensor) -> Tensor:
        """The normalised increment from log-SNR `a` to log-SNR `b`, a unit normal of `shape`.

        `a` and `b` are numbers, or tensors with one interval per leading index (batch,) or (batch, tokens).
        """
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return self._each(*torch.broadcast_tensors(torch.as_tensor(a), torch.as_tensor(b)))
        low, high = _cell(a), _cell(b)
        if low < high:
            before = self._last[1] if self._last and self._last[0] == low else self._at(low)
            after = self._at(high)
            self._last = (high, after)  # where the next step of a grid begins
            step = (after - before) / math.sqrt(_snr(high) - _snr(low))
            return step.to(self.dtype or torch.get_default_dtype())
        visit = self._visits.get((low, high), 0)
        self._visits[low, high] = visit + 1
        index = (visit << 36) | (low << 18) | high
        return noise(self.shape, self.seed, self.ids, "step", index, self.dtype, self.device)

    def _each(self, a: Tensor, b: Tensor) -> Tensor:
        """Sample by sample, each on its own path, so that no sample sees the intervals of the others."""
        if not self._alone:
            ids = sample_ids(self.shape[0], self.ids, self.device)
            one = (1, *self.shape[1:])
            self._alone = [Brownian(one, self.seed, ids[i : i + 1], self.dtype, self.device) for i in range(len(ids))]
        many = len(self._alone)
        out = []
        for path, starts, stops in zip(self._alone, *(e.expand(many, *a.shape[1:]).reshape(many, -1) for e in (a, b))):
            pairs = list(zip(starts.tolist(), stops.tolist()))
            drawn = {pair: path.increment(*pair)[0] for pair in dict.fromkeys(pairs)}
            # within a sample, each token takes its part of the draw for its own interval
            parts = [drawn[pair].reshape(len(pairs), -1)[k] for k, pair in enumerate(pairs)]
            out.append(torch.stack(parts).reshape(self.shape[1:]))
        return torch.stack(out)

    def _at(self, cell: int) -> Tensor:
        """B at a node of the finest level, by descending from the two ends of the clock."""
        low, high, interval = 0, 1 << DEPTH, 1
        value_low = torch.zeros((), dtype=torch.float64, device=self.device)
        if cell == low:
            return value_low
        value_high = self._node(0, 0.0, value_low, value_low, math.sqrt(_snr(high)))
        while cell != high:
            middle = (low + high) // 2
            a, m, b = _snr(low), _snr(middle), _snr(high)
            share = (m - a) / (b - a)
            value = self._node(interval, share, value_low, value_high, math.sqrt(share * (b - m)))
            if cell <= middle:
                high, value_high, interval = middle, value, 2 * interval
            else:
                low, value_low, interval = middle, value, 2 * interval + 1
        return value_high

    def _node(self, interval: int, share: float, low: Tensor, high: Tensor, std: float) -> Tensor:
        """B in the middle of a dyadic interval, given B at its ends (a Brownian bridge)."""
        if interval not in self._nodes:
            draw = noise(self.shape, self.seed, self.ids, "brownian", interval, torch.float64, self.device)
            self._nodes[interval] = low + share * (high - low) + std * draw
            if len(self._nodes) > DEPTH + 3:  # one descent; a grid walked in order needs no more
                self._nodes.popitem(last=False)
        self._nodes.move_to_end(interval)
        return self._nodes[interval]
