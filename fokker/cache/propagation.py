"""Encoder propagation: the encoder of a U-Net runs at key steps, and its decoder, alone, at the steps between."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fokker.cache.calls import Call, NetworkCache
from fokker.cache.surgery import decoder, encoder
from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError
from fokker.loop import run as run_plan
from fokker.net.taps import taps
from fokker.plan import Node, Plan, Row


class EncoderPropagation(NetworkCache):
    """At key steps the whole U-Net is run; between them only its decoder, on the key's features with the current time.

    Encoder features change slowly along a run, decoder features fast. Between keys the network's output depends on the key's
    state and the current time alone, so with the `plan` that will be run all decoders up to the next key are one batch,
    asked for at the key and consumed step by step: the same numbers at a fraction of the sequential depth.

    keys   every how many steps one is a key (1 is off: the same bits), or the indices of the key steps (0 always is one);
           `FeatureChange.keys` proposes them for a model
    plan   the plan of the run, for decoding in parallel; wrappers with a memory must then be around this one

    Reference: Li et al. 2024, arXiv 2312.09608. What they add to the state against lost texture is `inject_prior`.
    """

    def __init__(
        self, inner: Denoiser, keys: int | Sequence[int] = 3, plan: Plan | None = None, net: nn.Module | None = None
    ) -> None:
        super().__init__(inner, net)
        if isinstance(keys, int) and keys < 1:
            raise FokkerError(f"keys={keys} is not accepted; use an interval of at least 1 step, or indices of steps")
        for m in inner.modules() if plan is not None else ():
            if isinstance(m, Wrapper) and type(m).reset is not Wrapper.reset:
                raise FokkerError(
                    f"decoding in parallel asks ahead of the run, which {type(m).__name__} with its memory may not see; put it "
                    "around EncoderPropagation instead of inside, or leave out plan="
                )
        self.keys = keys if isinstance(keys, int) else frozenset({0, *(int(k) for k in keys)})
        self.plan, self.encoder = plan, encoder(self.network)

    def reset(self, run: Run) -> None:
        super().reset(run)
        self.encoded = 0
        self.ahead: dict[int, list[Any]] = {}

    def is_key(self, step: int) -> bool:
        """Whether the encoder runs at this step."""
        return step % self.keys == 0 if isinstance(self.keys, int) else step in self.keys

    def answer(self, number: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shape, features = self.kept.get(number, (None, {}))
        if self.is_key(self.step) or shape != args[0].shape:
            with taps(self.network, self.encoder) as seen:
                out = call(*args, **kwargs)
            self.kept[number] = (args[0].shape, dict(seen))
            self.encoded += 1
            if self.plan is not None:
                self.ahead[number] = self._decode_ahead(number, call, out, dict(seen))
            return out
        if self.plan is not None:
            return self.ahead[number].pop(0)
        with taps(self.network, replace=features):
            return call(*args, **kwargs)

    def _decode_ahead(self, number: int, call: Call, out: Any, features: dict[str, Any]) -> list[Any]:
        """The outputs of the steps up to the next key, by one call of the decoder."""
        assert self.plan is not None and self.run is not None
        x_t, t, cond = self.asked
        times = self.plan.times
        if self.step >= len(times) or (isinstance(t, float) and times[self.step] != t):
            raise FokkerError("EncoderPropagation was given another plan than the one that is run; give that one")
        end = next((k for k in range(self.step + 1, len(times)) if self.is_key(k)), len(times))
        if end == self.step + 1:
            return []
        asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        heard: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def listen(_: Call, *args: Any, **kwargs: Any) -> Any:
            heard.append((args, kwargs))
            return out

        # what the network will be told at the coming times, by asking for their beliefs without running it
        counted = self.run.evaluations
        with taps(self.network, around={"": listen}):
            for k in range(self.step + 1, end):
                heard.clear()
                self.inner(x_t, times[k], **cond)
                asked.append(heard[number - self.first])
        self.run.evaluations = counted
        batch, n = asked[0][0][0].shape[0], len(asked)

        def repeated(value: Any) -> Any:
            return torch.cat([value] * n) if isinstance(value, Tensor) and value.shape[:1] == (batch,) else value

        def joined(*values: Any) -> Any:
            first = values[0]
            return torch.cat(values) if isinstance(first, Tensor) and first.shape[:1] == (batch,) else first

        args = [joined(*column) for column in zip(*(a for a, _ in asked), strict=True)]
        kwargs = {name: joined(*(k[name] for _, k in asked)) for name in asked[0][1]}
        with taps(self.network, replace=tree_map(repeated, features)):
            whole = call(*args, **kwargs)
        return [tree_map(lambda v, j=j: v.chunk(n)[j], whole) for j in range(n)]


@dataclass(frozen=True)
class FeatureChange:
    """How far features move from each step to the next, relative to their size: of the encoder and of the decoder."""

    encoder: tuple[float, ...]
    decoder: tuple[float, ...]

    def keys(self, n: int) -> list[int]:
        """`n` key steps at equal parts of the encoder's accumulated change; the first is step 0.

        For networks whose beliefs are bounded. A bare noise prediction that is held from t to s enters the state about
        alpha_s / alpha_t times as large, which no feature shows: keep its beliefs in the data's range (`DynamicThreshold`), or
        put more keys where noise prevails.

        Raises FokkerError for more keys than steps.
        """
        steps = len(self.encoder) + 1
        if not 1 <= n <= steps:
            raise FokkerError(f"{n} keys in {steps} steps is not possible; use 1 to {steps}")
        travelled = [0.0]
        for change in self.encoder:
            travelled.append(travelled[-1] + change)
        keys = [0]
        for k in range(1, n):
            goal = travelled[-1] * k / n
            nearest = min(range(steps), key=lambda i: abs(travelled[i] - goal))
            # at least one step after the last key, and room for the keys to come
            keys.append(min(max(nearest, keys[-1] + 1), steps - (n - k)))
        return keys


class _Watching(NetworkCache):
    """Compares the features of each step with those of the step before."""

    def __init__(self, inner: Denoiser, net: nn.Module | None, found: dict[str, list[float]]) -> None:
        super().__init__(inner, net)
        self.parts = {"encoder": encoder(self.network), "decoder": decoder(self.network)}
        self.found = found

    def answer(self, number: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with taps(self.network, [name for names in self.parts.values() for name in names]) as seen:
            out = call(*args, **kwargs)
        for part, names in self.parts.items():
            now = [_last(seen[name]).detach() for name in names]
            before = self.kept.get(number, {}).get(part)
            if before is not None:
                moved = [float((a - b).norm() / b.norm()) for a, b in zip(now, before, strict=True)]
                self.found[part].append(sum(moved) / len(moved))
            self.kept.setdefault(number, {})[part] = now
        return out


def _last(feature: Any) -> Tensor:
    """The features themselves where a block returns its skips as well."""
    value: Tensor = feature[0] if isinstance(feature, tuple) else feature
    return value


def feature_change(
    denoiser: Denoiser, x: Tensor, plan: Plan, seed: int = 0, net: nn.Module | None = None, **cond: Cond
) -> FeatureChange:
    """The feature changes along a run of `plan` from `x` (batch, ...): from which to choose key steps for a model."""
    found: dict[str, list[float]] = {"encoder": [], "decoder": []}
    run_plan(_Watching(denoiser, net, found), x, plan, seed=seed, **cond)
    return FeatureChange(tuple(found["encoder"]), tuple(found["decoder"]))


def inject_prior(plan: Plan, strength: float = 0.003, share: float = 0.5) -> Plan:
    """The plan that adds `strength` times its own initial noise to the state before each step of the last `share` of a run.

    In units of the state's scale sqrt(alpha^2 + sigma^2) at either time, so that VP gets the published 0.003 x_T. Against the
    texture that propagated features lose. Raises FokkerError for plans with several starting states.

    Reference: Li et al. 2024, arXiv 2312.09608, section 3.4.
    """
    if plan.inputs != 1 or plan.start is None or not 0 <= share <= 1:
        raise FokkerError(
            f"share={share} of a plan with {plan.inputs} starting states; use a share in [0, 1] and one state"
        )
    asked = [k for k, row in enumerate(plan.rows) if isinstance(row, Row) and row.t is not None]
    chosen = set(asked[len(asked) - int(share * len(asked)) :]) - {0}
    rows = list(plan.rows)

    def scale(t: Any) -> Tensor:
        node = Node.at(plan.process, torch.as_tensor(t, dtype=torch.float64))
        return torch.sqrt(node.alpha**2 + node.sigma**2)

    for k in chosen:
        row = rows[k]
        assert isinstance(row, Row) and row.t is not None
        more = strength * scale(row.t) / scale(plan.start)
        terms = dict(row.terms)
        terms["x", 0] = terms.get(("x", 0), 0.0) + (more.item() if more.ndim == 0 else more)
        rows[k] = Row(tuple(terms.items()), row.t)
    config = {"prior": {"strength": strength, "share": share, "of": plan.config}}
    return replace(plan, rows=tuple(rows), config=config)
