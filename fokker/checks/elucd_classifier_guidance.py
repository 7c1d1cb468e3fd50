"""Off-the-shelf classifier guidance against the exact gradient of log p_t(y | x_t).

An MLP is trained on 2,000 clean points. Asked at noised states it knows nothing; at the denoised estimate its ReLUs give a
gradient that is constant in pieces. Smoothed, and with the marginal's temperature halved, it must point where the exact
posterior does, and be calibrated there. Scene and classifier were fixed on other seeds than the judged ones.

Null: no smoothing and no split of temperatures.
"""

import functools

import torch
from torch import Tensor, nn

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.guide.classifier import ClassifierControl, calibration_curve
from fokker.keyed import noise, uniform
from fokker.laws import GaussianMixture

EXPECT = (
    "mean cosine with the exact gradient at t = 0.5 .. 0.9: full recipe >= 0.88, naive and unsmoothed <= 0.80; calibration "
    "error of the smoothed classifier on the denoised estimate <= 0.85 x the naive one's on x_t at t = 0.8"
)
DIM, CLASSES, MODES, TIMES = 16, 10, 3, (0.5, 0.6, 0.7, 0.8, 0.9)


def law(seed: int) -> GaussianMixture:
    centres = 0.5 * noise((CLASSES, 1, DIM), seed, stream="check", dtype=torch.float64)
    modes = centres + 0.5 * noise((CLASSES, MODES, DIM), seed, stream="check", index=1, dtype=torch.float64)
    labels = torch.arange(CLASSES).repeat_interleave(MODES)
    return GaussianMixture(torch.ones(CLASSES * MODES), modes.flatten(0, 1), 0.5**2, labels)


@functools.cache
def trained(seed: int) -> nn.Module:
    """An MLP of two hidden layers, trained on clean points."""
    data, labels = law(seed).sample_labelled(2000, seed)
    data = data.float()
    layers = [nn.Linear(a, b) for a, b in ((DIM, 128), (128, 128), (128, CLASSES))]
    for k, layer in enumerate(layers):
        scale = (2 / layer.in_features) ** 0.5
        with torch.no_grad():
            layer.weight.copy_(scale * noise(tuple(layer.weight.shape), seed, stream="check", index=3 + k))
            layer.bias.zero_()
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    picks = (uniform((600, 200), seed, stream="check", index=9) * len(data)).long()
    for pick in picks:
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(data[pick]), labels[pick]).backward()
        optimiser.step()
    return net


def check(seed: int, null: bool = False) -> Outcome:
    mixture, process, net = law(seed), fk.VP(), trained(seed)
    denoiser = mixture.denoiser(process)
    x_0, labels = mixture.sample_labelled(1000, seed + 50)

    def cosine(control: ClassifierControl) -> float:
        total = 0.0
        for k, t in enumerate(TIMES):
            eps = noise((len(x_0), DIM), seed, stream="check", index=20 + k, dtype=torch.float64)
            x_t = process.add_noise(x_0, eps, t)
            g: Tensor = control.gradient(x_t, t, denoiser(x_t, t), label=labels)
            exact = mixture.score(x_t, t, process, label=labels) - mixture.score(x_t, t, process)
            total += float(nn.functional.cosine_similarity(g, exact, dim=1).mean()) / len(TIMES)
        return total

    def error(target: str, smooth: float) -> float:
        return calibration_curve(net, denoiser, x_0, labels, (0.8,), target, smooth, seed=seed).integral

    unsmoothed = cosine(ClassifierControl(denoiser, net, tau_marginal=1.0, smooth=0.0))
    naive = cosine(ClassifierControl(denoiser, net, target="x_t", tau_marginal=1.0, smooth=0.0))
    full = unsmoothed if null else cosine(ClassifierControl(denoiser, net, tau_marginal=0.5, smooth=3.0))
    smoothed, on_noise = error("x0_hat", 0.0 if null else 3.0), error("x_t", 0.0)
    return Outcome(
        measured={"cosine": full, "calibration error": smoothed},
        baseline={"cosine, naive": naive, "cosine, unsmoothed": unsmoothed, "calibration error, naive": on_noise},
        criteria=[
            Criterion("cosine", full, ">=", 0.88),
            Criterion("cosine, naive", naive, "<=", 0.80),
            Criterion("cosine, unsmoothed", unsmoothed, "<=", 0.80),
            Criterion("calibration error over naive", smoothed / on_noise, "<=", 0.85),
        ],
    )
