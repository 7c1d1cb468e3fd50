"""PDE-Refiner on the Kuramoto-Sivashinsky equation: denoising passes train the waves that squared error does not see.

The paper: a surrogate trained by one-step squared error neglects waves of small amplitude; passes at falling noise levels
correct ever fainter ones. Both networks are the same and see as many pairs. One-step error by bands of wave numbers (error
power over true power) on trajectories of their own; the overall error and the time until a rollout's correlation falls below
0.8 are reported, not asserted: after seconds of training the long waves decide them, and there the passes do harm.

Changed after a miss: 700 updates of 32 pairs for each network, about 20 s, in place of 600 of 16, about 13 s, where 35 s each
were meant. No bound moved, and the network trained by squared error gains from it too.

Null: no refining pass, in training and in use.
"""

import functools

from torch import Tensor

from fokker.checks import Criterion, Outcome
from fokker.data.source import Arrays
from fokker.data.toys.pde import build
from fokker.forecast import PDERefiner, RefinerDenoiser, RefinerLoss, band_error, correlation_time
from fokker.forecast.refiner import scales
from fokker.net import UNet
from fokker.train import Trainer
from fokker.train.rate import Rate

EXPECT = (
    "KS on [0, 32), 64 points, step 0.5, 48 trajectories, 700 updates of 32 pairs, 3 passes, sigma_min 1e-3 of the scaled "
    "change: one-step error in wave numbers 16 to 20 <= 0.1 x that of the same network trained by squared error, at each seed"
)
BANDS = ((1, 4), (5, 8), (9, 12), (13, 15), (16, 20))
BATCH, UPDATES, PASSES, INTERVAL = 32, 700, 3, 0.5


def fields(n: int, seed: int, split: str, frames: int, pairs: bool) -> Arrays:
    """Trajectories of the equation, or their successive snapshots."""
    return build(n, seed, split, "ks", 64, frames, INTERVAL, length=32.0, warmup=25.0, pairs=pairs)


@functools.cache
def trained(seed: int, passes: int) -> PDERefiner:
    """A surrogate with so many passes, trained from the seed."""
    pairs = fields(48, seed, "train", 64, True)
    data = pairs.batch(range(len(pairs)))
    std, scale = scales(data["x"], data["previous"])
    net = UNet(dim=1, width=32, mults=(1, 2), blocks=1, mid_attention=False, image_channels=1, periodic=True, seed=seed)
    denoiser = RefinerDenoiser(net, 1e-3, "v")
    trainer = Trainer(
        denoiser,
        pairs,
        RefinerLoss(passes, std, scale),
        samples=BATCH * UPDATES,
        batch=BATCH,
        rate=Rate(peak=3e-3, warmup=30 * BATCH),
        seed=seed,
        conditions=("previous",),
        cpu=True,
        quiet=True,
    )
    trainer.run()
    denoiser.load_state_dict(trainer.averaged())
    return PDERefiner(denoiser.eval(), passes, std, scale)


def judged(refiner: PDERefiner, truth: Tensor, seed: int) -> tuple[Tensor, float, float]:
    """One-step errors by band, their mean square, and the mean correlation time of rollouts."""
    start, end = truth[:, :-1].flatten(0, 1), truth[:, 1:].flatten(0, 1)
    one = refiner.step(start, seed)
    lasting = correlation_time(refiner.rollout(truth[:, 0], truth.shape[1] - 1, seed), truth, INTERVAL)
    return band_error(one, end, BANDS), float((one - end).square().mean()), float(lasting.mean())


def check(seed: int, null: bool = False) -> Outcome:
    truth = fields(8, seed, "test", 121, False).batch(range(8))["x"]
    truth = truth[:, 0, :, None]
    plain, refiner = trained(seed, 0), trained(seed, 0 if null else PASSES)
    bands, error, lasting = judged(refiner, truth, seed)
    base_bands, base_error, base_lasting = judged(plain, truth, seed)
    horizon = INTERVAL * float(refiner.horizon(truth[:2, 0], 120, 4, seed=seed).double().mean())

    def named(values: Tensor) -> dict[str, float]:
        return {f"error of waves {a} to {b}": float(v) for (a, b), v in zip(BANDS, values, strict=True)}

    return Outcome(
        measured={
            **named(bands),
            "one-step mean square": error,
            "correlation time": lasting,
            "horizon by its own spread": horizon,
        },
        baseline={
            **named(base_bands),
            "one-step mean square, plain": base_error,
            "correlation time, plain": base_lasting,
        },
        criteria=[
            Criterion("error of waves 16 to 20 over the plain network's", float(bands[-1] / base_bands[-1]), "<=", 0.1),
        ],
    )
