"""Metrics against closed forms on exact laws, their errors against the spread over repeats, and their refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fokker import measure
from fokker.errors import FokkerError
from fokker.keyed import noise, uniform
from fokker.measure.features import digest
from fokker.measure.metric import Metric, SetMetric
from fokker.measure.sliced import directions
from fokker.measure.value import Value


def gaussian(n: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Draws of N(shift, diag(scale * linspace(1, 0.3))^2)."""
    return shift + scale * noise((n, dim), seed, dtype=torch.float64) * torch.linspace(1, 0.3, dim, dtype=torch.float64)


class NormalLaw:
    """The least that a law must have to be a reference: keyed draws and a density."""

    def sample(self, n: int, seed: int = 0) -> Tensor:
        return noise((n, 3), seed, stream="law", dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.square().sum(dim=1) / 2 - 1.5 * math.log(2 * math.pi)


SETS: list[SetMetric] = [
    measure.Frechet(),
    measure.KID(),
    measure.MMD(),
    measure.EnergyDistance(),
    measure.SlicedWasserstein(projections=32),
    measure.SlicedWasserstein(projections=32, order=1),
    measure.Precision(),
    measure.Recall(),
    measure.Density(),
    measure.Coverage(),
]


def quick(metric: SetMetric) -> SetMetric:
    """The same metric without a floor."""
    return replace(metric, floor=False)


# Values


def sample_value(**change: object) -> Value:
    fields: dict[str, object] = {
        "value": 0.4234,
        "name": "frechet",
        "n": 1797,
        "features": "pixels",
        "error": 0.031,
        "floor": 0.4012,
        "settings": {"features": "pixels", "reference": "abc", "n": 1797},
    }
    return Value(**fields | change)  # type: ignore[arg-type]


def test_a_value_prints_everything_that_it_depends_on() -> None:
    assert str(sample_value()) == "0.42 +- 0.03 (floor 0.40, n=1797, features=pixels, lower is better)"
    assert str(sample_value(floor_n=898)).startswith("0.42 +- 0.03 (floor 0.40 at n=898, n=1797")
    psnr = Value(23.456, "psnr", 64, "higher", "dB", error=0.123)
    assert str(psnr) == "23.46 +- 0.12 dB (n=64, higher is better)"
    assert str(Value(1234.5, "x", 3, error=210.0)).startswith("1234 +- 210")
    assert str(Value(3.21e-9, "x", 3, error=4e-11)).startswith("3.21e-09 +- 4.0e-11")
    assert str(Value(1.25, "x", 3)) == "1.25 (n=3, lower is better)"


def test_values_of_different_settings_refuse_to_be_compared_and_name_the_difference() -> None:
    a, b = sample_value(), sample_value(value=0.2, settings={"features": "pixels", "reference": "abc", "n": 50000})
    with pytest.raises(FokkerError, match="n is 1797 in one and 50000 in the other"):
        assert a < b
    with pytest.raises(FokkerError, match="n is 1797"):
        a.ratio(b)
    with pytest.raises(FokkerError, match="one is frechet, the other kid"):
        assert a > sample_value(name="kid")
    same = sample_value(value=0.2)
    assert same < a and a > same and a >= same and same <= a and same.beats(a)
    assert a.ratio(same) == pytest.approx(2.117)
    assert a <= 0.5 and a.digest == same.digest != b.digest
    assert a.over_floor == pytest.approx(0.4234 / 0.4012)
    with pytest.raises(FokkerError, match="without a floor"):
        assert Value(1.0, "x", 3).over_floor


def test_values_survive_json_and_notice_alteration() -> None:
    for value in (sample_value(), sample_value(value=math.inf, error=None, floor=None)):
        record = json.loads(json.dumps(value.json(), allow_nan=False))
        assert Value.from_json(record) == value
    record = sample_value().json()
    with pytest.raises(FokkerError, match="altered"):
        Value.from_json(record | {"settings": {"n": 50000}})
    with pytest.raises(FokkerError, match="has no 'name'"):
        Value.from_json({k: v for k, v in record.items() if k != "name"})


# Distances of sets


def test_frechet_distance_of_gaussians_has_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    m1, m2, s1, s2 = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    s1[0] = s2[1] = 0  # singular in different directions
    c1, c2 = basis @ torch.diag(s1**2) @ basis.T, basis @ torch.diag(s2**2) @ basis.T
    exact = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert measure.frechet_distance(m1, c1, m2, c2) == pytest.approx(exact, rel=1e-12)
    assert measure.frechet_distance(m1, c1, m1, c1) < 1e-13

    # covariances that do not commute: tr (C1 C2)^(1/2) from the eigenvalues of the unsymmetric product
    a, b = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    c1, c2 = a @ a.T, b @ b.T
    overlap = float(torch.linalg.eigvals(c1 @ c2).real.sqrt().sum())
    zero = torch.zeros(5, dtype=torch.float64)
    exact = float(c1.trace() + c2.trace()) - 2 * overlap
    assert measure.frechet_distance(zero, c1, zero, c2) == pytest.approx(exact, rel=1e-10)
    with pytest.raises(FokkerError, match="do not fit"):
        measure.frechet_distance(m1, c1, m2, c2)


def test_frechet_of_samples_is_the_distance_of_their_moments() -> None:
    x, y = gaussian(50, 4, 0), gaussian(70, 4, 1, 0.5)
    exact = measure.frechet_distance(x.mean(dim=0), x.T.cov(), y.mean(dim=0), y.T.cov())
    assert measure.Frechet(floor=False)(x, y).value == pytest.approx(exact, rel=1e-10)
    few = gaussian(5, 12, 2)  # fewer items than dimensions
    assert math.isfinite(measure.Frechet(floor=False)(few, gaussian(5, 12, 3)).value)


@pytest.mark.parametrize("sizes", [(300, 75), (75, 300)], ids=str)
@pytest.mark.parametrize("metric", SETS, ids=lambda m: f"{m.name}{getattr(m, 'order', '')}")
def test_the_error_is_the_spread_over_repeats(metric: SetMetric, sizes: tuple[int, int]) -> None:
    """The ratio of the mean error to the spread over r repeats scatters by 1 / sqrt(2 r); the estimators add 15 %."""
    repeats = 60
    n, m = sizes
    values = [quick(metric)(gaussian(n, 3, 100 + r, 0.4, 1.2), gaussian(m, 3, 900 + r)) for r in range(repeats)]
    spread = float(torch.tensor([v.value for v in values], dtype=torch.float64).std())
    error = sum(v.error or 0.0 for v in values) / repeats
    assert abs(error / spread - 1) < 0.15 + 3 / math.sqrt(2 * repeats)


@pytest.mark.parametrize("metric", SETS[:6], ids=lambda m: f"{m.name}{getattr(m, 'order', '')}")
def test_at_the_floor_the_error_is_at_most_sqrt_2_too_large(metric: SetMetric) -> None:
    repeats = 60
    values = [quick(metric)(gaussian(200, 6, 100 + r), gaussian(200, 6, 900 + r)) for r in range(repeats)]
    spread = float(torch.tensor([v.value for v in values], dtype=torch.float64).std())
    error = sum(v.error or 0.0 for v in values) / repeats
    noise_of_ratio = 3 / math.sqrt(2 * repeats)
    assert 1 - noise_of_ratio < error / spread < math.sqrt(2) * (1.15 + noise_of_ratio)


@pytest.mark.parametrize("metric", SETS[1:4], ids=lambda m: m.name)
def test_kernel_distances_are_unbiased_at_small_n(metric: SetMetric) -> None:
    values = torch.tensor(
        [quick(metric)(gaussian(10, 3, 100 + r), gaussian(12, 3, 9000 + r)).value for r in range(300)]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(300)


def test_kernel_distances_equal_their_definition() -> None:
    x, y = gaussian(7, 3, 0), gaussian(9, 3, 1, 0.3)

    def mean_kernel(a: Tensor, b: Tensor, kernel: object) -> float:
        terms = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]  # type: ignore[operator]
        return float(sum(terms)) / len(terms)

    for metric, kernel in (
        (measure.KID(floor=False), lambda p, q: (p @ q / 3 + 1) ** 3),
        (measure.MMD(floor=False, bandwidth=0.7), lambda p, q: torch.exp(-(p - q).square().sum() / (2 * 0.49))),
        (measure.EnergyDistance(floor=False), lambda p, q: -(p - q).norm()),
    ):
        exact = mean_kernel(x, x, kernel) + mean_kernel(y, y, kernel) - 2 * mean_kernel(x, y, kernel)
        assert metric(x, y).value == pytest.approx(exact, rel=1e-9)
    with pytest.raises(FokkerError, match="bandwidth"):
        measure.MMD(bandwidth=0.0)(x, y)


def test_sliced_wasserstein_of_gaussians_has_its_closed_form() -> None:
    """Along each direction two Gaussians are (mean difference)^2 + (difference of standard deviations)^2 apart."""
    n, dim, shift, scale = 4000, 5, 0.5, 1.4
    value = measure.SlicedWasserstein(floor=False)(gaussian(n, dim, 0, shift, scale), gaussian(n, dim, 1))
    axes = directions(128, dim)
    spread = (axes.square() @ torch.linspace(1, 0.3, dim, dtype=torch.float64).square()).sqrt()
    exact = math.sqrt(float(((shift * axes.sum(dim=1)) ** 2 + (scale - 1) ** 2 * spread.square()).mean()))
    assert value.error is not None and abs(value.value - exact) < 4 * value.error
    assert value.error < 0.03 * exact


def test_sliced_wasserstein_couples_unequal_numbers_exactly() -> None:
    x, y = gaussian(30, 1, 0), gaussian(20, 1, 1, 0.7)
    for order in (1, 2):
        repeated = (x.repeat_interleave(2, 0).sort(dim=0).values - y.repeat_interleave(3, 0).sort(dim=0).values).abs()
        exact = float((repeated**order).mean()) ** (1 / order)
        metric = measure.SlicedWasserstein(floor=False, projections=3, order=order)
        assert metric(x, y).value == pytest.approx(exact, rel=1e-10)
        assert metric(x, x).value == 0
    assert torch.equal(directions(64, 5), directions(128, 5)[:64])
    with pytest.raises(FokkerError, match="order 1 or 2"):
        measure.SlicedWasserstein(order=3)


def test_neighbour_metrics_know_equal_and_disjoint_laws() -> None:
    x, y = gaussian(800, 2, 0), gaussian(800, 2, 1)
    far = gaussian(800, 2, 0, shift=100.0)
    for metric, same, tolerance in (
        (measure.Precision(), 0.97, 0.03),
        (measure.Recall(), 0.97, 0.03),
        (measure.Density(), 1.0, 0.1),
        (measure.Coverage(), 1 - 0.5**3, 0.1),  # the binomial chance that one of the nearest three is a sample
    ):
        value = metric(x, y)
        assert abs(value.value - same) < tolerance and value.floor is not None and abs(value.floor - same) < tolerance
        assert metric(far, y).value == 0
    point = gaussian(800, 2, 2, scale=0.2)  # a narrow law: most of it is plausible, little of the data is covered
    assert measure.Precision()(point, y) > 0.95
    assert measure.Recall()(point, y) < 0.3
    with pytest.raises(FokkerError, match="k=9 neighbours among 5"):
        measure.Precision(k=9, floor=False)(x[:5], y[:5])


def test_memorised_tells_copies_from_draws() -> None:
    train, fresh, held_out = gaussian(600, 8, 0), gaussian(600, 8, 1), gaussian(600, 8, 2)
    copies = train[:300] + 0.001 * gaussian(300, 8, 3)
    assert measure.Memorised()(copies, train).value == 1
    distances = torch.cdist(fresh, train)
    nearest = distances.argmin(dim=1)
    others = torch.cdist(train, train) + torch.diag(torch.full((600,), math.inf, dtype=torch.float64)).nan_to_num(
        0, math.inf
    )
    exact = distances.min(dim=1).values < others.min(dim=1).values[nearest]
    assert torch.equal(measure.Memorised().each(fresh, train), exact)
    value = measure.Memorised()(fresh, train, held_out)
    assert value.floor is not None and value.error is not None
    assert abs(value.value - value.floor) < 4 * math.sqrt(2) * value.error
    assert measure.Memorised()(torch.cat([copies, fresh[:300]]), train) > value.value + 0.2
    with pytest.raises(FokkerError, match=r"train is .* in one"):
        assert measure.Memorised()(fresh, train) < measure.Memorised()(fresh, held_out)


# What all set metrics keep


@pytest.mark.parametrize("metric", SETS, ids=lambda m: f"{m.name}{getattr(m, 'order', '')}")
def test_set_metrics_depend_neither_on_chunks_nor_on_order(metric: SetMetric) -> None:
    x, y = gaussian(90, 4, 0, 0.3).reshape(90, 1, 2, 2), gaussian(80, 4, 1).reshape(80, 1, 2, 2)
    whole, split = (replace(metric, chunk=chunk)(x, y) for chunk in (1000, 7))
    assert whole == split
    turned = metric(x.flip(0), y)
    assert turned.value == pytest.approx(whole.value, rel=1e-9, abs=1e-12)
    assert turned.ratio(whole) == pytest.approx(1)
    assert metric(x, y) == metric(x, y)
    assert metric(x.float(), y.float()).value == pytest.approx(whole.value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", SETS, ids=lambda m: f"{m.name}{getattr(m, 'order', '')}")
def test_set_metrics_take_a_law_and_give_its_floor(metric: SetMetric) -> None:
    law = NormalLaw()
    value = metric(law.sample(200, seed=0), law)
    assert value.floor is not None and value.floor_n == 200
    gap = abs(value.value) - value.floor if metric.typical([-1.0, 1.0]) == 1 else abs(value.value - value.floor)
    assert gap < 4 * (value.error or 0.0)  # a true draw is at the floor, and is not the metric's own draw
    if metric.better == "lower":
        assert abs(value.value) > 0


def test_settings_hold_what_changes_the_number_and_nothing_else() -> None:
    x, y = gaussian(40, 3, 0), gaussian(40, 3, 1)
    base = measure.Frechet()(x, y)
    assert base.ratio(measure.Frechet(chunk=3, seed=5, splits=2)(x, y)) == 1
    with pytest.raises(FokkerError, match="reference is"):
        base.ratio(measure.Frechet()(x, y + 1))
    with pytest.raises(FokkerError, match="n is 40 in one and 30 in the other"):
        base.ratio(measure.Frechet()(x[:30], y))
    assert measure.KID()(x, y).ratio(measure.KID()(x[:30], y))  # unbiased: n is no setting
    doubled = measure.Features("doubled", "x2", lambda items: 2 * items)
    with pytest.raises(FokkerError, match="features is pixels in one and doubled in the other"):
        base.ratio(measure.Frechet(features=doubled)(x, y))
    assert measure.Frechet(features=doubled)(x, y).value == pytest.approx(4 * base.value)


def test_wrong_sets_are_refused_in_a_sentence() -> None:
    x, y = gaussian(40, 3, 0), gaussian(40, 3, 1)
    broken = x.clone()
    broken[3, 1] = math.nan
    for samples, reference, words in (
        (broken, y, "1 of 40 items are not finite"),
        (x, y[:, :2], "must agree"),
        (x[:1], y, "n of at least 2"),
        (x, y[:3], "floor needs two halves"),
    ):
        with pytest.raises(FokkerError, match=words):
            measure.Frechet()(samples, reference)
    for chunk in (0, -1):
        with pytest.raises(FokkerError, match="chunk"):
            measure.Frechet(chunk=chunk)(x, y)
    flat = measure.Features("mean", "m", lambda items: items.mean(dim=1))
    with pytest.raises(FokkerError, match="must give"):
        measure.Frechet(features=flat)(x, y)


# Images


def test_psnr_equals_its_definition_image_by_image() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    truth = uniform((5, 3, 12, 10), 0) * 2 - 1
    images = (truth + 0.1 * noise((5, 3, 12, 10), 1, dtype=torch.float64)).float()
    error = (images.double() - truth).square().mean(dim=(1, 2, 3))
    exact = 10 * torch.log10(4 / error)
    assert torch.allclose(measure.PSNR().each(images, truth), exact, rtol=1e-12)
    theirs = peak_signal_noise_ratio(images.double(), truth, data_range=2.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(theirs, exact, rtol=1e-6)  # torchmetrics takes the logarithm of the range in single precision
    value = measure.PSNR(chunk=2)(images, truth)
    assert value.value == pytest.approx(float(exact.mean())) and value.unit == "dB"
    assert value == measure.PSNR()(images, truth)
    assert measure.PSNR(data_range=1.0)(images, truth).value == pytest.approx(value.value - 20 * math.log10(2))
    assert measure.PSNR()(truth, truth).value == math.inf
    with pytest.raises(FokkerError, match="data_range is"):
        assert measure.PSNR(data_range=1.0)(images, truth) < value
    with pytest.raises(FokkerError, match="same shape"):
        measure.PSNR()(images[:2], truth)


def test_ssim_equals_an_independent_computation() -> None:
    truth = uniform((3, 2, 17, 14), 0) * 2 - 1
    images = 0.7 * truth + 0.2 * noise((3, 2, 17, 14), 1, dtype=torch.float64)
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(x: np.ndarray) -> np.ndarray:
        rows = np.stack([np.convolve(row, window, "valid") for row in x])
        return np.stack([np.convolve(column, window, "valid") for column in rows.T]).T

    def ssim(x: np.ndarray, y: np.ndarray) -> float:
        mx, my = smooth(x), smooth(y)
        vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        return float(score.mean())

    exact = [np.mean([ssim(a, b) for a, b in zip(x.numpy(), y.numpy())]) for x, y in zip(images, truth)]
    assert measure.SSIM().each(images, truth).tolist() == pytest.approx(exact, rel=1e-6)
    assert measure.SSIM(chunk=2)(images, truth).value == pytest.approx(float(np.mean(exact)), rel=1e-6)
    assert measure.SSIM()(truth, truth).value == pytest.approx(1)
    with pytest.raises(FokkerError, match="window of 11"):
        measure.SSIM()(truth[..., :8, :8], truth[..., :8, :8])
    assert measure.SSIM(sigma=0.5)(truth[..., :8, :8], truth[..., :8, :8]).value == pytest.approx(1)


# One number an item


def test_end_point_errors_have_their_definition_and_error() -> None:
    truth = gaussian(4000, 6, 0) + 3
    samples = truth + 0.01 * noise((4000, 6), 1, dtype=torch.float64)
    rms = measure.EndPointRMS()(samples, truth)
    assert rms.error is not None and abs(rms.value - 0.01) < 4 * rms.error
    assert rms.error == pytest.approx(0.01 / math.sqrt(2 * 4000 * 6), rel=0.1)  # the error of a standard deviation
    relative = measure.RelativeError()(samples, truth)
    ratios = (samples - truth).norm(dim=1) / truth.norm(dim=1)
    assert relative.value == pytest.approx(float(ratios.median()), rel=1e-3)
    repeats = torch.stack([ratios[i::40].median() for i in range(40)])  # medians of 100 scatter sqrt 40 times as much
    assert relative.error == pytest.approx(float(repeats.std()) / math.sqrt(40), rel=0.4)
    with pytest.raises(FokkerError, match="exactly 0"):
        measure.RelativeError()(samples, torch.zeros_like(truth))


def test_likelihoods_of_a_known_law() -> None:
    law = NormalLaw()
    x = law.sample(4000, seed=3)
    value = measure.NLL()(x, law.log_prob, law)
    entropy = 1.5 * math.log(2 * math.pi * math.e)
    assert value.error is not None and abs(value.value - entropy) < 4 * value.error and value.floor == value.value
    assert value == measure.NLL(chunk=7)(x, law, law)
    bits = measure.BitsPerDim(bin_width=2 / 256)(x, law)
    assert bits.value == pytest.approx(value.value / (3 * math.log(2)) + 7)
    with pytest.raises(FokkerError, match="must give"):
        measure.NLL()(x, lambda items: law.log_prob(items).sum())
    with pytest.raises(FokkerError, match="positive width"):
        measure.BitsPerDim(bin_width=0.0)


def test_class_accuracy_by_a_logistic_regression_of_real_digits() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.as_tensor(data.data / 8 - 1).reshape(-1, 1, 8, 8)
    labels = torch.as_tensor(data.target)
    classifier = measure.logistic_regression(images[:1200], labels[:1200], "logreg-train")
    value = measure.ClassAccuracy(classifier)(images[1200:], labels[1200:], real=(images[:1200], labels[:1200]))
    assert (
        0.88 < value.value < 1 and value.floor is not None and value.floor > 0.98 and value.features == "logreg-train"
    )
    assert measure.ClassAccuracy(classifier, chunk=11)(images[1200:], labels[1200:]).value == value.value
    assert measure.logistic_regression(images[:1200], labels[:1200], "logreg-train").digest == classifier.digest
    with pytest.raises(FokkerError, match="one label a sample"):
        measure.ClassAccuracy(classifier)(images, labels[:7])
    with pytest.raises(FokkerError, match="without gaps"):
        measure.logistic_regression(images[:50], labels[:50] * 2)
    two = labels < 2
    binary = measure.logistic_regression(images[two], labels[two])
    assert measure.ClassAccuracy(binary)(images[two], labels[two]) > 0.99


def test_total_variation_of_draws_is_at_its_exact_floor() -> None:
    p = torch.tensor([[0.5, 0.2, 0.1], [0.15, 0.05, 0.0]], dtype=torch.float64)
    edges = p.reshape(-1).cumsum(dim=0)[:-1]
    values = []
    for seed in range(200):
        states = torch.searchsorted(edges, uniform((1, 300), seed)[0])
        pairs = torch.stack([states // 3, states % 3], dim=1)
        values.append(measure.TotalVariation()(pairs, p))
    found = torch.tensor([v.value for v in values], dtype=torch.float64)
    floor = values[0].floor
    assert floor is not None and abs(float(found.mean()) - floor) < 4 * float(found.std()) / math.sqrt(200)
    point = torch.zeros(10, dtype=torch.int64)
    assert measure.TotalVariation()(point, torch.tensor([0.25, 0.75])).value == pytest.approx(0.75)
    for samples, law, words in (
        (point, torch.tensor([0.5, 0.6]), "sum to 1"),
        (point + 2, torch.tensor([0.5, 0.5]), "outside"),
        (point.float(), torch.tensor([0.5, 0.5]), "integer samples"),
    ):
        with pytest.raises(FokkerError, match=words):
            measure.TotalVariation()(samples, law)


def test_effective_sample_size() -> None:
    ess = measure.EffectiveSampleSize()
    assert ess(torch.zeros(50) - 1000).value == pytest.approx(50)
    assert ess(torch.tensor([0.0, -math.inf, -math.inf])).value == pytest.approx(1)
    assert ess(torch.tensor([math.log(3.0), 0.0])).value == pytest.approx(16 / 10)
    with pytest.raises(FokkerError, match="at least one"):
        ess(torch.full((3,), -math.inf))


# Comparisons


def test_compare_recovers_a_known_ratio_with_an_honest_interval() -> None:
    hits = 0
    for seed in range(100):
        level = noise((60, 1), seed, dtype=torch.float64)[:, 0].exp()  # hard items are hard for both
        a = 0.8 * level * (0.2 * noise((60, 1), seed + 1000, dtype=torch.float64)[:, 0]).exp()
        found = measure.compare(a, level, seed=seed, resamples=400)
        hits += found.ratio_low < 0.8 < found.ratio_high
        assert found.ratio_low < found.ratio < found.ratio_high
    assert 95 - 4 * math.sqrt(100 * 0.95 * 0.05) - 3 <= hits  # the percentile bootstrap loses about 2 % at n=60
    assert found.lower and found.wins > 0.7 and found.n == 60
    assert found == measure.compare(a, level, seed=seed, resamples=400)
    assert json.dumps(found.json()) and "n=60 pairs" in str(found)


def test_compare_takes_values_case_by_case_and_refuses_nonsense() -> None:
    cases = [sample_value(value=v, settings={"case": i}) for i, v in enumerate((1.0, 2.0, 4.0))]
    halved = [sample_value(value=v.value / 2, settings=v.settings) for v in cases]
    assert measure.compare(halved, cases).ratio == pytest.approx(0.5)
    with pytest.raises(FokkerError, match="case is"):
        measure.compare(halved[::-1], cases)
    zeros = torch.zeros(5)
    with pytest.raises(FokkerError, match="resolution"):
        measure.compare(zeros, zeros + 1)
    assert measure.compare(zeros, zeros + 1, resolution=1e-3).ratio == pytest.approx(1e-3)
    with pytest.raises(FokkerError, match="same items"):
        measure.compare(zeros + 1, torch.ones(4))
    with pytest.raises(FokkerError, match="not finite"):
        measure.compare(zeros + 1, zeros * math.nan)


# Names and features


def test_metrics_are_found_by_name_and_unknown_options_are_refused() -> None:
    assert measure.get("frechet", floor=False) == measure.Frechet(floor=False)
    with pytest.raises(FokkerError, match="did you mean 'frechet'"):
        measure.get("freched")
    with pytest.raises(FokkerError, match="did you mean 'projections'"):
        measure.get("sliced_wasserstein", projection=3)
    assert {"kid", "psnr", "memorised", "total_variation"} <= set(measure.names())
    for name in measure.names():
        assert issubclass(type(measure.get(name)), Metric)
        assert type(measure.get(name)).__doc__


def test_features_by_name_and_of_a_network() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    features = measure.Features.of(net, "tiny")
    x, y = gaussian(40, 4, 0).float(), gaussian(40, 4, 1).float()
    value = measure.Frechet(features)(x, y)
    assert value.features == "tiny" and value.settings["features_digest"] == features.digest
    with torch.no_grad():
        net[1].bias.add_(1)
    assert measure.Features.of(net, "tiny").digest != features.digest
    assert digest(x) == digest(x.double()) != digest(y)
    with pytest.raises(FokkerError, match="unknown features 'pixel'; did you mean 'pixels'"):
        measure.Frechet("pixel")(x, y)
