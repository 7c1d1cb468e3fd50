"""Classes from denoising errors against Bayes, features from taps against the modules themselves."""

import pytest
import torch

import fokker as fk
from fokker.errors import FokkerError
from fokker.net import UNet
from fokker.perceive import DiffusionClassifier, FeatureExtractor, sweep
from fokker.perceive.features import probe

F64 = torch.float64
LAW = fk.laws.GaussianMixture(
    [0.4, 0.3, 0.3], [[-1.0, 0.3, 0.0], [0.8, 0.6, 0.4], [0.2, -1.0, -0.5]], 0.4, labels=[0, 1, 2]
)
CLASSES = {"label": torch.arange(3)}
X = LAW.sample(60, seed=3)
TRUE = torch.stack([LAW.log_prob(X, label=k) for k in range(3)], 1)


@pytest.mark.parametrize("process", [fk.VP(), fk.Flow(), fk.EDM(sigma_min=0.01, sigma_max=50.0)], ids=lambda p: p.name)
def test_logits_are_log_likelihoods_up_to_a_constant(process):
    scores = DiffusionClassifier(LAW.denoiser(process), CLASSES, 1024)(X, seed=1)
    gap = (scores.logits - TRUE) - (scores.logits - TRUE).mean(1, keepdim=True)
    # the error of 1,024 paired draws; the truth differs between classes by about 4 nats
    assert float(gap.square().mean().sqrt()) < 0.10 * float((TRUE - TRUE.mean(1, keepdim=True)).square().mean().sqrt())
    assert float((scores.label == TRUE.argmax(1)).double().mean()) >= 0.95
    assert torch.allclose(scores.probabilities.sum(1), torch.ones(60, dtype=F64))


def test_shared_noise_is_worth_many_samples():
    def error(paired: bool) -> float:
        logits = DiffusionClassifier(LAW.denoiser(fk.VP()), CLASSES, 128, paired=paired)(X, seed=1).logits
        gap = (logits - TRUE) - (logits - TRUE).mean(1, keepdim=True)
        return float(gap.square().mean())

    assert error(False) > 3 * error(True)


def test_a_sample_is_classified_by_itself_and_calls_are_counted():
    classifier = DiffusionClassifier(LAW.denoiser(fk.VP()), CLASSES, 16, stages=((2, 4),))
    whole = classifier(X, seed=2)
    alone = classifier(X[5:6], seed=2, ids=[5])
    assert torch.equal(alone.logits, whole.logits[5:6])
    assert whole.nfe == 3 * 4 + 2 * 12
    assert bool((torch.isinf(whole.logits).sum(1) == 1).all())
    small = DiffusionClassifier(LAW.denoiser(fk.VP()), CLASSES, 16, stages=((2, 4),), batch=7)(X, seed=2)
    assert torch.allclose(small.logits, whole.logits)


def test_what_the_classifier_refuses():
    denoiser = LAW.denoiser(fk.VP())
    with pytest.raises(FokkerError, match="did you mean 'logsnr'"):
        DiffusionClassifier(denoiser, CLASSES, weighting="logsn")
    with pytest.raises(FokkerError, match="keeps no more candidates"):
        DiffusionClassifier(denoiser, CLASSES, 16, stages=((4, 4),))
    with pytest.raises(FokkerError, match="looks at more samples"):
        DiffusionClassifier(denoiser, CLASSES, 16, stages=((2, 16),))
    with pytest.raises(FokkerError, match="one row a candidate"):
        DiffusionClassifier(denoiser, {"label": torch.arange(3), "other": torch.arange(2)})
    with pytest.raises(FokkerError, match="plain process"):
        DiffusionClassifier(LAW.denoiser(fk.catalogue.resolve("process", "resshift")), CLASSES)(X)


def network() -> fk.NetworkDenoiser:
    net = UNet(channels=1, width=8, mults=(1, 2), blocks=1, heads=2, classes=2, seed=1)
    return fk.NetworkDenoiser(net, fk.VP())


def test_features_are_what_the_module_computes_at_the_noise_level():
    denoiser = network()
    x = fk.noise((3, 1, 8, 8), 1)
    alpha, _, sigma = denoiser.process.at(0.3)
    x_t = alpha * x + sigma * fk.noise((3, 1, 8, 8), 7, [4, 5, 6], "measure", 0)
    with fk.net.taps(denoiser.net, ["mid", "up.0"]) as seen:
        denoiser(x_t, 0.3)
    whole = FeatureExtractor(denoiser, ["mid", "up.0"], 0.3, pool=0)(x, 7, [4, 5, 6])
    assert torch.equal(whole, torch.cat([seen["mid"].flatten(1), seen["up.0"].flatten(1)], 1))
    pooled = FeatureExtractor(denoiser, ["mid"], 0.3, pool=1)(x, 7, [4, 5, 6])
    assert torch.allclose(pooled, seen["mid"].mean((2, 3)), atol=1e-6)
    chunked = FeatureExtractor(denoiser, ["mid"], 0.3, pool=1, chunk=2)(x, 7, [4, 5, 6])
    assert torch.allclose(chunked, pooled, atol=1e-6)
    one, two = (FeatureExtractor(denoiser, ["mid"], 0.3, draws=d)(x, 7) for d in (1, 2))
    assert one.shape == two.shape and not torch.allclose(one, two)
    with pytest.raises(FokkerError, match="at least one draw"):
        FeatureExtractor(denoiser, ["mid"], draws=0)
    with pytest.raises(FokkerError, match="unknown module"):
        FeatureExtractor(denoiser, ["middle"])(x)


def test_a_probe_finds_a_plane_and_a_sweep_reports_the_other_split():
    rows = fk.noise((300, 5), 2)
    label = (rows[:, 1] > 0).long() + 3
    fitted = probe(rows[:200], label[:200])
    assert float((fitted(rows[200:]) == label[200:]).double().mean()) > 0.93
    bright = (torch.arange(60) % 2).long()
    x = 0.3 * fk.noise((60, 1, 8, 8), 3) + bright[:, None, None, None]
    parts = [(x[a : a + 20], bright[a : a + 20]) for a in (0, 20, 40)]
    found = sweep(network(), ["down.0", "mid"], [0.05, 0.95], *parts, label=-1)
    assert found.test.shape == (2, 2) and found.accuracy > 0.9 and found.best[1] == 0.05
    assert "mid" in found.table()
