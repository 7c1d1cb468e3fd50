"""Guidance against the laws it stands for: a tilted score is known exactly wherever the densities are."""

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, SHAPED, anchor, cond, start
from torch import Tensor

import fokker as fk
from fokker.denoiser import OnProcess
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG
from fokker.laws import GaussianMixture, product

VP = fk.VP()
LABELS = torch.tensor([0, 1, 1, 0])
every = pytest.mark.parametrize("process", [name for name in PROCESSES if name != "pfgm-pp"])


def noised(process: fk.Process, t: float | Tensor, law: GaussianMixture = LAW) -> tuple[Tensor, dict[str, Tensor]]:
    x_0 = law.sample(4, seed=3)
    eps = fk.noise(tuple(x_0.shape), seed=4, dtype=F64)
    x_t = process.add_noise(x_0, eps, t, anchor(process, x_0))
    return x_t, cond(process, x_t)


@every
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_cfg_has_the_score_of_the_tilted_law(process, scale):
    """The gradient of (1 - scale) log p_t + scale log p_t(. | c), by autograd through the exact densities."""
    process = PROCESSES[process]
    guided = CFG(LAW.denoiser(process), scale)
    for t in (0.2, 0.6, 0.95):
        x_t, given = noised(process, t)
        x = x_t.clone().requires_grad_()
        y = given.get("y")
        free, tied = LAW.log_prob_t(x, t, process, y=y), LAW.log_prob_t(x, t, process, label=LABELS, y=y)
        (score,) = torch.autograd.grad(((1 - scale) * free + scale * tied).sum(), x)
        got = guided.predict("score", x_t, t, label=LABELS, **given)
        assert torch.allclose(got, score, rtol=1e-7, atol=1e-7 * float(score.abs().max()))


@pytest.mark.parametrize("scale", [0.7, 1.5])
def test_cfg_is_the_product_of_powers_in_closed_form(scale):
    """For Gaussians p_t^{1-w} p_t(.|c)^w is a Gaussian again; its score is CFG's."""
    process, t = VP, 0.5
    free = GaussianMixture([1.0], [[0.2, -0.4]], torch.tensor([[1.5, 0.2], [0.2, 1.2]], dtype=F64))
    tied = GaussianMixture([1.0], [[1.0, 0.5]], torch.tensor([[0.3, -0.1], [-0.1, 0.2]], dtype=F64))

    def x0(x_t: Tensor, t: float, label: Tensor | None = None) -> Tensor:
        base = free.denoiser(process)(x_t, t)
        return base if label is None else torch.where(label[:, None] >= 0, tied.denoiser(process)(x_t, t), base)

    alpha, _, sigma = process.at(t)
    at_t = [law.affine(alpha).covs[0] + sigma**2 * torch.eye(2, dtype=F64) for law in (free, tied)]
    marginals = [GaussianMixture([1.0], [(alpha * m.mean()).tolist()], c) for m, c in zip((free, tied), at_t)]
    tilted = product(marginals, [1 - scale, scale])
    x_t = fk.noise((4, 2), seed=1, dtype=F64)
    score = CFG(fk.as_denoiser(x0, process), scale).predict("score", x_t, t, label=torch.zeros(4, dtype=torch.int64))
    inverse = torch.linalg.inv(tilted.covs[0])
    assert torch.allclose(score, (tilted.mean() - x_t) @ inverse, atol=1e-9)


def test_scale_zero_forgets_the_condition_and_one_keeps_it():
    x_t, _ = noised(VP, 0.5)
    denoiser = LAW.denoiser(VP)
    assert torch.allclose(CFG(denoiser, 0.0)(x_t, 0.5, label=LABELS), denoiser(x_t, 0.5), atol=1e-14)
    assert torch.equal(CFG(denoiser, 1.0)(x_t, 0.5, label=LABELS), denoiser(x_t, 0.5, label=LABELS))


@every
def test_off_costs_one_evaluation_and_on_two(process):
    process = PROCESSES[process]
    x = start(process)
    given = cond(process, x)

    def evaluations(guided: fk.Denoiser, **cond: Tensor) -> float:
        return fk.run(guided, x, solver="ddim", steps=4, **given, **cond).nfe

    inner = LAW.denoiser(process)
    assert evaluations(CFG(inner, 1), label=LABELS) == 4
    assert evaluations(CFG(inner, 4.0)) == 4
    assert evaluations(CFG(inner, 4.0), label=None) == 4
    assert evaluations(CFG(inner, 4.0), label=LABELS) == 8
    assert evaluations(CFG(inner, 4.0, batched=False), label=LABELS) == 8
    assert evaluations(CFG(inner, 4.0, negative={"label": 1 - LABELS})) == 8
    plain = fk.run(inner, x, solver="ddim", steps=4, label=LABELS, **given).x0
    assert torch.equal(fk.run(CFG(inner, 1.0), x, solver="ddim", steps=4, label=LABELS, **given).x0, plain)


def test_guidance_acts_inside_its_interval_only():
    """Evaluations say so, and so does the belief: sigma / alpha of VP at t = 0.2, 0.5, 0.9 is 0.7, 3.4 and 56."""
    inner, guided = LAW.denoiser(VP), CFG(LAW.denoiser(VP), 3.0, interval=(1.0, 10.0))
    full = CFG(inner, 3.0)
    x_t, _ = noised(VP, 0.5)
    for t, acts in ((0.2, False), (0.5, True), (0.9, False)):
        expected = (full if acts else inner)(x_t, t, label=LABELS)
        assert torch.equal(guided(x_t, t, label=LABELS), expected)
    times = torch.tensor([0.2, 0.5, 0.9, 0.5], dtype=F64)
    mixed = guided(x_t, times, label=LABELS)
    for k, t in enumerate(times.tolist()):
        assert torch.allclose(mixed[k], guided(x_t, t, label=LABELS)[k], atol=1e-12)
    trace = fk.run(guided, start(VP), fk.solve.get("ddim").plan(VP, fk.grids.Times([0.9, 0.5, 0.2, 0.1])), label=LABELS)
    assert trace.nfe == 1 + 2 + 1
    assert CFG(inner, 3.0, interval=(0.0, 1.0))(fk.noise((4, 2), dtype=F64), 1.0, label=LABELS).shape == (4, 2)


def test_a_scale_and_a_time_for_each_sample_and_token():
    x_t, _ = noised(VP, 0.5)
    scales = torch.tensor([0.5, 1.0, 2.0, 4.0])
    inner = LAW.denoiser(VP)
    for interval in (None, (1.0, 10.0)):
        together = CFG(inner, scales, interval=interval)(x_t, torch.tensor([0.5, 0.4, 0.9, 0.6]), label=LABELS)
        for k, t in enumerate((0.5, 0.4, 0.9, 0.6)):
            alone = CFG(inner, float(scales[k]), interval=interval)(x_t, float(torch.tensor(t)), label=LABELS)
            assert torch.allclose(alone[k], together[k], atol=1e-9)
    shaped = SHAPED.sample(4)
    tokens = torch.rand(4, SHAPED.shape[0], generator=torch.Generator().manual_seed(0), dtype=F64) * 0.8 + 0.1
    out = CFG(SHAPED.denoiser(VP), scales, interval=(0.5, 5.0))(shaped, tokens, label=LABELS)
    one = CFG(SHAPED.denoiser(VP), 4.0, interval=(0.5, 5.0))(shaped[3:], tokens[3:], label=LABELS[3:])
    assert torch.allclose(out[3:], one, atol=1e-9)


def test_branches_in_one_batch_are_branches_one_by_one():
    for process in (VP, fk.ResidualShift()):
        x_t, given = noised(process, 0.5, SHAPED)
        labels = torch.tensor([0, 2, 1, 0])
        for t in (0.5, torch.tensor([0.5]), torch.tensor([0.2, 0.4, 0.6, 0.8])):
            one, two = (
                CFG(SHAPED.denoiser(process), 3.0, batched=b)(x_t, t, label=labels, **given) for b in (True, False)
            )
            assert torch.allclose(one, two, atol=1e-10)
        assert torch.equal(one, CFG(SHAPED.denoiser(process), 3.0)(x_t, t, label=labels, **given))


def test_negative_conditions_take_the_place_of_none():
    x_t, _ = noised(VP, 0.4)
    inner, other = LAW.denoiser(VP), 1 - LABELS
    push = CFG(inner, 2.0, negative={"label": other})(x_t, 0.4, label=LABELS)
    good, bad = inner(x_t, 0.4, label=LABELS), inner(x_t, 0.4, label=other)
    assert torch.allclose(push, bad + 2.0 * (good - bad), atol=1e-12)
    without = CFG(inner, 2.0, negative={"label": other})(x_t, 0.4)
    assert torch.allclose(without, bad + 2.0 * (inner(x_t, 0.4) - bad), atol=1e-12)


def test_the_anchor_is_never_dropped():
    process = fk.ResidualShift()
    seen = []

    def x0(x_t: Tensor, t: float, y: Tensor, label: Tensor | None = None) -> Tensor:
        seen.append(y.clone())
        return LAW.denoiser(process)(x_t, t, y=y, label=label)

    x = start(process)
    y = cond(process, x)["y"]
    fk.sample(CFG(fk.as_denoiser(x0, process), 3.0), x, solver="ddim", steps=2, label=LABELS, y=y)
    assert all(torch.equal(v, torch.cat([y] * (len(v) // 4))) for v in seen)


def test_guidance_stacks_with_everything_else():
    """Around another guidance with a scale a sample, around a measurement, under a change of process."""
    x_t, _ = noised(VP, 0.5)
    scales = torch.tensor([0.5, 1.0, 2.0, 4.0])
    inner = LAW.denoiser(VP)
    nested = CFG(CFG(inner, scales), 2.0)
    for k in range(4):
        alone = CFG(CFG(inner, float(scales[k])), 2.0)(x_t, 0.5, label=LABELS)
        assert torch.allclose(nested(x_t, 0.5, label=LABELS)[k], alone[k], atol=1e-10)
    # scale a of scale b is scale a b, since the inner one is off where there is no condition
    assert torch.allclose(
        CFG(CFG(inner, 3.0), 2.0)(x_t, 0.5, label=LABELS), CFG(inner, 6.0)(x_t, 0.5, label=LABELS), atol=1e-10
    )

    operator = fk.restore.Mask(torch.tensor([1.0, 0.0], dtype=F64))
    y = operator(LAW.sample(4, seed=9))
    over = CFG(fk.restore.DDNM(inner, operator, y), 3.0)(x_t, 0.5, label=LABELS)
    under = fk.restore.DDNM(CFG(inner, 3.0), operator, y)(x_t, 0.5, label=LABELS)
    assert torch.allclose(over, under, atol=1e-12)
    moved, outside = OnProcess(CFG(inner, 3.0), fk.EDM()), CFG(OnProcess(inner, fk.EDM()), 3.0)
    assert torch.allclose(moved(x_t, 0.02, label=LABELS), outside(x_t, 0.02, label=LABELS), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: CFG(d, interval=(2.0, 1.0)), "interval="),
        (lambda d: CFG(d, interval=(1.0,)), "interval="),
        (lambda d: fk.guide.get("cfg", d, scal=2.0), "did you mean 'scale'"),
        (lambda d: fk.guide.get("cgf", d), "did you mean 'cfg'"),
    ],
)
def test_what_is_no_guidance_is_refused(make, message):
    with pytest.raises(FokkerError, match=message):
        make(LAW.denoiser(VP))


def test_guided_samples_move_towards_the_condition():
    """The share of samples whose own component has the label rises with the scale."""
    x = fk.noise((400, 2), seed=1, dtype=F64)
    labels = torch.ones(400, dtype=torch.int64)
    right = []
    for scale in (0.0, 1.0, 3.0):
        out = fk.sample(CFG(LAW.denoiser(VP), scale), x, solver="dpmpp-2m", steps=16, label=labels)
        belongs = LAW.responsibilities(out)[:, LAW.labels == 1].sum(1)
        right.append(float(belongs.mean()))
    # without the condition: the weight of its components, with it: a little more than 1 - overlap, guided: more still
    assert right[0] == pytest.approx(0.5, abs=5 * 0.5 / 20) and right[0] < right[1] - 0.2 < right[2] - 0.2
