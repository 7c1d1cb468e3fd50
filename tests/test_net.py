"""Networks: the contract of each kind on every dimension, and mistakes told in a sentence."""

import json
from collections.abc import Callable

import pytest
import torch
from small_nets import SIZES, SMALL, alive, call, draw, features, full, make
from torch import Tensor

from fokker.errors import FokkerError
from fokker.net import PRESETS, build, taps
from fokker.net.layers import Norm, dropout, fold, memory_format, noise_features, pad, position_features, unfold

CASES = [(kind, dim) for kind in SMALL for dim in SIZES]


@pytest.mark.parametrize(("kind", "dim"), CASES)
class TestEveryNetwork:
    def test_starts_at_zero_and_keeps_any_size(self, kind: str, dim: int) -> None:
        x, c, cond = call(dim)
        out = full(kind, dim)(x, c, **cond)
        assert out.shape == (5, 3, *SIZES[dim])
        assert torch.equal(out, torch.zeros_like(out))

    def test_a_sample_does_not_know_its_batch(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        together = net(x, c, **cond)
        alone = torch.cat(
            [net(x[i : i + 1], c[i : i + 1], **{k: v[i : i + 1] for k, v in cond.items()}) for i in range(5)]
        )
        assert together.abs().max() > 0.1
        assert (together - alone).abs().max() <= 1e-5 * together.abs().max()

    def test_gradients_reach_every_parameter(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        x.requires_grad_()
        net(x, c, **cond).square().sum().backward()
        dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not dead
        assert x.grad is not None and bool((x.grad.abs().flatten(2) > 0).all())

    def test_every_input_is_heard(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        plain = net(x, c, **cond)
        assert (net(x, c + 0.1, **cond) - plain).flatten(1).abs().amax(1).min() > 1e-4
        other = {"label": (cond["label"] + 1) % 4, "tokens": cond["tokens"] + 1, "image": cond["image"] + 1}
        for name, value in other.items():
            assert (net(x, c, **{**cond, name: value}) - plain).flatten(1).abs().amax(1).min() > 1e-4, name

    def test_null_conditions_are_no_conditions(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        free = net(x, c)
        for null in (net.null(5), net.null_conditions(**cond), {"token_mask": torch.zeros(5, 2, dtype=torch.bool)}):
            if "token_mask" in null and "tokens" not in null:
                null["tokens"] = draw(5, 2, 5)
            assert set(null) <= set(net.conditions)
            assert (net(x, c, **null) - free).abs().max() <= 1e-5 * free.abs().max()
        assert torch.equal(net(x, c, **dict.fromkeys(net.conditions)), free)
        mixed = net(x, c, label=cond["label"])
        assert torch.allclose(mixed[0], free[0], atol=1e-5) and not torch.allclose(mixed[1], free[1], atol=1e-3)

    def test_masked_tokens_do_not_exist(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        short = net(x, c, tokens=cond["tokens"])
        longer = torch.cat((cond["tokens"], draw(5, 4, 5, seed=9)), 1)
        mask = torch.arange(7).expand(5, 7) < 3
        assert (net(x, c, tokens=longer, token_mask=mask) - short).abs().max() <= 1e-5 * short.abs().max()

    def test_config_rebuilds_it(self, kind: str, dim: int) -> None:
        net = full(kind, dim)
        again = build(json.loads(json.dumps(net.config)))
        assert again.config == net.config
        state = net.state_dict()
        assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in state.items()}
        assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
        assert any(not torch.equal(v, state[k]) for k, v in build(net.config, seed=1).state_dict().items())
        assert build({**net.config, "seed": 1}).config == net.config

    def test_building_leaves_the_global_generator_alone(self, kind: str, dim: int) -> None:
        before = torch.get_rng_state()
        full(kind, dim)
        assert torch.equal(torch.get_rng_state(), before)

    def test_stages_make_up_the_call(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        state = net.start(x, c, **cond)
        for name in net.stages:
            net.get_submodule(name)
            net.advance(name, state)
        assert torch.equal(net.finish(state), net(x, c, **cond))

    def test_double_and_half_precision(self, kind: str, dim: int) -> None:
        net = alive(full(kind, dim))
        x, c, cond = call(dim)
        single = net(x, c, **cond)
        double = net.double()(x.double(), c.double(), **cond)
        assert double.dtype == torch.float64 and (double - single).abs().max() <= 1e-4 * single.abs().max()
        half = net.bfloat16()(x.bfloat16(), c, **cond)
        # bfloat16 keeps 8 bits: an error of 2^-8 a layer, over some 30 layers, adds up as its root
        assert half.dtype == torch.bfloat16 and (half - single).std() <= 30**0.5 * 2**-8 * single.std() * 3


def test_the_label_embedding_is_per_sample_and_in_range() -> None:
    net = alive(make("unet", classes=4))
    x, c = draw(2, 2, 8, 8), torch.zeros(2)
    with pytest.raises(FokkerError, match="label 4 is out of range; this network knows 0 to 3"):
        net(x, c, label=torch.tensor([0, 4]))
    assert torch.equal(net(x, c, label=torch.tensor([-1, -5])), net(x, c))


@pytest.mark.parametrize("kind", SMALL)
def test_one_number_is_a_level_for_all(kind: str) -> None:
    net = alive(make(kind))
    x = draw(3, 2, 8, 8)
    assert torch.equal(net(x, torch.tensor(0.3)), net(x, torch.full((3,), 0.3)))


def test_the_anchor_is_an_image() -> None:
    net = alive(make("unet", image_channels=2))
    x, y, c = draw(2, 2, 8, 8), draw(2, 2, 8, 8, seed=2), torch.zeros(2)
    assert torch.equal(net(x, c, y=y), net(x, c, image=y))
    assert torch.equal(net.null_conditions(y=y)["y"], y)


def test_a_transformer_takes_one_level_a_token() -> None:
    net = alive(make("dit"))
    x = draw(2, 2, 7, 10)
    assert net.grid((7, 10)) == (4, 5)
    same = net(x, torch.full((2, 20), 0.3))
    assert (same - net(x, torch.full((2,), 0.3))).abs().max() <= 1e-5 * same.abs().max()
    levels = torch.full((2, 4, 5), 0.3)
    levels[1, 3, 4] = -1.0
    changed = net(x, levels)
    assert torch.allclose(changed[0], same[0], atol=1e-5) and not torch.allclose(changed[1], same[1], atol=1e-3)
    with pytest.raises(FokkerError, match=r"c_noise has shape \(2, 7\); give \(2,\), or one level a token: \(2, 20\)"):
        net(x, torch.zeros(2, 7))


@pytest.mark.parametrize("dim", SIZES)
def test_fold_and_unfold_are_inverse(dim: int) -> None:
    x = draw(2, 3, *(3 * n for n in (2, 3, 4)[:dim]))
    folded = fold(x, 3)
    assert folded.shape == (2, 3**dim * 3, *(2, 3, 4)[:dim]) and torch.equal(unfold(folded, 3), x)
    assert torch.equal(folded.flatten(2)[..., 0], x[(slice(None), slice(None), *[slice(0, 3)] * dim)].flatten(1))


@pytest.mark.parametrize("dim", SIZES)
def test_a_unet_works_on_patches(dim: int) -> None:
    net = alive(make("unet", dim, patch=2))
    assert net.multiple == 4
    x, c = draw(1, 2, *SIZES[dim]), torch.zeros(1)
    assert features(net, "down.0", x, c).shape[2:] == tuple(-(-n // 4) * 2 for n in SIZES[dim])
    assert net(x, c).shape == x.shape and not torch.allclose(net(x, c), net(-x, c), atol=1e-3)


@pytest.mark.parametrize("dim", SIZES)
def test_positions_are_told_apart_and_do_not_depend_on_the_size(dim: int) -> None:
    small, large = (3, 4, 2)[:dim], (5, 6, 4)[:dim]
    few, many = position_features(small, 24, torch.device("cpu")), position_features(large, 24, torch.device("cpu"))
    inside = many.view(*large, 24)[tuple(slice(0, n) for n in small)]
    assert torch.allclose(inside.reshape(-1, 24), few)
    assert torch.cdist(few, few).fill_diagonal_(1).min() > 0.1


def test_noise_levels_are_told_apart() -> None:
    c = torch.linspace(-5, 5, 401)  # ln(sigma / alpha) in steps of 0.1
    features = noise_features(c, 64)
    assert features.shape == (401, 64)
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.5


def test_padding_reflects_and_wraps_at_the_end() -> None:
    x = torch.arange(5.0).view(1, 1, 5)
    assert pad(x, 4)[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert pad(x, 4, periodic=True)[0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert pad(x[..., :2], 8)[0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert pad(x, 5) is x
    both = pad(draw(1, 1, 3, 5), 4)
    assert both.shape == (1, 1, 4, 8) and torch.equal(both[..., 3, :], both[..., 1, :])


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    n, p = 100_000, 0.25
    h = torch.ones(10, 10, 40, 25).to(memory_format=torch.channels_last).requires_grad_()
    out = dropout(h, p)
    (gradient,) = torch.autograd.grad(out.sum(), h)
    dropped = float((out == 0).double().mean())
    assert abs(dropped - p) <= 5 * (p * (1 - p) / n) ** 0.5
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - p))) and torch.equal(gradient, out)
    # neighbours in memory are independent: the share of pairs dropped together is p^2
    flat = (out == 0).permute(0, 2, 3, 1).flatten().view(-1, 2).all(1).double().mean()
    assert abs(float(flat) - p**2) <= 5 * (p**2 / (n / 2)) ** 0.5
    net = alive(make("unet", dropout=0.5))
    x, c = draw(2, 2, 8, 8), torch.zeros(2)
    assert torch.equal(net(x, c), net(x, c)) and not torch.equal(net.train()(x, c), net(x, c))


def test_every_level_has_its_skip() -> None:
    net = alive(make("unet"))
    x, c = draw(1, 2, 8, 8), torch.zeros(1)
    for level, below in (("up.0", "up.1"), ("up.1", "mid")):
        heard = []
        for scale in (1, 2):
            with taps(net, [level], replace={below: torch.zeros(1, 16, 4, 4)}) as seen:
                net(scale * x, c)
            heard.append(seen[level])
        assert not torch.allclose(*heard, atol=1e-3), level


def test_a_periodic_network_has_no_border() -> None:
    net = alive(make("unet", dim=1, periodic=True))
    x, c = draw(1, 2, 16), torch.zeros(1)
    shifted = net(x.roll(net.multiple, -1), c)
    assert torch.allclose(shifted, net(x, c).roll(net.multiple, -1), atol=1e-5)
    edged = alive(make("unet", dim=1))
    assert not torch.allclose(edged(x.roll(2, -1), c), edged(x, c).roll(2, -1), atol=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    net = build(name)
    assert build(net.config).config == net.config


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: build("digit"), "unknown network preset 'digit'; did you mean 'digits'"),
        (lambda: build({"kind": "unit"}), "unknown network kind 'unit'; did you mean 'unet'"),
        (lambda: build({"kind": "unet", "widths": 3}), "unknown option of network unet 'widths'; did you mean 'width'"),
        (lambda: build({"kind": "os:system"}), "imported only with trust=True"),
        (lambda: build({"kind": "os:system"}, trust=True), "make it a subclass of fokker.net.Network"),
        (lambda: make("unet", dim=4), "dim=4 is not accepted"),
        (lambda: make("unet", heads=3), "heads=3 does not divide the 16 channels"),
        (lambda: make("unet", width=0), "width=0 is not accepted; use 1 or more"),
        (lambda: make("unet", attention=[True]), "attention has 1 flags for 2 levels"),
        (lambda: make("unet", tokens=3, mid_attention=False), "tokens are read where there is attention"),
        (lambda: make("dit", dropout=1.0), "dropout=1.0 is not accepted"),
        (lambda: make("unet", patch=0), "patch=0 is not accepted; use 1 or more"),
        (lambda: make("dit", heads=5), "heads divide width"),
        (lambda: make("unet")(draw(2, 2, 8), torch.zeros(2)), "this network takes \\(batch, 2, height, width\\)"),
        (lambda: make("unet")(draw(2, 3, 8, 8), torch.zeros(2)), "x has shape \\(2, 3, 8, 8\\)"),
        (lambda: make("unet")(draw(2, 2, 8, 8), torch.zeros(3)), "c_noise has shape \\(3,\\) for 2 samples"),
    ],
)
def test_mistakes_are_told_in_a_sentence(act: Callable[[], object], sentence: str) -> None:
    with pytest.raises(FokkerError, match=sentence):
        act()


@pytest.mark.parametrize(
    ("cond", "sentence"),
    [
        ({"labels": torch.zeros(2)}, "unknown condition 'labels'; did you mean 'label'"),
        ({"label": torch.zeros(3, dtype=torch.int64)}, "label has shape \\(3,\\); this call takes \\(2,\\)"),
        ({"label": torch.zeros(2)}, "label has dtype torch.float32; give int64 classes"),
        ({"tokens": draw(2, 3, 4)}, "tokens has shape \\(2, 3, 4\\); this call takes \\(2, 3, 5\\)"),
        ({"tokens": draw(2, 5)}, "tokens has shape \\(2, 5\\)"),
        ({"token_mask": torch.ones(2, 3, dtype=torch.bool)}, "token_mask is given without tokens"),
        ({"tokens": draw(2, 3, 5), "token_mask": torch.ones(2, 3)}, "token_mask has dtype torch.float32"),
        ({"image": draw(2, 1, 8, 9)}, "image has shape \\(2, 1, 8, 9\\); this call takes \\(2, 1, 8, 8\\)"),
        ({"image": draw(2, 1, 8, 8), "y": draw(2, 1, 8, 8)}, "two names of one condition"),
    ],
)
def test_wrong_conditions_are_told_in_a_sentence(cond: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(FokkerError, match=sentence):
        full("unet", 2)(draw(2, 2, 8, 8), torch.zeros(2), **cond)
    bare = make("unet")
    with pytest.raises(FokkerError, match="unknown condition"):
        bare(draw(2, 2, 8, 8), torch.zeros(2), **cond)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", SMALL)
def test_compiles_whole(kind: str, backend: str) -> None:
    net = alive(full(kind, 2))
    x, c, cond = call(2)
    with torch.no_grad():
        out = torch.compile(net, fullgraph=True, backend=backend)(x, c, **cond)
        assert (out - net(x, c, **cond)).abs().max() <= 1e-4 * out.abs().max()


@pytest.mark.parametrize("dim", [2, 3])
def test_a_normalisation_behind_frozen_layers_has_a_gradient(dim: int) -> None:
    x = torch.randn(4, 8, *[4] * dim, generator=torch.Generator().manual_seed(0))
    last = x.contiguous(memory_format=memory_format(dim))
    plain, norm = torch.nn.GroupNorm(2, 8), Norm(8)
    for layer, given in ((plain, x), (norm, last)):
        (layer(given) * x).sum().backward()
    assert torch.allclose(plain.weight.grad, norm.weight.grad, rtol=1e-4)
