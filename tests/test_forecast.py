"""The refiner: its plan against the formula, exact beliefs, and what is measured of rollouts."""

import math

import pytest
import torch

import fokker as fk
from fokker.errors import FokkerError
from fokker.forecast import PDERefiner, RefinerDenoiser, RefinerLoss, band_error, correlation, correlation_time
from fokker.train.objective import Key

F64 = torch.float64
SIGMA = 1e-2


class Linear(torch.nn.Module):
    """The exact network of d ~ N(0.5 u, g^2), or of d = 0.5 u itself for g = 0."""

    def __init__(self, g: float = 0.0, prediction: str = "eps") -> None:
        super().__init__()
        self.g, self.prediction = g, prediction
        self.seen: list[float] = []

    def forward(self, w, c, image):
        self.seen.append(float(c[0]))
        if float(c[0]) == -5.0:
            return 0.5 * image
        sigma = SIGMA ** float(((c + 5) / 10)[0])
        shrink = 1 / math.sqrt(1 + sigma**2) if self.prediction == "v" else 1.0
        noisy = w / shrink
        d = 0.5 * image + self.g**2 / (self.g**2 + sigma**2) * (noisy - 0.5 * image)
        return (noisy - d) / sigma if self.prediction == "eps" else (shrink * noisy - d / shrink) / sigma


def test_one_step_is_the_formula():
    u = fk.noise((2, 1, 16), 1, dtype=F64)
    net = Linear(g=0.3)
    refiner = PDERefiner(RefinerDenoiser(net, SIGMA), passes=2, std=2.0, scale=0.1)
    out = refiner.step(u, seed=3)
    assert net.seen == [-5.0, 0.0, 5.0]
    # by hand, with the noise that the run drew
    path = fk.keyed.Brownian((2, 1, 16), 3, None, F64)
    d, y = 0.25 * u, u / 2
    process = refiner.denoiser.process
    for before, now in ((1.0, 0.5), (0.5, 0.0)):
        sigma = float(process.sigma(now))
        z = path.increment(float(process.logsnr(now)), float(process.logsnr(before)))
        w = d + sigma * z
        d = 0.5 * y + 0.09 / (0.09 + sigma**2) * (w - 0.5 * y)
    assert torch.allclose(out, u + 0.1 * d, atol=1e-12)
    assert process.sigma(0.0) == SIGMA and process.sigma(0.5) == pytest.approx(math.sqrt(SIGMA))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_perfect_network_is_not_disturbed(prediction):
    """Where the change is known exactly every pass gives it back; no passes is the plain surrogate."""
    u = fk.noise((3, 1, 16), 1, dtype=F64)
    for passes in (0, 1, 3):
        net = Linear(prediction=prediction)
        refiner = PDERefiner(RefinerDenoiser(net, SIGMA, prediction), passes)
        path = refiner.rollout(u, 4, seed=1)
        assert torch.allclose(path[:, 4], u * 1.5**4, atol=1e-9) and path.shape == (3, 5, 1, 16)
        assert len(net.seen) == 4 * (passes + 1)


def test_rollouts_are_keyed_by_trajectory_and_draw_anew_each_step():
    refiner = PDERefiner(RefinerDenoiser(Linear(g=0.3), SIGMA), 2)
    u = fk.noise((1, 1, 16), 1, dtype=F64).expand(4, 1, 16)
    path = refiner.rollout(u, 3, seed=5)
    assert torch.equal(refiner.rollout(u[:1], 3, seed=5, ids=[2]), path[2:3])
    assert not torch.allclose(path[0], path[1])
    noise = [path[:, k + 1] - 1.5 * path[:, k] for k in range(3)]
    assert not torch.allclose(noise[0], noise[1], atol=1e-4)
    horizon = refiner.horizon(u[:1], 3, members=3, threshold=2.0)
    assert horizon.tolist() == [0], "no correlation is above 1"
    assert refiner.horizon(u[:1], 3, members=3, threshold=-1.0).tolist() == [3]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_the_squared_error_of_what_the_network_predicts(prediction):
    """The loss of a network that answers zero is the mean square of its target."""

    class Zero(torch.nn.Module):
        def forward(self, w, c, image):
            return torch.zeros_like(w)

    n = 4000
    previous = fk.noise((n, 1, 8), 1)
    x = previous + 0.2 * fk.noise((n, 1, 8), 2)
    objective = RefinerLoss(passes=3, scale=0.2)
    denoiser = RefinerDenoiser(Zero(), 0.1, prediction)
    drawn = objective.draw(denoiser, {"x": x, "previous": previous}, Key(0, 0, n, torch.arange(n)))
    loss = objective.loss(denoiser, drawn)
    assert sorted(set(drawn["t"].tolist())) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    # unit change and unit noise, and v = alpha e - sigma d of unit variance
    for t in (0, 1 / 3, 2 / 3, 1):
        rows = (drawn["t"] - t).abs() < 1e-9
        assert float(loss[rows].mean()) == pytest.approx(1.0, abs=0.05)


def test_what_is_measured_of_rollouts():
    grid = torch.arange(64, dtype=F64) * (2 * math.pi / 64)
    truth = (torch.sin(grid) + 0.01 * torch.sin(12 * grid)).expand(2, 5, 1, 64)
    shifted = truth.clone()
    shifted[0, 3:] = -truth[0, 3:]
    shifted[1, 4, 0] = torch.nan
    assert correlation_time(shifted, truth, 0.5).tolist() == [1.5, 2.0]
    assert torch.allclose(correlation(truth, 3 * truth + 1), torch.ones(2, 5, dtype=F64))
    wrong = truth + 0.005 * torch.sin(12 * grid)
    assert torch.allclose(
        band_error(wrong, truth, [(1, 4), (10, 14)]), torch.tensor([0.0, 0.25], dtype=F64), atol=1e-12
    )
    with pytest.raises(FokkerError, match="batch, times"):
        correlation(truth, truth[:, :3])
    with pytest.raises(FokkerError, match="passes"):
        PDERefiner(RefinerDenoiser(Linear()), -1)
    with pytest.raises(FokkerError, match="'eps' or 'v'"):
        RefinerDenoiser(Linear(), prediction="x0")
