"""Dynamic thresholding against its definition, and behind guidance on an exact law."""

import pytest
import torch

import fokker as fk
from fokker.denoiser import as_denoiser
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG
from fokker.guide.threshold import DynamicThreshold


def thresholded(belief: torch.Tensor, **options: float) -> torch.Tensor:
    wrapper = DynamicThreshold(as_denoiser(lambda x, t: belief, fk.VP()), **options)
    return wrapper(torch.zeros_like(belief), 0.5)


def test_a_belief_inside_keeps_its_bits() -> None:
    inside = torch.linspace(-1, 1, 48).reshape(2, 3, 2, 4)
    assert torch.equal(thresholded(inside), inside)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_each_sample_is_scaled_by_its_own_quantile(quantile: float) -> None:
    belief = 3 * fk.noise((4, 3, 5, 7), seed=1, dtype=torch.float64)
    belief[0] = belief[0] / 20
    found = thresholded(belief, quantile=quantile)
    s = torch.quantile(belief.flatten(1).abs(), quantile, dim=1).clamp(min=1).reshape(4, 1, 1, 1)
    torch.testing.assert_close(found, belief.clamp(-s, s) / s, rtol=1e-12, atol=1e-14)
    assert float(found.abs().max()) <= 1 + 1e-15


def test_limit_is_the_range_of_the_data() -> None:
    belief = torch.tensor([[0.1, -4.0]], dtype=torch.float64)
    torch.testing.assert_close(thresholded(belief, quantile=1.0, limit=2.0), belief / 2)


def test_it_keeps_strong_guidance_within_the_data() -> None:
    means = torch.tensor([[-0.8, 0.8], [0.8, -0.8]], dtype=torch.float64)
    law = fk.laws.GaussianMixture([1.0, 1.0], means, 0.01, labels=[0, 1])
    guided = CFG(law.denoiser(fk.VP()), scale=12.0)
    x1, label = fk.noise((64, 2), seed=0, dtype=torch.float64), torch.arange(64) % 2
    loose = fk.sample(guided, x1, solver="ddim", steps=10, end=0, label=label)
    kept = fk.sample(DynamicThreshold(guided, quantile=1.0), x1, solver="ddim", steps=10, end=0, label=label)
    assert float(loose.abs().max()) > 1 >= float(kept.abs().max())
    assert bool((kept.sign() == means[label].sign()).all())


@pytest.mark.parametrize("options", [{"quantile": 0.0}, {"quantile": 1.1}, {"limit": 0.0}])
def test_senseless_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(FokkerError):
        thresholded(torch.zeros(1, 2), **options)
