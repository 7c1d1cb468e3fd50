"""Rollover budget forcing against best-of-N at 200 evaluations, and the two paths of one flow against each other.

Theory: the SDE of a flow has the flow's marginal laws for every amount of noise, on any path that the same network is read on.
A path chosen step by step by the reward of its beliefs uses what it learnt; best-of-N starts anew each time. The released noise
3 t^2 and the published variance-preserving path are judged.

A flow trained on straight lines stands for the network (its exact denoiser); the reward is the projection on a fixed direction,
300 searches of 200 evaluations in 10 steps. Best-of-N is `NoiseSearch` with the ODE. Greedy choice (the whole quota of every
step spent, its best child taken) is reported too: it is better.

Why the search loses to best-of-N there: a linear reward of beliefs rises as often as it falls, so a step ends after about two
children and leaves its quota to the last one, where 3 t^2 has faded. With noise that lasts, g = 10 t, on a quarter circle
(found on seeds 10 to 12) the gain is there; it is reported, unjudged. Changed on seeds 10 to 14, with every bound as it was:
300 searches for 100, whose standard error decided; 400 steps for 100 where SDE and ODE are compared, for what steps leave is no
matter of the marginal laws; energy distances of parts of 500, which a few large numbers cannot decide.

Null: the verifier judges by numbers that have nothing to do with the sample.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.checks._mixture import mixture
from fokker.denoiser import Denoiser
from fokker.keyed import noise, uniform
from fokker.measure import EnergyDistance
from fokker.noise_search import NoiseSearch
from fokker.process import Interpolant
from fokker.rollover import RolloverBudgetForcing
from fokker.solve import Solver
from fokker.solve.flowsde import FlowSDE
from fokker.solve.onestep import DDIM
from fokker.verifier import Verifier

EXPECT = (
    "mean reward on the variance-preserving path >= best-of-N + 0.2 and by more than 3 standard errors, and not below that on "
    "straight lines; energy distance of SDE and ODE samples (400 steps) <= 3 deviations above that of two exact samples, on "
    "both"
)
DIM, STEPS, BUDGET, SEARCHES, SAMPLES = 8, 10, 200, 300, 2000
NOISE, LASTING = FlowSDE(), FlowSDE(10.0, 1.0)


def check(seed: int, null: bool = False) -> Outcome:
    law = mixture(DIM, 12, seed)
    direction = noise((1, DIM), seed, stream="check", index=5, dtype=torch.float64)[0]
    direction = direction / direction.norm()
    network = law.denoiser(fk.Flow())
    paths: dict[str, Denoiser] = {"variance-preserving": fk.OnProcess(network, fk.VP()), "straight": network}
    circle = fk.OnProcess(network, Interpolant())

    def reward(x: Tensor) -> Tensor:
        out: Tensor = (x * direction).sum(1)
        return out

    def blind(x: Tensor) -> Tensor:
        return uniform((len(x), 1), seed, None, "check", 6)[:, 0]

    verifier: Verifier = blind if null else reward
    # ten equal steps, the last to x_0 itself
    grid = fk.grids.Times(torch.linspace(1, 0, STEPS + 1, dtype=torch.float64), to_x0=True)

    def forced(denoiser: Denoiser, solver: Solver = NOISE, greedy: bool = False, n: int = SEARCHES) -> Tensor:
        search = RolloverBudgetForcing(denoiser, verifier, BUDGET, grid, solver, greedy=greedy, dtype=torch.float64)
        found = search.run((n, DIM), seed)
        assert found.nfe <= BUDGET
        return reward(found.x0)

    best_of = NoiseSearch(network, verifier, BUDGET, solver="ddim", grid=grid, dtype=torch.float64).run((SEARCHES, DIM), seed)
    ours = {name: forced(denoiser) for name, denoiser in paths.items()}
    plain = reward(best_of.x0)
    gain = ours["variance-preserving"] - plain
    error = float(gain.std()) / SEARCHES**0.5

    def energy(x: Tensor, y: Tensor) -> Tensor:
        """Energy distances of parts of 500, which a few large numbers cannot decide as they can that of one part."""
        parts = zip(x.split(500), y.split(500), strict=True)
        return torch.tensor([EnergyDistance(floor=False)(a, b).value for a, b in parts], dtype=torch.float64)

    def samples(denoiser: Denoiser, solver: Solver, index: int) -> Tensor:
        x1 = denoiser.process.start(noise((SAMPLES, DIM), seed, stream="check", index=index, dtype=torch.float64))
        plan = solver.plan(denoiser.process, fk.grids.get("uniform")(400, end=0))
        x0: Tensor = fk.sample(denoiser, x1, plan, seed=seed)
        return x0

    same = energy(law.sample(20_000, seed), law.sample(20_000, seed + 1))
    apart = {
        name: energy(samples(denoiser, NOISE, 10), samples(denoiser, DDIM(), 11)) for name, denoiser in paths.items()
    }
    off = {name: float((d.mean() - same.mean()) / (same.std() / len(d) ** 0.5)) for name, d in apart.items()}
    return Outcome(
        measured={
            **{f"reward, {name} path": float(r.mean()) for name, r in ours.items()},
            **{f"energy distance of SDE and ODE, {name} path": float(d.mean()) for name, d in apart.items()},
        },
        baseline={
            "reward of best-of-N": float(plain.mean()),
            "reward of one sample": float(law.mean() @ direction),
            "reward with noise 10 t on a quarter circle": float(forced(circle, LASTING).mean()),
            "the same, greedy choice": float(forced(circle, LASTING, greedy=True, n=50).mean()),
            "reward, greedy choice": float(forced(paths["variance-preserving"], greedy=True, n=50).mean()),
            "standard error of the gain": error,
            "energy distance of two exact samples, mean": float(same.mean()),
            "energy distance of two exact samples, deviation": float(same.std()),
        },
        criteria=[
            Criterion("gain over best-of-N", float(gain.mean()), ">=", 0.2),
            Criterion("gain over best-of-N, standard errors", float(gain.mean()) / error, ">", 3.0),
            Criterion(
                "variance-preserving over straight",
                float((ours["variance-preserving"] - ours["straight"]).mean()),
                ">=",
                0.0,
            ),
            *(Criterion(f"SDE against ODE, deviations, {name}", value, "<=", 3.0) for name, value in off.items()),
        ],
    )
