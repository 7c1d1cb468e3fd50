"""Imputation by replacement: exact where parts are independent, and known values are met to the bit."""

import torch
from laws_for_tests import F64

import fokker as fk
from fokker.restore.imputation import Imputation
from fokker.restore.operators import Mask

MASK = Mask(torch.tensor([1.0, 0.0, 1.0], dtype=F64))


def run(law, y, **options):
    x1 = fk.noise((len(y), 3), seed=2, dtype=F64)
    return fk.run(Imputation(law.denoiser(fk.VP()), MASK, y, **options), x1, solver="dpmpp-2m", steps=30, end=0, seed=1)


def test_independent_parts_are_sampled_exactly_and_known_ones_are_kept():
    law = fk.laws.GaussianMixture([1.0], [[0.5, -1.0, 2.0]], torch.diag(torch.tensor([0.3, 0.8, 0.1])))
    y = law.sample(2000, seed=3) * torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    found = run(law, y)
    assert found.nfe == 30 and torch.equal(found.x0[:, [0, 2]], y[:, [0, 2]])
    assert abs(float(found.x0[:, 1].mean()) + 1.0) < 0.08 and abs(float(found.x0[:, 1].var()) - 0.8) < 0.1


def test_a_dependent_part_follows_what_is_known():
    """Correlation 0.9: the free part is pulled to its conditional mean, though not all the way (1.8)."""
    covs = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    law = fk.laws.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], covs)
    y = torch.tensor([2.0, 0.0, 0.0], dtype=F64).expand(2000, 3).contiguous()
    mean = float(run(law, y).x0[:, 1].mean())
    assert 0.5 < mean < 1.7


def test_noisy_measurements_get_less_noise_on_top():
    law = fk.laws.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], torch.eye(3))
    y = fk.noise((4, 3), seed=7, dtype=F64)
    noisy = run(law, y, noise_std=0.5).x0
    assert bool(torch.isfinite(noisy).all()) and not torch.equal(noisy[:, 0], y[:, 0])
