"""Log-densities along a run, against the exact ones of mixtures at every noise level."""

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, start

import fokker as fk
from fokker.errors import FokkerError
from fokker.increments import Move, WithDivergence, follow

VP = PROCESSES["vp"]
PLAIN = pytest.mark.parametrize("process", [fk.VP(), fk.EDM(), fk.Flow()], ids=repr)


@PLAIN
def test_a_smooth_step_adds_what_the_density_says(process):
    """Along any smooth path the error of a step is of second order, so a tenth of the step has a hundredth of it."""
    denoiser = WithDivergence(LAW.denoiser(process))
    t = process.time(-1.0).item()
    x = process.add_noise(LAW.sample(4, seed=3), fk.noise((4, 2), seed=4, dtype=F64), t)
    away = fk.noise((4, 2), seed=5, dtype=F64)
    context = fk.Run(4)
    belief = denoiser.bind(context)(x, t)
    errors = []
    for h in (1e-2, 1e-3):
        s = t * (1 - h)
        x_s = x * (1 - 0.5 * h) + h * away
        exact = LAW.log_prob_t(x_s, s, process) - LAW.log_prob_t(x, t, process)
        found = Move(process, x, t, x_s, s).ito(belief, context.notes["divergence"])
        errors.append(float((found - exact).abs().max()))
    assert errors[1] < 2e-2 * errors[0] and errors[0] < 1e-2


@PLAIN
def test_the_divergence_is_the_posterior_variance(process):
    t = process.time(0.5).item()
    x = process.add_noise(LAW.sample(4, seed=3), fk.noise((4, 2), seed=4, dtype=F64), t)
    alpha, _, sigma = process.at(t)
    exact = alpha / sigma**2 * LAW.posterior_cov(x, t, process).diagonal(dim1=1, dim2=2).sum(1)
    context = fk.Run(4)
    assert torch.equal(WithDivergence(LAW.denoiser(process)).bind(context)(x, t), LAW.denoiser(process)(x, t))
    assert torch.allclose(context.notes["divergence"], exact, rtol=1e-9)
    WithDivergence(LAW.denoiser(process), probes=400).bind(context)(x, t)
    assert torch.allclose(context.notes["divergence"], exact, rtol=0.15)


@PLAIN
def test_the_flow_gives_the_density_to_second_order(process):
    begin = process.time(-6.0).item()
    x = process.start(fk.noise((64, 2), seed=1, dtype=F64), t=begin)
    errors = []
    for steps in (20, 40):
        plan = fk.solve.get("heun").plan(process, fk.grids.get("logsnr")(steps, start=begin, end=process.time(3.0).item()))
        found = follow(LAW.denoiser(process), x, plan, LAW.log_prob_t(x, begin, process), "exact")
        errors.append(float((found.log_density - LAW.log_prob_t(found.x, found.t, process)).abs().mean()))
        assert found.trace.nfe == 2 * steps
    assert errors[1] < errors[0] / 3 and errors[1] < 0.01


def test_the_ito_estimator_improves_with_steps_and_is_blind_to_the_noise_level_of_the_end():
    x = VP.start(fk.noise((400, 2), seed=1, dtype=F64))
    begin = LAW.log_prob_t(x, 1.0, VP)

    def error(steps: int, end: float | None) -> float:
        plan = fk.solve.get("ddpm").plan(VP, fk.grids.get("uniform")(steps, end=end))
        found = follow(LAW.denoiser(VP), x, plan, begin)
        return float((found.log_density - LAW.log_prob_t(found.x, found.t, VP)).std())

    coarse, fine = error(40, None), error(160, None)
    # order 1/2: four times the steps halve it; the start's own spread is what not following leaves
    assert 1.5 < coarse / fine < 2.6 and fine < 1.0
    # to x_0, which has no density: the last noisy state is given back
    plan = fk.solve.get("ddpm").plan(VP, fk.grids.get("uniform")(40, end=0))
    found = follow(LAW.denoiser(VP), x, plan, begin)
    assert found.t == plan.times[-1] and not torch.equal(found.x, found.trace.x0)


def test_one_time_a_sample():
    t, s = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=F64), torch.tensor([0.29, 0.48, 0.65, 0.85], dtype=F64)
    x = start(VP)
    denoiser = LAW.denoiser(VP)
    together = Move(VP, x, t, 0.9 * x, s).ito(denoiser(x, t))
    divergences = torch.arange(4, dtype=F64)
    flow = Move(VP, x, t, 0.9 * x, s).flow(divergences)
    for k in range(4):
        one = slice(k, k + 1)
        move = Move(VP, x[one], float(t[k]), 0.9 * x[one], float(s[k]))
        assert torch.allclose(move.ito(denoiser(x[one], float(t[k]))), together[one], atol=1e-9)
        assert torch.allclose(move.flow(divergences[one]), flow[one], atol=1e-9)


def test_what_has_no_density_is_refused():
    x = start(VP)
    with pytest.raises(FokkerError, match="noise must fall"):
        Move(VP, x, 0.5, x, 0.6)
    with pytest.raises(FokkerError, match="alpha is 0"):
        Move(fk.Flow(), x, 1.0, x, 0.9)
    plan = fk.solve.get("ddim").plan(VP, fk.grids.get("uniform")(3))
    with pytest.raises(FokkerError, match="'exact' or 'hutchinson'"):
        follow(LAW.denoiser(VP), x, plan, 0.0)
    with pytest.raises(FokkerError, match="did you mean 'exact'"):
        follow(LAW.denoiser(VP), x, plan, 0.0, "exakt")
    with pytest.raises(FokkerError, match="probes"):
        WithDivergence(LAW.denoiser(VP), -1)
