"""Feature caches: exact where they must be, cheaper where they may, on our U-Net and on diffusers'."""

from itertools import pairwise

import pytest
import torch
from small_nets import alive, draw
from torch import Tensor, nn

import fokker as fk
from fokker.cache import (
    DeepCache,
    EncoderPropagation,
    below,
    compare,
    encoder,
    feature_change,
    inject_prior,
    nonuniform,
    skips,
)
from fokker.denoiser import NetworkDenoiser, Run
from fokker.errors import FokkerError
from fokker.net import build, taps
from fokker.net.cost import layers, macs

PROCESS = fk.VP()
CONDITION = {"label": torch.tensor([0, 3, 1])}


def ours(mults: tuple[int, ...] = (1, 2, 2)) -> NetworkDenoiser:
    net = build({"kind": "unet", "width": 8, "mults": list(mults), "heads": 2, "blocks": 1, "classes": 4})
    return NetworkDenoiser(alive(net, 0.05), PROCESS)


class Theirs(nn.Module):
    """A U-Net of diffusers behind our call."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet = UNet2DModel(
                sample_size=8, in_channels=1, out_channels=1, layers_per_block=2, block_out_channels=(8, 16), norm_num_groups=4,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=8, num_class_embeds=5,
            )  # fmt: skip
        self.eval()

    def null_conditions(self, label: Tensor) -> dict[str, Tensor]:
        return {"label": torch.full_like(label, 4)}

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.unet(x, c, class_labels=label).sample
        return out


def theirs() -> NetworkDenoiser:
    return NetworkDenoiser(Theirs(), PROCESS)


DENOISERS = {"ours": ours, "diffusers": theirs}
both = pytest.mark.parametrize("kind", DENOISERS)
PLAN = fk.loop.lay(PROCESS, "ddim", steps=7)
X = draw(3, 1, 8, 8)


def end(denoiser: fk.Denoiser, plan: fk.Plan = PLAN, **more: Tensor) -> Tensor:
    return fk.sample(denoiser, X, plan, **(CONDITION | more))


@both
def test_refresh_at_every_step_gives_the_same_bits(kind: str) -> None:
    plain = DENOISERS[kind]()
    for level in range(skips(fk.cache.find(plain))):
        assert torch.equal(end(DeepCache(plain, 1, level)), end(plain))
    assert torch.equal(end(EncoderPropagation(plain, 1)), end(plain))
    assert not torch.equal(end(DeepCache(plain, 3)), end(plain))


@both
def test_what_is_shallow_is_fresh_and_what_is_deep_is_old(kind: str) -> None:
    """A cached step equals the network with its deep features replaced by those of the refresh."""
    plain = DENOISERS[kind]()
    net = fk.cache.find(plain)
    for level in range(skips(net)):
        cached = DeepCache(plain, 2, level).bind(Run(3, rows=9))
        assert cached.run is not None
        for row, t in enumerate((0.9, 0.6)):
            cached.run.row, cached.run.t = row, t
            out = cached((row + 1) * X, t, **CONDITION)
        with taps(net, below(net, level)) as old:
            plain(X, 0.9, **CONDITION)
        with taps(net, replace=dict(old)):
            assert torch.equal(out, plain(2 * X, 0.6, **CONDITION))


@both
def test_deeper_levels_cost_more_and_the_deepest_leaves_out_the_least(kind: str) -> None:
    plain = DENOISERS[kind]()
    net = fk.cache.find(plain)
    names = [set(below(net, level)) for level in range(skips(net))]
    assert all(a > b for a, b in pairwise(names))
    costs = [macs(lambda level=level: end(DeepCache(plain, 7, level))) for level in range(skips(net))]
    assert costs == sorted(costs) and costs[-1] < macs(lambda: end(plain))
    if kind == "diffusers":  # the outermost skip: the input's convolution and the last resnet, which takes it
        units = {n for n, m in net.named_modules() if type(m).__name__ in ("ResnetBlock2D", "Upsample2D", "Downsample2D")}
        assert {n for n in units - names[0] if not n.startswith("mid_block")} == {"up_blocks.1.resnets.2"}
        assert {n for n in names[0] - names[1] if "." in n} == {"down_blocks.0.resnets.0", "up_blocks.1.resnets.1"}
    # a level is cut exactly where its own skip begins: nothing below reads it
    for level in range(skips(net)):
        with taps(net, below(net, level)) as seen:
            plain(X, 0.5, **CONDITION)
        with taps(net, replace=dict(seen)):
            assert torch.equal(plain(X, 0.5, **CONDITION), DENOISERS[kind]()(X, 0.5, **CONDITION))


def test_counted_macs_follow_the_schedule() -> None:
    plain, steps = ours(), 7
    whole = macs(lambda: plain(X, 0.5, **CONDITION))
    shallow = macs(lambda: end(DeepCache(plain, steps))) - whole
    assert shallow % (steps - 1) == 0
    share = shallow // (steps - 1)
    for refresh in (1, 2, 3, 5):
        full = -(-steps // refresh)
        assert macs(lambda r=refresh: end(DeepCache(plain, r))) == full * whole + (steps - full) * share
    chosen = [0, 1, 5]
    assert macs(lambda: end(DeepCache(plain, chosen))) == 3 * whole + 4 * share


def test_runs_branches_and_batches_do_not_see_each_other() -> None:
    plain = ours()
    cached = DeepCache(plain, 3)
    first = end(cached)
    fk.sample(cached, 3 * X[:2], PLAN, label=CONDITION["label"][:2])
    assert torch.equal(end(cached), first)
    alone = fk.sample(cached, X[1:2], PLAN, label=CONDITION["label"][1:2])
    assert torch.allclose(alone, first[1:2], atol=1e-5)
    inside, outside = fk.guide.CFG(cached, 3.0), DeepCache(fk.guide.CFG(plain, 3.0), 3)
    apart = fk.guide.CFG(cached, 3.0, batched=False)
    separate = DeepCache(fk.guide.CFG(plain, 3.0, batched=False), 3)
    assert torch.equal(end(inside), end(outside)) and torch.equal(end(apart), end(separate))
    assert torch.allclose(end(inside), end(apart), atol=1e-5)
    assert torch.equal(cached(X, 0.5, **CONDITION), plain(X, 0.5, **CONDITION))  # outside a run nothing is kept


def test_multi_call_and_adaptive_solvers_count_calls() -> None:
    plain = ours()
    heun = fk.loop.lay(PROCESS, "heun", steps=4)
    assert torch.equal(end(DeepCache(plain, 1), heun), end(plain, heun))
    assert torch.isfinite(end(DeepCache(plain, 2), heun)).all()
    adaptive = fk.loop.lay(PROCESS, "adaptive", steps=1)
    assert torch.equal(end(DeepCache(plain, 1), adaptive), end(plain, adaptive))


@both
def test_decoders_in_one_batch_give_what_they_give_one_by_one(kind: str) -> None:
    plain = DENOISERS[kind]()
    sequential, parallel = EncoderPropagation(plain, [0, 3]), EncoderPropagation(plain, [0, 3], PLAN)
    assert torch.allclose(end(parallel), end(sequential), atol=1e-6)
    for wrap in (lambda d: fk.guide.CFG(d, 2.0), lambda d: fk.guide.CFG(d, 2.0, batched=False)):
        assert torch.allclose(end(wrap(parallel)), end(wrap(sequential)), atol=1e-5)
    for batched in (True, False):
        guided = fk.guide.CFG(plain, 2.0, batched=batched)
        inside = EncoderPropagation(guided, [0, 3], PLAN), EncoderPropagation(guided, [0, 3])
        assert torch.allclose(end(inside[0]), end(inside[1]), atol=1e-5)
    a, b = fk.run(parallel, X, PLAN, **CONDITION), fk.run(plain, X, PLAN, **CONDITION)
    assert a.nfe == b.nfe
    assert macs(lambda: end(parallel)) == macs(lambda: end(sequential)) < macs(lambda: end(plain))
    assert set(encoder(fk.cache.find(plain))) & set(below(fk.cache.find(plain), 0))


def test_propagation_refuses_what_it_cannot_foresee() -> None:
    plain = ours()
    other = fk.loop.lay(PROCESS, "ddim", steps=5)
    with pytest.raises(FokkerError, match="another plan"):
        end(EncoderPropagation(plain, 2, other))
    with pytest.raises(FokkerError, match="around"):
        EncoderPropagation(DeepCache(plain, 2), 2, PLAN)


def test_key_steps_follow_the_change() -> None:
    found = feature_change(ours(), X, PLAN, **CONDITION)
    assert len(found.encoder) == len(found.decoder) == 6 and min(found.encoder) > 0
    even = fk.cache.FeatureChange((1.0,) * 8, (1.0,) * 8)
    assert even.keys(3) == [0, 3, 5] and even.keys(9) == list(range(9)) and even.keys(1) == [0]
    late = fk.cache.FeatureChange((0.01,) * 6 + (1.0, 1.0), (1.0,) * 8)
    assert late.keys(4) == [0, 6, 7, 8]
    with pytest.raises(FokkerError, match="1 to 9"):
        even.keys(10)


def test_the_injected_noise_is_the_initial_one() -> None:
    """With a denoiser that answers nothing, DDIM only scales the state: what is added can be followed by hand."""
    nothing = fk.as_denoiser(lambda x, t: torch.zeros_like(x), PROCESS)
    seen: list[Tensor] = []
    plan = inject_prior(PLAN, 0.1, 0.5)
    fk.run(nothing, X, plan, watch=lambda run, x, belief: seen.append(x.clone()) and None)
    plain: list[Tensor] = []
    fk.run(nothing, X, PLAN, watch=lambda run, x, belief: plain.append(x.clone()) and None)
    changed = [not torch.allclose(a, b) for a, b in zip(seen, plain, strict=True)]
    assert changed == [False] * 4 + [True] * 3
    scale = (PROCESS.alpha(PLAN.start) ** 2 + PROCESS.sigma(PLAN.start) ** 2).sqrt()
    assert torch.allclose(seen[4], plain[4] + 0.1 * X / scale, atol=1e-6)
    assert torch.equal(end(ours(), inject_prior(PLAN, 0.0)), end(ours()))
    assert fk.Plan.from_json(plan.json()).rows == plan.rows


@pytest.mark.parametrize(("centre", "power"), [(0, 1.4), (10, 1.4), (25, 2.0), (50, 1.2), (15, 1.0)])
def test_nonuniform_schedules(centre: float, power: float) -> None:
    found = nonuniform(50, 5, centre, power)
    assert found[0] == 0 and len(found) == len(set(found)) == 10 and max(found) < 50
    assert nonuniform(50, 1, 25.0) == list(range(50))
    gaps = torch.tensor(found).diff()
    if power > 1.3 and centre == 25:
        assert gaps.argmin() not in (0, len(gaps) - 1)


def test_layers_add_up_to_the_whole_and_agree_with_arithmetic() -> None:
    plain = ours((1, 2))
    rows = {row.name: row for row in layers(plain.net, X, torch.zeros(3), **CONDITION)}
    assert sum(row.macs for row in rows.values()) == macs(lambda: plain.net(X, torch.zeros(3), **CONDITION))
    assert rows["inp"].macs == 3 * 64 * 8 * 1 * 9 and rows["embedding.mix"].macs == 3 * 32 * 32
    assert rows["mid.0.attention"].macs == 3 * 2 * 16 * 16 * 16  # the product itself: two of (16, 16) by 16 channels
    assert all(0 < row.seconds < 1 for row in rows.values()) and rows["inp"].parameters == 80


def test_compare_is_exact_about_what_is_equal() -> None:
    plain = ours((1, 2))
    shorter = fk.loop.lay(PROCESS, "ddim", steps=3)
    rows = compare({"plain": plain, "same": DeepCache(plain, 1), "short": (plain, shorter)}, X, PLAN, repeats=1, **CONDITION)
    assert [row.error == 0 for row in rows] == [True, True, False]
    assert rows[0].macs == rows[1].macs and rows[2].macs * 7 == rows[0].macs * 3 and all(row.seconds > 0 for row in rows)


def test_wrong_requests_are_refused_in_one_sentence() -> None:
    plain = ours()
    for make, said in (
        (lambda: DeepCache(plain, 0), "interval of at least 1"),
        (lambda: DeepCache(plain, 3, level=3), "skip connections 0 to 2"),
        (lambda: DeepCache(fk.laws.ring().denoiser(PROCESS)), "0 U-Nets"),
        (lambda: EncoderPropagation(plain, 0), "interval of at least 1"),
        (lambda: nonuniform(10, 2, 11.0), "centre"),
        (lambda: inject_prior(PLAN, share=2.0), "share"),
        (lambda: compare({}, X, PLAN), "at least one"),
    ):
        with pytest.raises(FokkerError, match=said):
            make()
