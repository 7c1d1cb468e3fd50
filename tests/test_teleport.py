"""Jumps by the flow of a Gaussian: exact on Gaussians, right about moments, honest about where they end."""

import pytest
import torch

import fokker as fk
from fokker.laws import GaussianMixture
from fokker.laws.algebra import gaussian
from fokker.solve.teleport import GaussianTeleport, feature_times, perturbation_gain

F64 = torch.float64
LAW = fk.laws.lowrank(dim=12, components=3, rank=4, seed=1).affine(1.0, torch.linspace(-1, 2, 12, dtype=F64))
LABELLED = GaussianMixture(LAW.weights, LAW.means, LAW.covs, [0, 1, 2])
PROCESSES = [fk.VP(), fk.EDM(), fk.Flow(), fk.Cosine(), fk.SubVP()]


def noise(process: fk.Process, n: int = 5, seed: int = 0) -> torch.Tensor:
    return process.start(fk.noise((n, 12), seed, dtype=F64))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_on_a_gaussian_it_is_the_flow_and_goes_back(process: fk.Process) -> None:
    one = gaussian(LAW)
    jump, x1 = GaussianTeleport(one, process, 0.3), noise(process)
    assert torch.allclose(jump(x1), one.flow(process, x1, 1.0, 0.3), atol=1e-8)
    assert torch.allclose(jump.carry(jump(x1), 0.3, 1.0), x1, atol=1e-8)
    # a flow: two jumps are one
    assert torch.allclose(jump.carry(jump.carry(x1, 1.0, 0.6), 0.6, 0.3), jump(x1), atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_velocity_is_that_of_wieners_filter(process: fk.Process) -> None:
    jump, x1 = GaussianTeleport(LAW, process, 0.3), noise(process)
    h = 1e-5
    slope = (jump.carry(x1, 1.0, 0.5 + h) - jump.carry(x1, 1.0, 0.5 - h)) / (2 * h)
    belief = jump.moments().denoiser(process).predict("flow", jump.carry(x1, 1.0, 0.5), 0.5)
    assert torch.allclose(slope, belief, rtol=1e-5, atol=1e-5)


def test_the_gaussian_of_a_law_has_its_moments_and_low_rank_stays_low() -> None:
    thin = fk.laws.lowrank(dim=40, components=2, rank=3, seed=2).affine(1.0, 0.5)
    for law in (LAW, thin, LABELLED.conditional(1)):
        found = gaussian(law)
        assert torch.allclose(found.mean(), law.mean(), atol=1e-12) and torch.allclose(found.cov(), law.cov(), atol=1e-12)
    assert gaussian(thin).rank == 8


@pytest.mark.parametrize(("n", "rank"), [(200, None), (200, 5), (8, None), (8, 3), (200, 0), (200, 12)])
def test_fit_takes_mean_and_covariance_of_data(n: int, rank: int | None) -> None:
    data = LAW.sample(n, seed=3).reshape(n, 3, 4)
    found = GaussianTeleport.fit(data, fk.VP(), rank=rank).moments()
    flat = data.flatten(1)
    covariance = (flat - flat.mean(0)).T @ (flat - flat.mean(0)) / n
    assert found.shape == (3, 4) and torch.allclose(found.mean().flatten(), flat.mean(0), atol=1e-12)
    assert torch.allclose(found.cov().trace(), covariance.trace(), rtol=1e-10)
    if rank is None or rank == 12:
        assert torch.allclose(found.cov(), covariance, atol=1e-10)
    else:
        kept = torch.linalg.eigvalsh(covariance)[12 - rank :]
        assert torch.allclose(found.eigenvalues[0, found.rank - rank :], kept, atol=1e-10)


def test_directions_without_variance_follow_the_noise_alone() -> None:
    data = LAW.sample(6, seed=3)
    process = fk.EDM()
    jump = GaussianTeleport.fit(data, process, t=0.01)
    across = torch.linalg.qr(torch.cat([jump.law.basis[0], fk.noise((12, 7), 1, dtype=F64)], 1))[0][:, jump.law.rank :]
    x1 = noise(process)
    left = (jump(x1) - jump.law.mean()) @ across
    assert jump.law.rank == 5 and torch.allclose(left, 0.01 * (x1 - jump.law.mean()) @ across, atol=1e-9)


def test_classes_have_their_own_jump() -> None:
    process, x1 = fk.VP(), noise(fk.VP(), 4)
    data, labels = LABELLED.sample_labelled(300, seed=1)
    jump = GaussianTeleport.fit(data, process, t=0.5, labels=labels)
    alone = GaussianTeleport.fit(data[labels == 2], process, t=0.5)
    whole = GaussianTeleport.fit(data, process, t=0.5)
    mixed = jump(x1, label=torch.tensor([2, -1, 2, 0]))
    assert torch.allclose(mixed[[0, 2]], alone(x1)[[0, 2]], atol=1e-10)
    assert torch.allclose(mixed[1], whole(x1)[1], atol=1e-10) and torch.allclose(jump(x1), whole(x1), atol=1e-10)
    assert torch.allclose(jump(x1[2:3], label=2), mixed[2:3], atol=1e-12)


def test_deviation_is_measured_on_the_models_own_trajectory() -> None:
    process = fk.VP()
    one, x1 = gaussian(LAW), noise(fk.VP(), 16)
    jump = GaussianTeleport(LAW, process)
    times, far = jump.deviation(one.denoiser(process), x1, steps=200)
    # the truth is a numerical run of second order
    assert times[0] == 1 and float(far[0]) < 1e-12 and float(far.max()) < 2e-3
    times, far = jump.deviation(LAW.denoiser(process), x1, steps=60)
    k = 30
    exact = LAW.flow(process, x1, 1.0, float(times[k]))
    gap = (jump.carry(x1, 1.0, times[k]) - exact).norm() / exact.norm()
    assert float(far[k]) == pytest.approx(float(gap), rel=0.02)
    found = jump.until(LAW.denoiser(process), x1, tolerance=0.05, steps=60)
    assert float(far[times.tolist().index(found.t)]) <= 0.05 < float(far[times.tolist().index(found.t) + 1])
    wrong = GaussianTeleport(LAW.affine(1.0, 50.0), process)
    with pytest.raises(fk.FokkerError, match="off the model's trajectory"):
        wrong.until(LAW.denoiser(process), x1, tolerance=0.001, steps=10)


def test_any_solver_goes_on_from_there_with_fewer_calls() -> None:
    process = fk.EDM()
    x1, denoiser = noise(process, 64), LAW.denoiser(process)
    jump = GaussianTeleport(LAW, process).until(denoiser, x1[:8], tolerance=0.01)
    truth = LAW.flow(process, x1, 1.0, 0.0)
    for solver in ("heun", "dpmpp-2m"):
        after = fk.run(denoiser, jump(x1), solver=solver, nfe=9, grid="karras", start=jump.t, end=0)
        plain = fk.run(denoiser, x1, solver=solver, nfe=9, grid="karras", end=0)
        assert after.nfe == plain.nfe == 9
        assert float((after.x0 - truth).norm(dim=1).mean()) < 0.6 * float((plain.x0 - truth).norm(dim=1).mean())
    guided = fk.guide.CFG(LABELLED.denoiser(process), scale=2.0)
    by_class = GaussianTeleport(LABELLED, process).until(guided, x1, 0.05, label=torch.arange(64) % 3)
    assert 0 < by_class.t < 1


def test_features_commit_from_large_to_small_and_perturbations_shrink() -> None:
    one = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], torch.diag(torch.tensor([0.01, 4.0, 1.0], dtype=F64)))
    process = fk.EDM()
    assert torch.allclose(process.sigma(feature_times(one, process)), torch.tensor([2.0, 1.0, 0.1], dtype=F64))
    # the gain is the derivative of the jump to x_0
    jump, x = GaussianTeleport(one, process, 0.0), torch.zeros(1, 3, dtype=F64)
    moved = jump.carry(x + torch.tensor([0.0, 1e-3, 0.0], dtype=F64), 0.05, 0.0) - jump.carry(x, 0.05, 0.0)
    assert float(moved[0, 1]) == pytest.approx(1e-3 * float(perturbation_gain(one, process, 0.05)[0]), rel=1e-9)


def test_half_precision_shape_and_storage(tmp_path) -> None:
    data, labels = LABELLED.sample_labelled(300, seed=1)
    jump = GaussianTeleport.fit(data.reshape(-1, 3, 4), fk.VP(beta_max=18.0), t=0.4, rank=5, labels=labels)
    x1 = noise(fk.VP(), 3).reshape(3, 3, 4)
    low = jump(x1.bfloat16(), label=1)
    assert low.dtype == torch.bfloat16 and low.shape == (3, 3, 4)
    back = GaussianTeleport.load(jump.save(tmp_path / "moments.safetensors"))
    assert back.t == 0.4 and back.process.config == jump.process.config
    assert torch.equal(back(x1, label=torch.tensor([0, 1, 2])), jump(x1, label=torch.tensor([0, 1, 2])))


def test_refusals(tmp_path) -> None:
    x1 = noise(fk.VP())
    jump = GaussianTeleport(LABELLED, fk.VP())
    for call, says in (
        (lambda: GaussianTeleport(LAW, fk.VP(), 1.0), r"\[0, 1\)"),
        (lambda: GaussianTeleport(LAW, fk.MeanReverting()), "plain process"),
        (lambda: GaussianTeleport(LAW, fk.PFGMPP(D=8.0)), "normal noise"),
        (lambda: GaussianTeleport.fit(LAW.sample(1), fk.VP()), "n > 1"),
        (lambda: GaussianTeleport.fit(LAW.sample(9), fk.VP(), rank=13), "0 .. dim"),
        (lambda: GaussianTeleport.fit(LAW.sample(9), fk.VP(), labels=[0, 1]), "one each"),
        (lambda: jump(x1, label=7), "no moments of class 7"),
        (lambda: jump(x1, label=torch.tensor([0])), "one each"),
        (lambda: jump(x1[:, :5]), "shape"),
        (lambda: jump.deviation(LAW.denoiser(fk.EDM()), x1), "EDM"),
        (lambda: GaussianTeleport.fit(LAW.sample(6), fk.VP(), t=0.0).carry(x1, 0.0, 0.5), "neither variance nor noise"),
    ):
        with pytest.raises(fk.FokkerError, match=says):
            call()


def test_the_command_line_begins_where_the_jump_ends(tmp_path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from fokker.cli.app import app

    monkeypatch.chdir(tmp_path)
    model = fk.load("digits")
    data, labels = torch.randn(60, *model.x_shape, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10
    jump = GaussianTeleport.fit(data, model.process, 0.02, labels=labels)
    jump.save("moments.safetensors")

    def call(*words: str) -> tuple[int, str]:
        said = CliRunner().invoke(app, [*words], standalone_mode=True)
        return said.exit_code, said.output + str(said.exception or "")

    asked = ["sample", "--model", "digits", "--label", "3", "-n", "2", "--steps", "3", "--grid", "karras", "--solver", "heun"]
    code, said = call(*asked, "--jump", "moments.safetensors", "--out", "x.npz")
    assert code == 0, said
    import numpy as np

    found = torch.from_numpy(next(iter(np.load("x.npz").values())))
    eps = model.process.sample_noise((2, *model.x_shape), 0, [0, 1])
    label = model.condition(2, label="3")["label"]
    with torch.no_grad():
        begin = jump(model.process.start(eps), label)
        wanted = fk.sample(
            model.denoiser, begin, solver="heun", grid="karras", steps=3, start=0.02, ids=[0, 1], label=label
        )
    assert torch.allclose(found.reshape(wanted.shape).to(wanted), wanted, atol=1e-5)
    assert call("rerun", "x.npz")[0] == 0
    plan = fk.solve.get("heun").plan(model.process, fk.grids.get("karras")(3))
    (tmp_path / "plan.json").write_text(plan.json())
    code, said = call(*asked[:7], "--plan", "plan.json", "--jump", "moments.safetensors", "--out", "y.npz")
    assert code != 0 and "the jump ends at t=0.02" in said
    GaussianTeleport.fit(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), model.process).save("other.safetensors")
    code, said = call(*asked, "--jump", "other.safetensors", "--out", "y.npz")
    assert code != 0 and "moments of data of shape" in said
