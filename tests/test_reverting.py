"""The mean-reverting sampler against the paper's formulas, mu terms written out."""

import pytest
import torch
from mixtures import dense, normal

import fokker as fk
from fokker import grids

PROCESS = fk.MeanReverting()


@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_phi_form_is_the_published_update(prediction: str) -> None:
    law, mu = dense(), 1.0 + normal(8, 2, seed=7)
    denoiser, grid = law.denoiser(PROCESS), grids.quadratic(6, end=0.02)
    x1 = PROCESS.start(normal(8, 2, seed=8), mu)
    ours = fk.sample(denoiser, x1, solver=fk.MRS(prediction=prediction, phi_form=True), grid=grid, y=mu)
    t = grid.times(PROCESS)
    a, s = PROCESS.alpha(t), PROCESS.sigma(t)
    lam, x, old, h_old = torch.log(a / s), x1, None, None
    for i in range(6):
        h, D = lam[i + 1] - lam[i], denoiser(x, t[i], y=mu)
        P = D if prediction == "x0" else (x - a[i] * D - (1 - a[i]) * mu) / s[i]
        slope = torch.zeros_like(P) if old is None else (P - old) * h / h_old
        if prediction == "x0":
            ratio = s[i + 1] / s[i]
            rest = mu * (1 - ratio + ratio * a[i] - a[i + 1])
            gain = torch.expm1(-h)
            x = ratio * x + rest - a[i + 1] * (gain * P - (gain / h + 1) * slope)
        else:
            ratio, gain = a[i + 1] / a[i], torch.expm1(h)
            x = ratio * x + mu * (1 - ratio) - s[i + 1] * (gain * P + (gain / h - 1) * slope)
        old, h_old = P, h
    assert float((x - ours).abs().max()) < 1e-11


def test_impossible_options_are_refused() -> None:
    for options in ({"order": 3}, {"prediction": "v"}, {"sde": True, "phi_form": True}):
        with pytest.raises(fk.FokkerError, match=r"is not accepted|the SDE form"):
            fk.MRS(**options)
