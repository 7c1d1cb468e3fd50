"""Stochastic interpolants: one velocity and one score carry either law to the other, with any amount of noise.

Theory: the ODE and every SDE share their marginals, so with the exact fields of two mixtures all runs end at the far law. An
error of the velocity alone is corrected by a diffusion whose score is exact, which the ODE cannot do. Near the ends gamma'
grows without bound, and pairs z, -z cancel its first order in the loss.

Null: the sign of the score's term turned round in the SDEs, z paired with a second draw in the place of -z.
"""

import torch
from torch import Tensor

from fokker.checks import Criterion, Outcome
from fokker.checks._mixture import mixture
from fokker.interpolants import Bridge, BridgeField, ExactField, Interpolation, couple
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.measure import EnergyDistance
from fokker.process import Time
from fokker.train.interpolating import Interpolating

EXPECT = (
    "six runs (both directions, eps 0, 0.5, 2) end within 3e-3 of the far law by energy distance, with the laws > 1.5 apart; "
    "with the velocity 15 % off and the score exact the SDE of eps 2 ends at <= 0.4 x the ODE's distance; the antithetic loss "
    "has <= 0.5 x the variance of two independent draws at t = 1e-3"
)
DIM, SAMPLES, STEPS, DRAWS = 2, 3000, 100, 20_000
PATH = Interpolation()


class Altered(BridgeField):
    """A field with its velocity scaled and its eta turned round."""

    def __init__(self, inner: BridgeField, velocity: float = 1.0, eta: float = 1.0) -> None:
        super().__init__(inner.interpolation)
        self.inner, self.scales = inner, (velocity, eta)

    def fields(self, x: Tensor, t: Time, **cond: Tensor) -> tuple[Tensor, Tensor]:
        b, eta = self.inner.fields(x, t, **cond)
        return self.scales[0] * b, self.scales[1] * eta


def ends(seed: int) -> tuple[GaussianMixture, GaussianMixture]:
    """Two mixtures in general position, their centres 3 apart."""
    left, right = mixture(DIM, 3, 2 * seed), mixture(DIM, 4, 2 * seed + 1)
    away = torch.tensor([1.5, 0.0], dtype=torch.float64)
    eye = torch.eye(DIM, dtype=torch.float64)
    return left.affine(eye, -left.mean() - away), right.affine(eye, away - right.mean())


def variances(field: BridgeField, laws: tuple[GaussianMixture, GaussianMixture], seed: int, null: bool) -> tuple[float, float]:
    """The variance of the loss at t = 1e-3 for pairs z, -z and for pairs of independent draws."""
    x_0, x_1 = (law.sample(DRAWS, seed=seed + 300 + k) for k, law in enumerate(laws))
    z, other = (noise((DRAWS, DIM), seed, stream="check", index=5 + k, dtype=torch.float64) for k in (0, 1))
    t = torch.full((DRAWS,), 1e-3, dtype=torch.float64)
    how = Interpolating()

    def side(z: Tensor) -> Tensor:
        return how.one_side(field, {"x": x_0, "other": x_1, "z": z, "t": t}, 1.0, {})

    paired = side(z) + side(other if null else -z)
    return float(paired.var()), float((side(z) + side(other)).var())


def check(seed: int, null: bool = False) -> Outcome:
    laws = ends(seed)
    far = [law.sample(2 * SAMPLES, seed=seed + 100 + k) for k, law in enumerate(laws)]
    near = [law.sample(SAMPLES, seed=seed + 200 + k) for k, law in enumerate(laws)]
    exact = ExactField(couple(*laws), PATH)
    field = Altered(exact, eta=-1.0) if null else exact

    def arrived(field: BridgeField, eps: float, backward: bool) -> float:
        x = Bridge(STEPS, eps)(field, near[int(backward)], backward, seed=seed)
        return EnergyDistance(floor=False)(x, far[int(not backward)]).value

    between = EnergyDistance(floor=False)(near[0], far[1]).value
    runs = {f"{way}, eps {eps:g}": arrived(field, eps, way == "back") for way in ("there", "back") for eps in (0.0, 0.5, 2.0)}
    wrong = Altered(exact, 1.15, -1.0 if null else 1.0)
    ode, sde = arrived(wrong, 0.0, False), arrived(wrong, 2.0, False)
    antithetic, independent = variances(exact, laws, seed, null)
    return Outcome(
        measured={**runs, "velocity off, eps 2": sde, "variance of the loss, z and -z": antithetic},
        baseline={
            "distance of the two laws": between,
            "velocity off, ODE": ode,
            "variance of the loss, two draws": independent,
        },
        criteria=[
            Criterion("distance of the two laws", between, ">", 1.5),
            *(Criterion(name, abs(value), "<=", 3e-3) for name, value in runs.items()),
            Criterion("velocity off: SDE over ODE", sde / ode, "<=", 0.4),
            Criterion("variance, antithetic over independent", antithetic / independent, "<=", 0.5),
        ],
    )
