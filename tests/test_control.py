"""Guidance beyond CFG: what each form must be exactly, on beliefs and laws that are known."""

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, start
from torch import Tensor, nn

import fokker as fk
from fokker.errors import FokkerError
from fokker.guide.adaptive import AdaptiveGuidance
from fokker.guide.apg import APG
from fokker.guide.cfg import CFG
from fokker.guide.classifier import ClassifierControl, calibration_curve, smooth_activations
from fokker.guide.compose import Compose
from fokker.guide.linear import LinearGuidance, fit_linear_guidance
from fokker.guide.superpose import Superposition
from fokker.guide.terms import beliefs, summed

VP = PROCESSES["vp"]
INNER = LAW.denoiser(VP)
LABELS = torch.tensor([0, 1, 1, 0])
X = VP.add_noise(LAW.sample(4, seed=3), fk.noise((4, 2), seed=4, dtype=F64), 0.5)


def both() -> tuple[Tensor, Tensor]:
    return INNER(X, 0.5, label=LABELS), INNER(X, 0.5)


def ends(denoiser: fk.Denoiser, steps: int = 6, **options: object) -> fk.Trace:
    return fk.run(denoiser, start(VP), solver="ddim", steps=steps, grid="uniform", **options)


# --- adaptive projected guidance -------------------------------------------------------------------------------------


def test_apg_moves_at_right_angles_and_no_further_than_its_radius():
    cond, null = both()
    moved = APG(INNER, 3.0, momentum=0.0)(X, 0.5, label=LABELS) - cond
    assert torch.allclose((moved * cond).sum(1), torch.zeros(4, dtype=F64), atol=1e-12)
    u = cond / cond.norm(dim=1, keepdim=True)
    d = cond - null
    assert torch.allclose(moved, 2 * (d - (d * u).sum(1, keepdim=True) * u), atol=1e-12)
    half = APG(INNER, 3.0, eta=0.5, momentum=0.0)(X, 0.5, label=LABELS) - cond
    assert torch.allclose((half * u).sum(1), (d * u).sum(1), atol=1e-12)
    bounded = APG(INNER, 3.0, eta=1.0, radius=1e-3, momentum=0.0)(X, 0.5, label=LABELS) - cond
    assert torch.allclose(bounded.norm(dim=1), torch.full((4,), 2e-3, dtype=F64))
    wide = APG(INNER, 3.0, eta=1.0, radius=1e3, momentum=0.0)(X, 0.5, label=LABELS)
    assert torch.allclose(wide, CFG(INNER, 3.0)(X, 0.5, label=LABELS), atol=1e-12)


def test_apg_momentum_is_that_of_one_run():
    bound = APG(INNER, 3.0, eta=1.0, momentum=-0.5).bind(fk.Run(4))
    cond, null = both()
    d, m = cond - null, torch.zeros(4, 2, dtype=F64)
    for _ in range(3):
        m = d - 0.5 * m
        assert torch.allclose(bound(X, 0.5, label=LABELS), cond + 2 * m, atol=1e-12)
    fresh = APG(INNER, 3.0, eta=1.0, momentum=-0.5)
    for _ in range(2):  # outside a run there is none
        assert torch.allclose(fresh(X, 0.5, label=LABELS), cond + 2 * d, atol=1e-12)


def test_apg_norms_over_some_dimensions():
    cond, null = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64), torch.zeros(2, 3, 4, 4)
    moved = APG(INNER, 2.0, eta=1.0, radius=0.1, momentum=0.0, norm_dims=[2, 3]).combined(cond, null, 2.0) - cond
    assert torch.allclose(moved.flatten(2).norm(dim=2), torch.full((2, 3), 0.1, dtype=F64))
    for options, says in (({"radius": -1.0}, "radius"), ({"momentum": 1.0}, "momentum"), ({"norm_dims": [0]}, "from 1")):
        with pytest.raises(FokkerError, match=says):
            APG(INNER, 2.0, **options)
    with pytest.raises(FokkerError, match="does not fit"):
        APG(INNER, 2.0, norm_dims=[3])(X, 0.5, label=LABELS)


# --- adaptive and linear guidance ------------------------------------------------------------------------------------


def test_adaptive_guidance_is_full_guidance_until_it_switches():
    full, never = ends(CFG(INNER, 3.0), label=LABELS), ends(AdaptiveGuidance(INNER, 3.0, threshold=1.0), label=LABELS)
    assert torch.allclose(full.x0, never.x0, atol=1e-12) and never.nfe == 12
    once = ends(AdaptiveGuidance(INNER, 3.0, threshold=1e-9, similarity="eps"), label=LABELS)
    assert once.nfe == 7 and once.notes["evaluations"].tolist() == [7] * 4
    late = ends(AdaptiveGuidance(INNER, 3.0, threshold=1e-9, similarity="eps", warmup=0.5), label=LABELS)
    assert late.nfe > 7
    assert ends(AdaptiveGuidance(INNER, 1.0), label=LABELS).nfe == 6 == ends(AdaptiveGuidance(INNER, 3.0)).nfe


def test_samples_switch_by_themselves():
    guided = AdaptiveGuidance(INNER, torch.tensor([2.0, 3.0, 4.0, 5.0]), threshold=0.9)
    trace = ends(guided, 20, label=LABELS)
    each = trace.notes["evaluations"].double()
    assert trace.nfe == float(each.mean()) and len(set(each.tolist())) > 1
    for k in range(4):
        one = slice(k, k + 1)
        alone = AdaptiveGuidance(INNER, 2.0 + k, threshold=0.9, batched=False)
        found = fk.run(alone, start(VP)[one], solver="ddim", steps=20, grid="uniform", label=LABELS[one])
        assert torch.allclose(found.x0, trace.x0[one], atol=1e-9) and found.nfe == each[k]
    for options, says in (({"threshold": 0.0}, "threshold"), ({"similarity": "x1"}, "similarity"), ({"warmup": 2.0}, "warmup")):
        with pytest.raises(FokkerError, match=says):
            AdaptiveGuidance(INNER, 2.0, **options)


def test_linear_guidance_predicts_what_is_linear():
    """Where the null noise is half the conditional one, the fit is exact and costs one evaluation a row."""

    def eps(x_t: Tensor, t: float, label: Tensor | None = None) -> Tensor:
        e = torch.sin(3 * x_t + t)
        return e if label is None else torch.where(label[:, None] >= 0, e, 0.5 * e)

    denoiser = fk.as_denoiser(eps, VP, "eps")
    plan = fk.solve.get("ddim").plan(VP, fk.grids.get("uniform")(8))
    x = VP.start(fk.noise((64, 2), seed=1, dtype=F64))
    fit = fit_linear_guidance(denoiser, x, plan, 2.0, label=torch.zeros(64, dtype=torch.int64), ridge=1e-10)
    assert sorted(fit.linear) == [1, 3, 4, 5, 6, 7] and max(fit.error) < 1e-4
    other = VP.start(fk.noise((4, 2), seed=2, dtype=F64))
    full = fk.run(CFG(denoiser, 2.0), other, plan, label=LABELS)
    trace = fk.run(LinearGuidance(denoiser, fit, 2.0), other, plan, label=LABELS)
    assert torch.allclose(trace.x0, full.x0, atol=1e-3) and trace.nfe == 8 + 2 and full.nfe == 16
    with pytest.raises(FokkerError, match="fit for this plan"):
        ends(LinearGuidance(denoiser, fit, 2.0), 5, label=LABELS)
    with pytest.raises(FokkerError, match="no past"):
        fit_linear_guidance(denoiser, x, plan, 2.0, linear=[0], label=torch.zeros(64, dtype=torch.int64))
    with pytest.raises(FokkerError, match="no guidance to fit"):
        fit_linear_guidance(denoiser, x, plan, 1.0)


# --- compositions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "composed",
    [
        CFG(INNER, 2.5),
        CFG(INNER, 2.5, interval=(0.5, 10.0)),
        Compose(INNER, [{"label": 0}, 1], [0.7, -0.4]),
        Compose(INNER, [0], [2.0, 0.5], models=[INNER], base=False),
        Superposition(INNER, [0, 1]),
    ],
    ids=["cfg", "cfg-interval", "compose", "product", "superposition"],
)
def test_a_composition_is_the_sum_of_its_parts(composed):
    for t in (0.2, 0.5):
        cond = {} if isinstance(composed, Superposition) else {"label": LABELS}
        parts = composed.parts(X, t, **cond)
        told = summed(VP, X, t, [p.weight for p in parts], beliefs(parts, X, t))
        assert torch.allclose(composed(X, t, **cond), told, atol=1e-10)


def test_compose_is_guidance_negation_and_power():
    one = Compose(INNER, [{"label": 1}], [3.0])(X, 0.5)
    assert torch.allclose(one, CFG(INNER, 3.0)(X, 0.5, label=torch.ones(4, dtype=torch.int64)), atol=1e-12)
    squared = Compose(INNER, weights=[2.0], base=False)
    assert torch.allclose(squared.predict("score", X, 0.5), 2 * LAW.score(X, 0.5, VP), atol=1e-9)
    off = Compose(INNER, [0, 1], [0.0, 0.0])
    assert torch.allclose(off(X, 0.5), INNER(X, 0.5), atol=1e-12) and ends(off).nfe == 6
    assert ends(Compose(INNER, [0, 1], [1.0, 1.0])).nfe == 18
    # sigma / alpha of VP at t = 0.2 is 0.7
    inside = Compose(INNER, [0], [3.0], interval=(1.0, 10.0))
    assert torch.allclose(inside(X, 0.2), INNER(X, 0.2), atol=1e-12)
    assert not torch.allclose(inside(X, 0.5), INNER(X, 0.5), atol=1e-3)
    for make, says in (
        (lambda: Compose(INNER, [0], [1.0, 2.0]), "one a term"),
        (lambda: Compose(INNER, models=[LAW.denoiser(fk.EDM())]), "OnProcess"),
        (lambda: Compose(INNER, ["three"])(X, 0.5), "class"),
        (lambda: summed(fk.Flow(), X, 1.0, [2.0], [X]), "alpha"),
    ):
        with pytest.raises(FokkerError, match=says):
            make()


@pytest.mark.parametrize("mode", ["or", "and"])
def test_a_superposition_of_equals_is_the_model(mode):
    x = start(VP)
    plain = fk.run(INNER, x, solver="ddpm", steps=8, seed=2)
    same = fk.run(Superposition(INNER, models=[INNER], mode=mode), x, solver="ddpm", steps=8, seed=2)
    assert torch.allclose(plain.x0, same.x0, atol=1e-9) and same.nfe == 16
    assert torch.allclose(same.notes["weights"], torch.full((4, 2), 0.5, dtype=F64))
    alone = fk.run(Superposition(INNER, mode=mode), x, solver="ddpm", steps=8, seed=2)
    assert torch.equal(alone.x0, plain.x0) and alone.nfe == 8


def test_and_makes_the_next_densities_equal():
    """By the estimator itself, after every step: that is what its weights are solved from."""
    x = start(VP, n=16)
    seen: list[Tensor] = []
    trace = fk.run(
        Superposition(INNER, [0, 1], mode="and", damping=1e-9),
        x,
        solver="ddpm",
        steps=12,
        seed=1,
        watch=lambda run, *_: seen.append(run.notes["log_densities"].diff(dim=1).abs().max()),
    )
    assert float(torch.stack(seen).max()) < 1e-6 and bool(torch.isfinite(trace.x0).all())
    biased = Superposition(INNER, [0, 1], mode="or", bias=[40.0, 0.0])
    one = fk.run(INNER, x, solver="ddpm", steps=12, seed=1, label=torch.zeros(16, dtype=torch.int64))
    assert torch.allclose(fk.run(biased, x, solver="ddpm", steps=12, seed=1).x0, one.x0, atol=1e-3)
    for options, says in (({"mode": "xor"}, "mode"), ({"bias": [1.0]}, "one a term"), ({"damping": 0.0}, "damping")):
        with pytest.raises(FokkerError, match=says):
            Superposition(INNER, [0, 1], **options)


# --- classifiers -----------------------------------------------------------------------------------------------------


def test_the_exact_classifier_of_noised_states_gives_the_conditional_belief():
    """Bayes: score(x) + grad log p_t(y | x) is the score given y."""

    def exact(x: Tensor, t: float) -> Tensor:
        return torch.stack([LAW.log_prob_t(x, t, VP, label=k) for k in (0, 1)], 1) + torch.log(torch.tensor([0.5, 0.5]))

    control = ClassifierControl(INNER, exact, LABELS, target="x_t", timed=True, tau_marginal=1.0, gamma=0.0, smooth=0.0)
    assert torch.allclose(control(X, 0.5), INNER(X, 0.5, label=LABELS), atol=1e-9)
    from_run = ClassifierControl(INNER, exact, target="x_t", timed=True, tau_marginal=1.0, gamma=0.0)
    nobody = torch.full((4,), -1)
    assert torch.allclose(from_run(X, 0.5, label=nobody), INNER(X, 0.5), atol=1e-12)
    off = ClassifierControl(INNER, exact, LABELS, strength=0.0)
    assert torch.equal(off(X, 0.5), INNER(X, 0.5))
    with pytest.raises(FokkerError, match="no class is wanted"):
        from_run(X, 0.5)
    with pytest.raises(FokkerError, match="target"):
        ClassifierControl(INNER, exact, target="x1")


def test_smoothing_reaches_nested_activations_and_leaves_the_original():
    net = nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), nn.ReLU(), nn.Linear(4, 2))
    smoothed = smooth_activations(net, 5.0)
    kinds = [type(m).__name__ for m in smoothed.modules()]
    assert kinds.count("Softplus") == 2 and "ReLU" not in kinds and not smoothed.training
    assert [type(m).__name__ for m in net.modules()].count("ReLU") == 2 and net.training
    assert isinstance(smooth_activations(nn.ReLU(), 2.0), nn.Softplus)
    assert [type(m).__name__ for m in smooth_activations(net, 0.0).modules()].count("ReLU") == 2


def test_a_calibrated_classifier_has_no_calibration_error():
    data, labels = LAW.sample_labelled(4000, seed=5)

    def honest(x: Tensor) -> Tensor:
        each = LAW.responsibilities(x.double()).log()
        return torch.stack([each[:, 0], each[:, 1:].logsumexp(1)], 1)

    clean = calibration_curve(honest, INNER, data, labels, (1e-3,), bins=10)
    # sampling alone gives about sqrt(bins / n) / 2
    assert clean.integral < 0.05
    assert calibration_curve(lambda x: 9 * honest(x), INNER, data, labels, (0.4,), "x_t").integral > 0.05
