"""Likelihood by the probability flow against exact laws, its probes, its encodings, and its bound for data on a lattice."""

import json
import math

import numpy as np
import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, anchor

import fokker as fk
from fokker.cli import main
from fokker.denoiser import Wrapper
from fokker.errors import FokkerError
from fokker.likelihood import FlowLikelihood, Lattice
from fokker.solve.corrector import PREDICTORS, PredictorCorrector

CONTINUOUS = [name for name, process in PROCESSES.items() if not process.tokens]
TIGHT = {"rtol": 1e-7, "atol": 1e-7}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_prob_is_that_of_the_law_on_every_process(name):
    """From t, where the law's density is known, to t = 1, where it is known too."""
    process, t = PROCESSES[name], 0.3
    x = LAW.sample(12, seed=3)
    y = anchor(process, x)
    x_t = process.add_noise(x, process.sample_noise((12, 2), seed=4, dtype=F64), t, y)
    found = FlowLikelihood(start=t, **TIGHT)(
        LAW.denoiser(process), x_t, y=y, prior=lambda latent: LAW.log_prob_t(latent, 1.0, process, y=y)
    )
    truth = LAW.log_prob_t(x_t, t, process, y=y)
    assert torch.allclose(found.log_prob, truth, rtol=0, atol=2e-4 if process.dof else 2e-5)
    assert not found.error.any() and found.probes == 2


@pytest.mark.parametrize("process", [fk.VP(), fk.SubVP(), fk.VE(), fk.EDM(), fk.Flow(), fk.Cosine()], ids=lambda p: p.name)
def test_the_published_prior_costs_little(process):
    x = LAW.sample(64, seed=1)
    start = None if process.name == "VE" else 1e-5
    error = fk.log_prob(LAW.denoiser(process), x, start=start) - LAW.log_prob(x)
    # sigma_max is 50 for VE: a mean of size 1 at unit spread is there 0.02 of a standard deviation
    assert error.abs().mean() < 0.03 and error.mean().abs() < 5e-3


def test_conditions_and_time_of_the_start():
    x, label = LAW.sample(16, seed=2), torch.tensor([0, 1] * 8)
    denoiser = LAW.denoiser(fk.Flow())
    got = fk.log_prob(denoiser, x, start=1e-5, label=label, **TIGHT)
    assert torch.allclose(got, LAW.log_prob(x, label), atol=1e-3)
    with pytest.raises(FokkerError, match="did you mean 'label'"):
        fk.log_prob(denoiser, x, lable=label)


def test_probes_are_unbiased_and_know_their_error():
    law = fk.laws.GaussianMixture([0.5, 0.5], fk.noise((2, 6), dtype=F64), fk_cov())
    x, denoiser = law.sample(200, seed=1), law.denoiser(fk.VP())
    exact = FlowLikelihood(steps=24)(denoiser, x)
    for probe in ("rademacher", "normal"):
        rough = FlowLikelihood("hutchinson", 24, probe, steps=24)(denoiser, x, seed=5)
        z = (rough.log_prob - exact.log_prob) / rough.error
        # Student with 23 degrees of freedom has variance 23 / 21
        assert abs(float(z.mean())) < 4 / math.sqrt(200) and abs(float(z.square().mean()) - 23 / 21) < 0.5
    one = FlowLikelihood("hutchinson", 1, steps=24)(denoiser, x)
    assert one.error.isnan().all() and float((one.log_prob - exact.log_prob).abs().mean()) > 0.05


def fk_cov() -> torch.Tensor:
    turn = torch.linalg.qr(fk.noise((2, 6, 6), seed=9, dtype=F64))[0]
    return turn @ torch.diag_embed(torch.linspace(0.05, 0.8, 6, dtype=F64).expand(2, 6)) @ turn.mT


def test_probes_belong_to_the_sample():
    how = FlowLikelihood("hutchinson", 3, "normal", steps=8)
    x, denoiser = LAW.sample(5, seed=1), LAW.denoiser(fk.VP())
    whole = how(denoiser, x, seed=2, ids=[3, 4, 5, 6, 7])
    alone = how(denoiser, x[2:3], seed=2, ids=[5])
    assert torch.allclose(alone.log_prob, whole.log_prob[2:3], rtol=0, atol=1e-10)
    assert not torch.allclose(how(denoiser, x[2:3], seed=2, ids=[6]).log_prob, alone.log_prob)


def test_encode_and_decode_are_inverse_and_follow_the_exact_flow():
    how = FlowLikelihood(rtol=1e-8, atol=1e-8, start=0.01)
    process, x = fk.VP(), LAW.sample(8, seed=1)
    latent = how.encode(LAW.denoiser(process), x)
    assert torch.allclose(latent, LAW.flow(process, x, 0.01, 1.0), atol=1e-5)
    assert torch.allclose(how.decode(LAW.denoiser(process), latent), x, atol=1e-5)
    resshift, y = PROCESSES["resshift"], 0.5 * torch.ones_like(x)
    there = how.encode(LAW.denoiser(resshift), x, y)
    assert torch.allclose(how.decode(LAW.denoiser(resshift), there, y), x, atol=1e-5)


def test_it_is_a_run_for_wrappers_and_counts_evaluations():
    class Twice(Wrapper):
        def reset(self, run):
            self.calls = 0

        def x0(self, x_t, t, **cond):
            self.calls += 1
            return 0.5 * (self.inner(x_t, t, **cond) + self.inner(x_t, t, **cond))

    x = LAW.sample(3)
    plain, twice = (FlowLikelihood(steps=4)(d, x) for d in (LAW.denoiser(fk.VP()), Twice(LAW.denoiser(fk.VP()))))
    assert plain.nfe == 16 and twice.nfe == 32
    assert torch.allclose(plain.log_prob, twice.log_prob)


def test_a_network_in_float32_has_a_likelihood():
    model = fk.load("digits")
    x = fk.noise((2, 1, 8, 8), seed=1) * 0.5
    found = FlowLikelihood("hutchinson", 2, steps=6)(model.denoiser, x, label=torch.tensor([1, -1]))
    assert found.log_prob.dtype == F64 and found.latent.dtype == torch.float32 and found.log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"divergence": "exat"}, "did you mean 'exact'"),
        ({"method": "rk5"}, "unknown method"),
        ({"probe": "gauss"}, "unknown probe"),
        ({"probes": 0}, "at least 1"),
        ({"rtol": 0.0}, "above 0"),
    ],
)
def test_options_are_refused(options, says):
    with pytest.raises(FokkerError, match=says):
        FlowLikelihood(**options)


def test_a_start_without_noise_and_integers_are_refused():
    with pytest.raises(FokkerError, match="no noise there"):
        fk.log_prob(LAW.denoiser(fk.VP()), LAW.sample(2), start=0.0)
    with pytest.raises(FokkerError, match="give floating point"):
        fk.log_prob(LAW.denoiser(fk.VP()), torch.zeros(2, 2, dtype=torch.int64))


# --- the noise's own density ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [fk.VP(), fk.PFGMPP(D=3.0)], ids=lambda p: p.name)
def test_the_noise_has_the_density_it_is_drawn_from(process):
    grid = torch.linspace(-400, 400, 400_001, dtype=F64)[:, None]
    density = process.log_noise(grid).exp()
    assert abs(float(torch.trapezoid(density, grid[:, 0])) - 1) < 1e-4
    drawn = process.sample_noise((20_000, 1), seed=1, dtype=F64)[:, 0]
    for edge in (0.5, 1.0, 3.0):
        inside = grid[:, 0].abs() <= edge
        share = float(torch.trapezoid(density[inside], grid[inside, 0]))
        assert abs(float((drawn.abs() <= edge).double().mean()) - share) < 4 * math.sqrt(0.25 / 20_000) + 1e-3


def test_heavy_tails_have_no_score_from_the_belief():
    with pytest.raises(FokkerError, match="no function of the belief"):
        LAW.denoiser(fk.PFGMPP()).predict("score", LAW.sample(2), 0.5)
    with pytest.raises(FokkerError, match="above 0"):
        fk.PFGMPP(D=0.0)


# --- data on a lattice ------------------------------------------------------------------------------------------------------


def test_the_spacing_of_a_lattice_is_found():
    assert Lattice.of(torch.tensor([-1.0, -0.75, 0.25, 1.0])) == pytest.approx(0.25)
    assert Lattice.of(torch.arange(9.0) / 8 - 1) == pytest.approx(1 / 8)
    assert Lattice.of(fk.noise((50, 2))) is None and Lattice.of(torch.zeros(3)) is None
    for options in ({"bin": 0.0}, {"bin": 1.0, "how": "unifrom"}):
        with pytest.raises(FokkerError):
            Lattice(**options)


def test_the_bound_is_below_the_probability_of_the_cell_and_close_to_it():
    law, gap = fk.laws.GaussianMixture([0.6, 0.4], [[-0.5], [0.8]], 0.15), 0.1
    x = ((law.sample(400, seed=1) / gap).round() * gap).to(F64)
    cell = torch.zeros(400, dtype=F64)
    for w, m in ((0.6, -0.5), (0.4, 0.8)):
        edges = [0.5 * (1 + torch.erf((x[:, 0] + s * gap / 2 - m) / math.sqrt(2 * 0.15))) for s in (1, -1)]
        cell += w * (edges[0] - edges[1])
    found = Lattice(gap, "uniform").bound(law.denoiser(fk.VP()), x, FlowLikelihood(steps=64))
    slack = cell.log() - found.log_prob
    # Jensen's gap is half the variance of log p over the cell: the error of the mean over 400 draws bounds the rest
    assert -3 * float(slack.std()) / 20 < float(slack.mean()) < 0.02


def test_the_bound_of_a_model_of_the_lattice_itself_is_tight():
    """Two coordinates of three levels each: the bells of neighbours overlap by 0.3 per cent."""
    gap = 0.5
    points = gap * torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)).to(F64)
    law = fk.laws.GaussianMixture(torch.arange(1.0, 10.0), points, 0.0)
    found = Lattice(gap).bound(law.denoiser(fk.EDM(sigma_max=500.0)), points, FlowLikelihood(rtol=1e-6, atol=1e-6))
    assert torch.allclose(found.log_prob, law.log_weights, atol=0.05)


# --- predictors and correctors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["expected", "batch"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_predictors_and_correctors_sample_the_law(predictor, norms):
    law = fk.laws.GaussianMixture([1.0], [[0.4, -0.3]], torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    process = fk.VP()
    x1 = process.start(fk.noise((4000, 2), seed=1, dtype=F64))
    solver = PredictorCorrector(4 if predictor == "none" else 1, 0.16, predictor, norms)
    plan = solver.plan(process, fk.grids.uniform(120))
    x = fk.sample(law.denoiser(process), x1, plan, seed=1)
    # Langevin alone lags behind the falling noise
    near = 0.15 if predictor == "none" else 0.05
    assert (x.mean(0) - law.mean()).abs().max() < near
    assert (torch.cov(x.T) - law.cov()).abs().max() < near
    assert fk.run(law.denoiser(process), x1[:2], plan).nfe == 120 * solver.evaluations


def test_a_measured_step_is_the_papers_and_says_what_it_cannot():
    process, t = fk.VE(), 0.5
    x = process.add_noise(LAW.sample(6), fk.noise((6, 2), seed=1, dtype=F64), t)
    plan = PredictorCorrector(1, 0.2, "none", "batch").plan(process, fk.grids.uniform(1, start=0.6, end=t))
    moved = fk.sample(LAW.denoiser(process), x, plan, seed=3)
    score = LAW.score(x, t, process)
    u = fk.keyed.uniform((6, 2), 3, None, "step", 1 << 8, bits=52)
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    h = 2 * (0.2 * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
    assert torch.allclose(moved, x + h * score + torch.sqrt(2 * h) * z, atol=1e-9)
    for options, says in (({"predictor": "ancestrall"}, "did you mean"), ({"norms": "sample"}, "unknown norms")):
        with pytest.raises(FokkerError, match=says):
            PredictorCorrector(**options)


# --- the command ------------------------------------------------------------------------------------------------------------


def test_the_command_measures_a_law_beside_its_own_density(capsys):
    assert main(["likelihood", "--law", "ring", "-n", "20", "--tolerance", "1e-5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found["nats"] - found["true_nats"]) < 0.02 and found["error_from_probes"] == 0.0 and found["dim"] == 2
    assert found["bits_per_dim"] == pytest.approx(found["nats"] / (2 * math.log(2)))


def test_the_command_measures_a_model_on_its_own_test_data(capsys, tmp_path):
    quick = ["-n", "4", "--batch", "3", "--probes", "2", "--tolerance", "1e-2"]
    assert main(["likelihood", "--model", "digits", *quick, "--json", "--out", str(tmp_path / "a.npz")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["discrete"] and found["bin"] == pytest.approx(1 / 8) and found["data"] == "toy:digits (test)"
    # seventeen levels: a uniform guess has 4.09 bits
    assert 1.0 < found["bits_per_dim"] < 3.5 and found["error_from_probes"] > 0
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert -float(archive["x0"].mean()) == pytest.approx(found["nats"])
        assert json.loads(str(archive["fokker"]))["options"]["probes"] == 2


@pytest.mark.parametrize(
    "line",
    [
        "--law ring --model digits",
        "",
        "--law ring --given",
        "--law ring --dequantise normal",
        "--model digits --process vp",
        "--model digits --dequantise none --bin 0.1",
        "--model digits --data toy:sprites",
        "--law ring --out x.png",
    ],
)
def test_the_command_refuses_what_does_not_fit(line, capsys):
    assert main(["likelihood", *line.split(), "-n", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
