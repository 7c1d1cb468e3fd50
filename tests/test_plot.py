"""Pictures hold the pixels they were given, charts name every curve, and wrong input is refused in a sentence."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fokker import plot
from fokker.errors import FokkerError
from fokker.keyed import noise, uniform
from fokker.pictures import MISSING, to_bytes


class NormalLaw:
    """A standard normal law in the plane."""

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.square().sum(dim=1) / 2 - math.log(2 * math.pi)


def tiles(picture: Image.Image, images: Tensor, scale: int, ncol: int, gap: int) -> list[tuple[int, int]]:
    """The corners at which the images are found in the picture; fails where they are not on one regular grid."""
    pixels = np.asarray(picture)
    blocks = to_bytes(images).numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = blocks.shape[1:3]
    first = blocks[0]
    for y in range(pixels.shape[0] - height + 1):
        for x in range(pixels.shape[1] - width + 1):
            if (pixels[y, x] == first[0, 0]).all() and (pixels[y : y + height, x : x + width] == first).all():
                step_y = next(
                    s
                    for s in range(height, pixels.shape[0])
                    if len(blocks) <= ncol or (pixels[y + s : y + s + height, x : x + width] == blocks[ncol]).all()
                )
                corners = [(y + i // ncol * step_y, x + i % ncol * (width + gap)) for i in range(len(blocks))]
                assert all((pixels[b : b + height, a : a + width] == t).all() for (b, a), t in zip(corners, blocks))
                return corners
    raise AssertionError("the first image is not in the picture")


def test_values_become_levels_and_missing_ones_are_seen() -> None:
    x = torch.tensor([[-1.0, 0.0, 1.0], [-7.0, 7.0, math.nan]]).reshape(1, 1, 2, 3)
    levels = to_bytes(x)[0]
    assert levels[:, :, 0].tolist() == [[0, 128, 255], [0, 255, MISSING[0]]]
    assert levels[1, 2].tolist() == list(MISSING)
    assert torch.equal(to_bytes(5 * x.nan_to_num(0), limits=(-5, 5)), to_bytes(x.nan_to_num(0)))
    with pytest.raises(FokkerError, match="1 or 3 channels"):
        to_bytes(torch.zeros(1, 2, 4, 4))


def test_image_grid_keeps_every_pixel_and_its_provenance(tmp_path: Path) -> None:
    x = uniform((6, 3, 5, 4), 0) * 2 - 1
    path = tmp_path / "made" / "grid.png"
    plot.image_grid(
        x, path, ncol=3, rows=["a", "b"], columns=["1", "2", "3"], heading="all", scale=3, text={"fokker": "seed 0"}
    )
    with Image.open(path) as picture:
        assert picture.text == {"fokker": "seed 0"}  # type: ignore[attr-defined]
        corners = tiles(picture.convert("RGB"), x, 3, 3, 2)
    assert len({y for y, _ in corners}) == 2 and corners[0][1] > 8  # room for the words of the rows
    plain = plot.image_grid(x, ncol=3, titles=[f"a very long title, number {i}" for i in range(6)], scale=3)
    tiles(plain, x, 3, 3, 2)
    assert plot.image_grid(x[:1]).size[0] > 80


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": ["a"], "ncol": 3}, "1 rows for 2 places"),
        ({"titles": ["a"]}, "1 titles for 6 places"),
        ({"columns": ["a", "b"], "ncol": 3}, "2 columns for 3 places"),
        ({"limits": (1.0, -1.0)}, "black below white"),
    ],
)
def test_image_grid_refuses_what_does_not_fit(options: dict[str, object], words: str, tmp_path: Path) -> None:
    x = torch.zeros(6, 1, 4, 4)
    with pytest.raises(FokkerError, match=words):
        plot.image_grid(x, **options)  # type: ignore[arg-type]
    with pytest.raises(FokkerError, match=r"end it in \.png"):
        plot.image_grid(x, tmp_path / "grid.jpg")
    with pytest.raises(FokkerError, match="at least one"):
        plot.image_grid(x[:0])


def test_before_after_shows_measurement_methods_truth_and_errors() -> None:
    truth = uniform((4, 1, 8, 8), 0) * 2 - 1
    good, bad = truth.clone(), truth.clone()
    bad[:, :, 2, 3] += 0.5
    small = torch.nn.functional.avg_pool2d(truth, 2)
    picture = plot.before_after(small, {"good": good, "bad": bad}, truth, captions=["a", "b", "c", "d"], scale=4)
    enlarged = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    corners = tiles(picture, torch.cat([enlarged, good, bad, truth]), 4, 4, 2)
    pixels = np.asarray(picture)
    step = corners[4][0] - corners[0][0]
    y, x = corners[12][0] + step, corners[12][1]
    assert (pixels[y : y + 32, x : x + 32] > 240).sum() > 32 * 32 * 2 - 1  # no error is nearly white, in every pixel
    assert np.unique(pixels[y : y + 32, x : x + 32].reshape(-1, 3), axis=0).shape[0] == 1
    y += step
    assert pixels[y + 2 * 4, x + 3 * 4].max() < 10 < 240 < pixels[y, x].max()  # and the largest is nearly black
    plot.before_after(torch.where(truth > 0, truth, math.nan), truth, truth)
    with pytest.raises(FokkerError, match="a size that divides"):
        plot.before_after(truth[..., :5, :5], good, truth)
    with pytest.raises(FokkerError, match="they must agree"):
        plot.before_after(small, small, truth)


def test_labels_are_spread_in_order_and_no_further_than_needed() -> None:
    wanted = [0.5, 0.1, 0.52, 0.51, 0.9]
    placed = plot.spread_apart(wanted, 0.05)
    order = sorted(range(5), key=lambda i: wanted[i])
    assert sorted(range(5), key=lambda i: placed[i]) == order
    assert min(np.diff(sorted(placed))) > 0.05 - 1e-12
    assert placed[1] == 0.1 and placed[4] == pytest.approx(0.9)
    assert placed[3] == pytest.approx(0.51)  # the middle of the three that meet


def test_error_curves_name_all_twenty_and_say_what_is_missing(tmp_path: Path) -> None:
    curves = {f"solver-{i}": [(k, (i + 1) * k ** -(1 + i / 10.0)) for k in (5, 10, 20, 50)] for i in range(20)}
    curves["solver-3"][0] = (5, math.inf)
    path = plot.error_curves(curves, tmp_path / "curves.svg", title="all", floor=1e-5)
    from xml.etree import ElementTree

    comments = path.read_text()
    assert ElementTree.parse(path) is not None
    assert all(f"<!-- {name} -->" in comments for name in curves) and "left out: solver-3 (1)" in comments
    looks = plot._looks()
    assert len({(colour, marker) for colour, marker, _ in looks}) == len(looks) == 56
    bars = {"a": [(5, 1.0, 0.8, 1.2), (10, 0.5, 0.4, 0.6)], "b": [(5, 2.0), (7, 1.0)]}
    assert plot.error_curves(bars, tmp_path / "bars.png", emphasise=["a"]).stat().st_size > 5000
    with pytest.raises(FokkerError, match="names among them"):
        plot.error_curves(bars, tmp_path / "bars.png", emphasise=["c"])
    with pytest.raises(FokkerError, match="nothing to draw"):
        plot.error_curves({"a": [(5, math.nan)]}, tmp_path / "bars.png")
    with pytest.raises(FokkerError, match="no known ending"):
        plot.error_curves(bars, tmp_path / "bars.gif")


def test_training_curve_and_scatter_are_written(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    seen = [128.0 * i for i in range(1, 200)]
    loss = [1 / i if i != 50 else math.nan for i in range(1, 200)]
    plot.training_curve(seen, loss, tmp_path / "loss.png", others={"held-out": [(1000, 0.2), (20000, 0.1)]})
    plot.training_curve(seen[:1], loss[:1], tmp_path / "one.png")
    assert plot._running_mean(np.arange(9.0), 3).tolist() == [0.5, 1, 2, 3, 4, 5, 6, 7, 7.5]
    points = noise((300, 2), 0)
    plot.scatter({"one": points, "two": points * 2}, tmp_path / "law.png", NormalLaw(), title="law")
    plot.scatter(points, tmp_path / "draws.png", noise((300, 2), 1))
    for name in ("loss", "one", "law", "draws"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert dict(matplotlib.rcParams) == before  # the style stays inside
    with pytest.raises(FokkerError, match="one loss for each"):
        plot.training_curve(seen, loss[:3], tmp_path / "loss.png")
    with pytest.raises(FokkerError, match="points"):
        plot.scatter(noise((3, 4), 0), tmp_path / "law.png")


def test_importing_plots_and_metrics_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fokker.plot, fokker.measure; "
        "print([m for m in ('matplotlib', 'PIL', 'sklearn', 'torchmetrics', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
