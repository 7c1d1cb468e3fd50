"""A data set beside its measurements: each item measured once, whoever asks, and restorers trained from a recipe."""

import pytest
import torch

import fokker as fk
from fokker.data import toy
from fokker.data.degraded import Degraded, degraded
from fokker.errors import FokkerError
from fokker.restore import Downsample
from fokker.train import load_recipe, train

RECIPE = """
data: {{source: toy:digits, degrade: {{operator: downsample, factor: 2, noise_std: 0.05}}}}
net: {{kind: unet, width: 16, mults: [1, 2], blocks: 1, heads: 2}}
process: {{process: {process}}}
conditions: [y]
out: {out}
samples: 4096
batch: 64
rate: {{peak: 3.0e-3, warmup: 256}}
log: {{every: 2048}}
checkpoint: {{every: 4096}}
cpu: true
"""


def test_items_are_measured_once_and_by_their_own_noise():
    plain = toy("digits", split="test")
    measured = Degraded(plain, Downsample(2), noise_std=0.1)
    one, many = measured.batch([5]), measured.batch([3, 5])
    assert torch.equal(one["y"][0], many["y"][1]) and torch.equal(one["x"][0], plain.batch([5])["x"][0])
    assert not torch.equal(many["y"][0], many["y"][1]) and measured.conditions["y"].shape == plain.shape
    quiet = Degraded(plain, Downsample(2))
    residual = measured.batch(range(200))["y"] - quiet.batch(range(200))["y"]
    # pinv of a mean of 4 repeats it: the noise keeps its deviation
    assert residual.std() == pytest.approx(0.1, rel=0.05)
    assert len({measured.fingerprint, quiet.fingerprint, plain.fingerprint}) == 3
    for wrong in ({}, {"operator": "downsmaple"}, {"operator": "downsample", "factor": 2, "noise_std": -1}):
        with pytest.raises(FokkerError):
            degraded(plain, wrong)


@pytest.mark.parametrize("process", ["ResidualShift", "MeanReverting", "ResidualDenoising"])
def test_a_recipe_trains_a_restorer_on_which_solvers_run_unchanged(tmp_path, process):
    """After 64 small updates the belief is already nearer to the picture than the measurement; four solvers take it home."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(process=process, out=tmp_path / "run"))
    model = train(load_recipe(path), quiet=True)
    test = Degraded(toy("digits", split="test"), Downsample(2), 0.05).batch(range(64))
    x, y = test["x"], test["y"]
    eps = fk.noise(tuple(x.shape))
    with torch.no_grad():
        belief = model.denoiser(model.process.add_noise(x, eps, 0.3, y), 0.3, y=y)
        assert (belief - x).square().mean() < 0.8 * (y - x).square().mean()
        for solver in ("ddim", "dpmpp-2m", "heun", "residual-ancestral"):
            out = fk.sample(model.denoiser, model.process.start(eps, y), solver=solver, steps=8, end=0, y=y)
            assert (out - x).square().mean() < 4 * (y - x).square().mean(), solver
