"""Score SDE: one score gives likelihoods, invertible encodings, and samplers that a corrector improves.

Theory: the probability flow carries densities exactly, so with the exact score log p_0 is right up to the tolerance and to what
the published prior N(0, sigma_max^2) lacks of p_1; its encoding can be undone. A Langevin move after each of 20 predictor steps
pulls the samples back to p_t, whatever the predictor. At equal steps, which is twice the calls: at equal calls nothing is
claimed.

Null: the likelihood without its change of density, and no corrector.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, within
from fokker.checks._mixture import mixture
from fokker.keyed import noise
from fokker.likelihood import Density, FlowLikelihood
from fokker.measure import EnergyDistance
from fokker.process import Process
from fokker.solve.corrector import PredictorCorrector

EXPECT = (
    "on VE, VP and sub-VP: mean |error| of log p <= 5e-3 nats from the exact law at t = 1, |mean error| <= 5e-3 from the "
    "published prior, encode and decode agree to 1e-4; Hutchinson's stated error is right within 25 %; one corrector a step "
    "(snr 0.3, 20 steps) leaves <= 0.75 x the predictor's energy distance for reverse diffusion, ancestral and flow"
)
PROCESSES = {"VE": (fk.VE(), None), "VP": (fk.VP(), 1e-5), "sub-VP": (fk.SubVP(), 1e-5)}
PREDICTORS = ("reverse-diffusion", "ancestral", "flow")
DIM, COMPONENTS, STEPS, ITEMS, SAMPLES = 2, 6, 20, 200, 3000
TIGHT = 1e-7


def unmoved(found: Density, process: Process, t: float) -> Tensor:
    """The log-density of the latent alone, as if the flow kept volumes."""
    sigma = process.at(1.0)[2]
    return process.log_noise(found.latent / sigma) - DIM * torch.log(torch.tensor(sigma))


def check(seed: int, null: bool = False) -> Outcome:
    law = mixture(DIM, COMPONENTS, seed)
    x = law.sample(ITEMS, seed=seed + 50)
    true = law.log_prob(x)
    reference = law.sample(2 * SAMPLES, seed=seed + 100)
    criteria: list[Criterion] = []
    measured: dict[str, float] = {}
    baseline: dict[str, float] = {}
    for name, (process, start) in PROCESSES.items():
        denoiser = law.denoiser(process)
        how = FlowLikelihood(rtol=TIGHT, atol=TIGHT, start=start)

        def at_one(latent: Tensor, process: Process = process) -> Tensor:
            return law.log_prob_t(latent, 1.0, process)

        published, exact = how(denoiser, x), how(denoiser, x, prior=at_one)
        if null:
            error = bias = float((unmoved(published, process, how.begin(process)) - true).abs().mean())
        else:
            error = float((exact.log_prob - true).abs().mean())
            bias = abs(float((published.log_prob - true).mean()))
        back = float((how.decode(denoiser, published.latent) - x).abs().max())
        rough = FlowLikelihood("hutchinson", 32, start=start)(denoiser, x, seed=seed, prior=at_one)
        honest = float(((rough.log_prob - exact.log_prob) / rough.error).square().mean().sqrt())
        measured |= {f"{name}: mean |error|, nats": error, f"{name}: |bias| with the published prior": bias}
        measured |= {f"{name}: round trip": back, f"{name}: error of 32 probes over its estimate": honest}
        criteria += [
            Criterion(f"{name}: mean |error|", error, "<=", 5e-3),
            Criterion(f"{name}: |bias|", bias, "<=", 5e-3),
            Criterion(f"{name}: round trip", back, "<=", 1e-4),
            *within(f"{name}: probes' error over its estimate", honest, 0.75, 1.25),
        ]
        x1 = process.start(noise((SAMPLES, DIM), seed, stream="check", dtype=torch.float64))
        for predictor in PREDICTORS:
            far = []
            for corrections in (0, 0 if null else 1):
                solver = PredictorCorrector(corrections, 0.3, predictor, "batch")
                plan = solver.plan(process, fk.grids.uniform(STEPS, end=0))
                far.append(EnergyDistance(floor=False)(fk.sample(denoiser, x1, plan, seed=seed), reference).value)
            measured[f"{name}, {predictor}: energy distance with corrector"] = far[1]
            baseline[f"{name}, {predictor}: energy distance of the predictor"] = far[0]
            criteria.append(Criterion(f"{name}, {predictor}: corrector over predictor", far[1] / far[0], "<=", 0.75))
    return Outcome(measured, baseline, criteria)
