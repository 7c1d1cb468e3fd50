"""Several modalities at times of their own: exact views of a mixture, networks, training, guidance, and what is refused."""

import math
from typing import Any, cast

import pytest
import torch
from laws_for_tests import F64

import fokker as fk
from fokker.data.source import Arrays
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.multimodal import LawJoint, NetworkJoint
from fokker.net.joint import JointMLP, UViT
from fokker.train import Key, Rate, Trainer
from fokker.train.multimodal import MultiModal

TURN = torch.linalg.qr(fk.noise((3, 3, 3), seed=4, dtype=F64))[0]
LAW = GaussianMixture(
    [0.5, 0.3, 0.2], fk.noise((3, 3), seed=2, dtype=F64), TURN @ torch.diag(torch.tensor([0.05, 0.2, 0.6], dtype=F64)) @ TURN.mT
)
PARTS = {"image": (2,), "text": (1,)}
EXACT = LawJoint(LAW, PARTS, fk.VP())


def test_a_joint_view_is_the_laws_denoiser():
    x = fk.noise((5, 3), dtype=F64)
    for t in (0.01, 0.4, torch.linspace(0.1, 0.9, 5, dtype=F64)):
        assert torch.allclose(EXACT.joint()(x, t), LAW.denoiser(fk.VP())(x, t), atol=1e-9)


def test_a_marginal_view_is_the_marginal_law_but_for_what_the_last_noise_says():
    """At t = 1 of VP alpha is 0.0066, so a lost part still tells about 1e-3 of what it knows."""
    x = fk.noise((5, 2), dtype=F64)
    truth = LAW.marginal([0, 1]).denoiser(fk.VP())(x, 0.4)
    assert torch.allclose(EXACT.marginal("image")(x, 0.4), truth, atol=0.03)


def test_a_conditional_view_is_the_conditional_law():
    x, y = fk.noise((5, 2), dtype=F64), fk.noise((5, 1), seed=1, dtype=F64)
    row = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
    view = EXACT.conditional("image", text=y)
    for k in range(5):
        posterior = LAW.posterior(row, y[k], 1e-6).marginal([0, 1])
        assert torch.allclose(view(x, 0.3)[k], posterior.denoiser(fk.VP())(x[k : k + 1], 0.3)[0], atol=1e-5)


def test_views_are_ordinary_denoisers_for_every_solver():
    y = LAW.sample(4, seed=1)[:, 2:]
    x1 = fk.noise((4, 2), seed=2, dtype=F64)
    for solver in ("ddim", "ddpm", "heun"):
        view = EXACT.conditional("image", text=y)
        whole = fk.run(view, x1, solver=solver, steps=5, seed=3, ids=[4, 5, 6, 7])
        alone = fk.run(EXACT.conditional("image", text=y[2:3]), x1[2:3], solver=solver, steps=5, seed=3, ids=[6])
        assert torch.allclose(alone.x0, whole.x0[2:3], atol=1e-9)
    lost = EXACT.marginal("image")
    one, two = (fk.run(lost, x1, solver="ddim", steps=5, seed=s).x0 for s in (3, 4))
    assert torch.equal(fk.run(lost, x1, solver="ddim", steps=5, seed=3).x0, one) and not torch.equal(one, two)
    assert fk.run(lost, x1, solver="ddim", steps=5).nfe == 5


def test_guidance_needs_no_training_of_its_own():
    x, y = fk.noise((4, 2), dtype=F64), LAW.sample(4, seed=1)[:, 2:]
    plain, lost = EXACT.conditional("image", text=y)(x, 0.5), EXACT.marginal("image")(x, 0.5)
    guided = EXACT.conditional("image", text=y, scale=3.0)
    assert torch.allclose(guided(x, 0.5), 3 * plain - 2 * lost, atol=1e-9)
    assert fk.run(guided, x, solver="ddim", steps=2).nfe == 4
    both = torch.cat([x, y], 1)
    alone = torch.cat([lost, EXACT.marginal("text")(y, 0.5)], 1)
    assert torch.allclose(EXACT.joint(2.0)(both, 0.5), 2 * EXACT.joint()(both, 0.5) - alone, atol=1e-9)
    assert fk.run(EXACT.joint(2.0), both, solver="ddim", steps=2).nfe == 6


def test_parts_may_have_processes_of_their_own():
    """The same beliefs at equal log-SNR, whatever the scale in which a part is noised."""
    mixed = LawJoint(LAW, PARTS, {"image": fk.VP(), "text": fk.EDM()})
    x = fk.noise((5, 3), dtype=F64)
    for t in (0.2, torch.linspace(0.1, 0.9, 5, dtype=F64)):
        assert torch.allclose(mixed.joint()(x, t), EXACT.joint()(x, t), atol=1e-7)


def net_of(kind: str) -> NetworkJoint:
    parts = {"image": (1, 4, 4), "words": (3, 2), "label": (5,)}
    net = JointMLP(parts, width=32) if kind == "mlp" else UViT(parts, width=32, depth=3, heads=2)
    return NetworkJoint(net, parts, fk.VP(), {"image": 0.5, "words": 1.0, "label": 0.3})


@pytest.mark.parametrize("kind", ["mlp", "uvit"])
def test_networks_take_parts_of_every_shape_and_see_every_time(kind):
    joint = net_of(kind)
    for p in joint.parameters():
        p.data += 0.1 * fk.noise((1, p.numel()), dtype=p.dtype).reshape(p.shape)
    x = {name: fk.noise((3, *shape), seed=1) for name, shape in joint.shapes.items()}
    t = {"image": 0.4, "words": torch.tensor([0.1, 0.5, 0.9], dtype=F64), "label": 0.7}
    out = joint(x, t)
    assert {name: tuple(v.shape) for name, v in out.items()} == {name: (3, *s) for name, s in joint.shapes.items()}
    for name in t:
        moved = joint(x, t | {name: 0.6})
        assert all(float((moved[part] - out[part]).abs().max()) > 1e-4 for part in t), f"{name}'s time is not seen"
    # what is known stays what it is
    assert torch.allclose(joint(x, t | {"label": 0.0})["label"], x["label"], atol=1e-6)
    alone = joint({k: v[1:2] for k, v in x.items()}, t | {"words": t["words"][1:2]})
    assert torch.allclose(alone["image"], out["image"][1:2], atol=1e-5)


def test_pack_and_unpack_are_inverse():
    joint = net_of("mlp")
    x = {name: fk.noise((3, *shape), seed=1) for name, shape in joint.shapes.items()}
    assert joint.pack(x).shape == (3, 27)
    assert all(torch.equal(v, x[k]) for k, v in joint.unpack(joint.pack(x)).items())
    with pytest.raises(FokkerError, match="does not hold"):
        joint.unpack(torch.zeros(2, 5))


def test_training_finds_the_beliefs_at_all_pairs_of_times():
    data = LAW.sample(8192, seed=5).float()
    joint = NetworkJoint(JointMLP(PARTS, width=64, depth=2), PARTS, fk.VP(), float(data.std()))
    source = Arrays({"x": data[:, :2].contiguous(), "text": data[:, 2:].contiguous()}, "pairs", "a mixture", bounds=None)
    rate = Rate(peak=4e-3, warmup=2000)
    trainer = Trainer(cast(Any, joint), source, MultiModal(), 900 * 128, 128, rate, conditions=("text",), quiet=True, cpu=True)
    trainer.run()
    clean = LAW.sample(400, seed=9)
    worst = 0.0
    with torch.no_grad():
        for t in (0.0, 0.3, 1.0):
            for s in (0.3, 0.6):
                times = {"image": s, "text": t}
                eps = fk.noise((400, 3), seed=1, dtype=F64)
                split = {"image": slice(0, 2), "text": slice(2, 3)}
                x = {name: fk.VP().add_noise(clean[:, i], eps[:, i], times[name]) for name, i in split.items()}
                mine, true = joint(x, times)["image"], EXACT(x, times)["image"]
                worst = max(worst, float((mine - true).square().mean() / clean[:, :2].var()))
    assert worst < 0.05


def test_draws_belong_to_their_position_and_ends_are_trained():
    joint, key = net_of("mlp"), Key(3, 0, 400, torch.arange(400))
    batch = {"x": torch.zeros(400, 1, 4, 4), "words": torch.zeros(400, 3, 2), "label": torch.zeros(400, 5)}
    drawn = MultiModal(ends=0.2).draw(joint, batch, key)
    some = MultiModal(ends=0.2).draw(joint, {k: v[7:9] for k, v in batch.items()}, Key(3, 0, 400, torch.tensor([7, 8])))
    assert all(torch.equal(v, drawn[k][7:9]) for k, v in some.items())
    for name in joint.shapes:
        t = drawn[f"{name}/t"]
        for end in (0.0, 1.0):
            assert abs(float((t == end).double().mean()) - 0.2) < 4 * math.sqrt(0.16 / 400)
    shares = torch.corrcoef(torch.stack([drawn[f"{name}/t"] for name in joint.shapes]))
    assert (shares - torch.eye(3, dtype=F64)).abs().max() < 0.2
    assert not torch.equal(drawn["words/eps"].flatten()[:5], drawn["label/eps"].flatten()[:5])
    assert bool(torch.isfinite(MultiModal(ends=0.2).loss(joint, drawn)).all())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: EXACT.marginal("imag"), "did you mean 'image'"),
        (lambda: EXACT.conditional("image"), "needs a part that is given"),
        (lambda: EXACT.conditional("image", image=torch.zeros(1, 2)), "named twice"),
        (lambda: EXACT.conditional("image", text=torch.zeros(1, 2)), "text has shape"),
        (lambda: LawJoint(LAW, {"a": (3,)}, fk.VP()), "at least two"),
        (lambda: LawJoint(LAW, {"a": (3,), "b": (3,)}, fk.VP()), "dimension 3"),
        (lambda: LawJoint(LAW, PARTS, {"image": fk.VP()}), "one for each"),
        (lambda: NetworkJoint(JointMLP(PARTS), PARTS, fk.VP(), -1.0), "above 0"),
        (lambda: UViT(PARTS, depth=4), "depth is odd"),
        (lambda: UViT({"a": (1, 5, 5), "b": (2,)}), "patches"),
        (lambda: MultiModal(ends=0.6), r"\[0, 0.5\)"),
        (lambda: MultiModal().draw(EXACT, {"x": torch.zeros(2, 2)}, Key(0, 0, 2, torch.arange(2))), "the data have no"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(FokkerError, match=says):
        call()
