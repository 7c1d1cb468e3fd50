"""Taps: read, edit, replace, skip and open attention, on our networks and on other people's modules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import alive, call, draw, features, full, make
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net import taps


def test_taps_read_and_leave_nothing() -> None:
    net = alive(make("unet"))
    x, c = draw(2, 2, 8, 8), torch.zeros(2)
    before = {name: dict(module.__dict__) for name, module in net.named_modules()}
    plain = net(x, c)
    with pytest.raises(RuntimeError, match="stop"), taps(net, ["mid", "up.?"], edit={"down.1": torch.tanh}) as seen:
        assert not torch.allclose(net(x, c), plain)
        raise RuntimeError("stop")
    assert set(seen) == {"mid", "up.0", "up.1"}
    assert seen["mid"].shape == (2, 16, 4, 4) and seen["up.0"].shape == (2, 8, 8, 8)
    assert {name: dict(module.__dict__) for name, module in net.named_modules()} == before
    assert torch.equal(net(x, c), plain)


def test_an_edit_acts_as_if_the_module_had_computed_it() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, shift = draw(5, 3), draw(4)
    with taps(net, ["1"], edit={"1": lambda h: h + shift}) as seen:
        out = net(x)
    assert torch.equal(out, net[2](net[1](net[0](x)) + shift))
    assert torch.equal(seen["1"], net[1](net[0](x)) + shift)
    with taps(net, around={"1": lambda run, h: run(2 * h) - h}):
        assert torch.equal(net(x), net[2](torch.tanh(2 * net[0](x)) - net[0](x)))


def test_what_is_replaced_or_skipped_is_not_run() -> None:
    net = alive(make("unet"))
    x, other, c = draw(2, 2, 8, 8), draw(2, 2, 8, 8, seed=2), torch.zeros(2)
    ran: list[str] = []
    for name in ("down.0", "down.1", "mid", "up.1", "up.0"):
        net.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    deep = ["down.1", "mid", "up.1"]
    with taps(net, deep) as seen:
        plain = net(x, c)
    ran.clear()
    with taps(net, replace={name: seen[name] for name in deep}):
        assert torch.equal(net(x, c), plain)  # the deep part stored from the same call: nothing changes
        stale = net(other, c)
    # a hook of torch's runs around forward, so it is the modules inside that tell
    inner: list[str] = []
    handles = [m.register_forward_pre_hook(lambda *_, n=n: inner.append(n)) for n, m in net.named_modules() if "." in n]
    with taps(net, replace={name: seen[name] for name in deep}):
        net(x, c)
    assert not [name for name in inner if name.startswith(("down.1.", "mid.", "up.1."))] and "up.0.0" in inner
    for handle in handles:
        handle.remove()
    assert not torch.allclose(stale, net(other, c), atol=1e-3)
    assert torch.equal(features(net, "up.1", x, c), seen["up.1"])


def test_a_skipped_block_hands_its_input_on() -> None:
    net = alive(make("dit"))
    x, c = draw(2, 2, 8, 8), torch.zeros(2)
    state = net.start(x, c)
    net.advance("blocks.1", state)
    with taps(net, skip=["blocks.0"]):
        assert torch.equal(net(x, c), net.finish(state))


def test_gradients_pass_through_taps() -> None:
    net = alive(make("unet"))
    x, c = draw(1, 2, 8, 8), torch.zeros(1)
    h = features(net, "mid", x, c).detach().requires_grad_()
    with taps(net, replace={"mid": h}):
        (gradient,) = torch.autograd.grad(net(x, c).sum(), h)
    direction = draw(*h.shape, seed=3)
    with taps(net, edit={"mid": lambda h: h + 1e-3 * direction}):
        up = net(x, c).sum()
    with taps(net, edit={"mid": lambda h: h - 1e-3 * direction}):
        down = net(x, c).sum()
    # a central difference in float32: rounding of the two sums over the step, and a third-order term
    assert abs((up - down) / 2e-3 - (gradient * direction).sum()) <= 1e-2 * (gradient * direction).sum().abs() + 1e-2


def test_attention_maps_are_those_that_act() -> None:
    net = alive(full("unet", 2))
    x, c, cond = call(2)
    plain = net(x, c, **cond)
    with taps(net, maps=["*.attention", "*.cross"]) as seen:
        assert (net(x, c, **cond) - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert set(seen.maps) == {"mid.0.attention", "mid.0.cross"}
    maps, cross = seen.maps["mid.0.attention"], seen.maps["mid.0.cross"]
    assert maps.shape == (5, 2, 35, 35) and cross.shape == (5, 2, 35, 4)  # the learned token, then the three given
    assert torch.allclose(maps.sum(-1), torch.ones(5, 2, 35)) and maps.requires_grad
    assert torch.equal(cross[1, ..., 1:], torch.zeros(2, 35, 3))


def test_attention_can_be_edited_and_nested() -> None:
    layer = alive(make("dit", tokens=5)).blocks[0]  # type: ignore[index]
    attention = layer.attention
    h = draw(2, 6, 24)
    v = attention.kv(h)[..., 24:]
    with taps(attention, edit_maps={"": lambda m: torch.full_like(m, 1 / 6)}):
        uniform = attention(h)
    assert torch.allclose(uniform, attention.out(v.mean(1, keepdim=True).expand(2, 6, 24)), atol=1e-5)
    with taps(attention, edit_heads={"": lambda q, k, v: (q, k, 0 * v)}):
        assert torch.allclose(attention(h), attention.out.bias.expand(2, 6, 24), atol=1e-6)
    with (
        taps(attention, maps=[""]) as inside,
        taps(attention, maps=[""], edit_maps={"": lambda m: m.flip(-1)}) as outside,
    ):
        attention(h)
    assert torch.equal(outside.maps[""], inside.maps[""].flip(-1))
    with taps(attention, maps=[""]) as plain:
        attention(h)
    assert torch.equal(inside.maps[""], plain.maps[""]) and not torch.allclose(outside.maps[""], plain.maps[""])


class Foreign(nn.Module):
    """Attention as other libraries write it, with every option of torch's product."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.7},
        {"attn_mask": draw(5, 5, seed=8)},
        {"attn_mask": draw(5, 5, seed=8) > -0.5},
        {"enable_gqa": True},
    ],
)
def test_the_opened_product_is_torchs(options: dict[str, Any]) -> None:
    module = Foreign(**options)
    q = draw(2, 4, 5, 3)
    k, v = (
        draw(2, 2 if "enable_gqa" in options else 4, 5, 3, seed=2),
        draw(2, 2 if "enable_gqa" in options else 4, 5, 3, seed=3),
    )
    with taps(module, maps=[""]) as seen:
        opened = module(q, k, v)
    assert torch.allclose(opened, module(q, k, v), atol=1e-6)
    assert seen.maps[""].shape == (2, 4, 5, 5)


def test_taps_speak_at_the_first_wrong_thing() -> None:
    net = make("unet")
    x, c = draw(1, 2, 8, 8), torch.zeros(1)
    with pytest.raises(FokkerError, match="unknown module 'middle'"), taps(net, ["middle"]):
        pass
    with pytest.raises(FokkerError, match=r"did you mean 'mid.0.attention'"), taps(net, ["mid.0.atention"]):
        pass
    with taps(net, ["mid"]) as seen, pytest.raises(FokkerError, match=r"nothing was read from 'up.0'"):
        net(x, c)
        seen["up.0"]
    with taps(net, maps=["up.0"]), pytest.raises(FokkerError, match=r"'up.0' computed no scaled_dot_product_attention"):
        net(x, c)
    dit = make("dit")
    with (
        taps(dit, maps=[""]),
        pytest.raises(FokkerError, match="'' computed 2 attention maps; tap the attention modules"),
    ):
        dit(x, c)
    with pytest.raises(FokkerError, match="a compiled network does not see taps"), taps(torch.compile(net), ["mid"]):  # type: ignore[arg-type]
        pass


def test_taps_reach_into_other_libraries() -> None:
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=6,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    x, tokens, deep = draw(2, 4, 8, 8), draw(2, 5, 6), ["down_blocks.1", "mid_block", "up_blocks.0"]
    with torch.no_grad():
        plain = net(x, 3, tokens).sample
        with taps(net, deep, maps=["mid_block.*.attn2"]) as seen:
            opened = net(x, 3, tokens).sample
        assert (opened - plain).abs().max() <= 1e-5 * plain.abs().max()
        (weights,) = seen.maps.values()
        assert weights.shape == (2, 8, 16, 5)  # attention_head_dim is the number of heads there
        with taps(net, replace={name: seen[name] for name in deep}):
            assert (net(x, 3, tokens).sample - opened).abs().max() <= 1e-5 * plain.abs().max()
        with taps(net, edit={"mid_block": torch.zeros_like}):
            assert not torch.allclose(net(x, 3, tokens).sample, plain, atol=1e-3)
