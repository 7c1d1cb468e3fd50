"""Charts: pieces of a state and back, and denoisers of pieces on whole states; photographs of any size."""

import itertools
import math

import pytest
import torch
from laws_for_tests import F64
from torch import Tensor

import fokker as fk
from fokker.charts import Charted, Charts, Slices, Tiles
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.restore import photograph
from fokker.restore.operators import Mask

VP = fk.VP()


@pytest.mark.parametrize(
    ("charts", "shape"),
    [
        (Tiles(4), (2, 3, 9, 11)),
        (Tiles(4, overlap=0), (2, 1, 8, 12)),
        (Tiles(4, overlap=3), (1, 2, 4, 5)),
        (Tiles(3), (2, 1, 7)),
        (Tiles(3, overlap=1), (1, 1, 5, 4, 6)),
        (Slices(2), (2, 3, 5, 4, 6)),
        (Slices(4), (2, 1, 5, 4, 6)),
    ],
)
def test_gathered_and_scattered_is_as_before(charts, shape):
    """A partition of unity: every number is in a piece, and pieces that agree give it back; also in half precision."""
    x = fk.noise(shape, seed=1, dtype=F64)
    pieces = charts.gather(x)
    assert torch.allclose(charts.scatter(pieces, shape), x, atol=1e-14)
    assert len(pieces) % shape[0] == 0
    # the pieces of a sample follow one another, and one sample's do not depend on the others
    assert torch.equal(charts.gather(x[1:]), pieces[len(pieces) // shape[0] :])
    ones = charts.scatter(torch.ones_like(pieces).bfloat16(), shape)
    assert ones.dtype == torch.bfloat16 and torch.allclose(ones.double(), torch.ones(shape, dtype=F64))


def test_tiles_cover_with_the_overlap_asked_for_and_no_more_than_needed():
    assert Tiles(32).places(32) == [0] and Tiles(32, 0).places(64) == [0, 32]
    for side in range(32, 150):
        places = Tiles(32, 12).places(side)
        gaps = [b - a for a, b in itertools.pairwise(places)]
        assert places[0] == 0 and places[-1] == side - 32 and all(0 < g <= 20 for g in gaps)
        assert len(places) == math.ceil((side - 32) / 20) + 1


def test_overlapping_answers_meet_without_a_seam():
    """Tiles that disagree by a constant: the answer goes from one to the other in small steps."""
    x = torch.zeros(1, 1, 4, 28, dtype=F64)
    tiles = Tiles(4, overlap=3)
    many = tiles.gather(x)
    answer = tiles.scatter(torch.linspace(0, 1, len(many), dtype=F64).reshape(-1, 1, 1, 1).expand_as(many), x.shape)
    assert answer.diff(dim=3).abs().max() < 0.06 and bool((answer.diff(dim=3) >= 0).all())


class Pointwise(fk.Denoiser):
    """A belief that knows each number alone, its sample's condition and its time."""

    def x0(self, x_t: Tensor, t: fk.process.Time, shift: Tensor | None = None) -> Tensor:
        alpha, _, sigma = self.process.coefficients(t, x_t)
        mean = 0.0 if shift is None else shift.reshape(-1, *[1] * (x_t.ndim - 1))
        return mean + alpha / (alpha**2 + sigma**2) * (x_t - alpha * mean)


@pytest.mark.parametrize("batch", [1, 5, 256])
def test_a_pointwise_denoiser_is_unchanged_by_charts(batch):
    inner = Pointwise(VP)
    charted = Charted(inner, Tiles(4), batch)
    x, shift = fk.noise((3, 2, 7, 9), seed=1, dtype=F64), torch.tensor([0.5, -1.0, 2.0], dtype=F64)
    for t in (0.3, torch.tensor([0.1, 0.5, 0.9], dtype=F64)):
        assert torch.allclose(charted(x, t, shift=shift), inner(x, t, shift=shift), atol=1e-13)
    trace = fk.run(charted, x, solver="ddim", steps=3, shift=shift)
    assert trace.nfe == 3 * len(Tiles(4).corners((1, 2, 7, 9)))
    assert charted.conditions == inner.conditions


def test_slices_of_a_law_are_its_law():
    """Independent slices: the denoiser of one slice, lifted, is the denoiser of the volume; gradients go through."""
    law = GaussianMixture([0.5, 0.5], fk.noise((2, 1, 3, 4), seed=1, dtype=F64), 0.2)
    lifted = Charted(law.denoiser(VP), Slices(2))
    x = fk.noise((2, 1, 5, 3, 4), seed=2, dtype=F64).requires_grad_()
    belief = lifted(x, 0.4)
    assert torch.allclose(belief[1, :, 3], law.denoiser(VP)(x[1:2, :, 3], 0.4)[0], atol=1e-13)
    (slope,) = torch.autograd.grad(belief[0, 0, 2].sum(), x)
    assert bool(slope[0, 0, 2].any()) and not bool(slope[0, 0, [0, 1, 3, 4]].any()) and not bool(slope[1].any())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tiles(4, 4), "overlap=4"),
        (lambda: Tiles(0), "size=0"),
        (lambda: Tiles(8).gather(torch.ones(1, 1, 7, 9)), "shorter than a tile"),
        (lambda: Slices(1), "axis=1"),
        (lambda: Slices(4).gather(torch.ones(1, 1, 2, 2)), "no dimension 4"),
        (lambda: Charted(Pointwise(VP), Tiles(2), 0), "batch=0"),
        (lambda: Charted(Pointwise(VP), Tiles(2))(torch.ones(1, 1, 4, 4), torch.full((1, 1, 4), 0.5)), "one time per sample"),
        (lambda: Charts().gather(torch.ones(1)), "does not define gather"),
        (lambda: Charts().scatter(torch.ones(1), (1,)), "does not define scatter"),
    ],
)
def test_what_cannot_be_charted_is_said(make, message):
    with pytest.raises(FokkerError, match=message):
        make()


@pytest.mark.parametrize("size", [(4, 4), (9, 13), (3, 10)])
def test_a_picture_of_any_size_is_restored_and_its_known_pixels_kept_to_the_bit(size):
    inner, shape = Pointwise(VP), (2, *size)
    operator = Mask(0.5, shape, seed=3)
    x = fk.noise((1, *shape), seed=2)
    y = operator(x)
    plan = fk.solve.get("renoise", eta=1.0).plan(VP, fk.grids.get("uniform")(4, end=0))
    trace = photograph.restore(inner, operator, y, shape, fk.restore.DDNM, plan, photograph.Tiling(size, 4, 2), seed=1)
    known = operator.mask.expand(1, *shape) > 0
    assert trace.x0.shape == x.shape and torch.equal(trace.x0[known], y[known])
    again = photograph.restore(inner, operator, y, shape, fk.restore.DDNM, plan, photograph.Tiling(size, 4, 2), seed=1, batch=1)
    assert torch.allclose(again.x0, trace.x0, atol=1e-6)
    with pytest.raises(FokkerError, match="restores by itself"):
        photograph.restore(Pointwise(fk.anchored.MeanReverting()), operator, y, shape, fk.restore.DDNM, plan,
                           photograph.Tiling(size, 4, 2))  # fmt: skip
    with pytest.raises(FokkerError, match="has no anchor"):
        photograph.along(inner, y, plan, photograph.Tiling(size, 4, 2))


class Beside(fk.Denoiser):
    """A belief that knows each number and that of the observation, and the largest observed one of what it is asked about."""

    def x0(self, x_t: Tensor, t: fk.process.Time, y: Tensor) -> Tensor:
        alpha, beta, sigma = self.process.coefficients(t, x_t)
        return 0.3 * y + 0.1 * y.amax((1, 2, 3), True) + alpha / (alpha**2 + sigma**2) * (x_t - beta * y)


@pytest.mark.parametrize("size", [(4, 4), (9, 13), (3, 10)])
@pytest.mark.parametrize("process", [fk.ResidualShift(), fk.anchored.MeanReverting()])
def test_an_anchored_denoiser_of_tiles_sees_its_own_part_of_the_observation(process, size):
    plan = fk.solve.get("ddim").plan(process, fk.grids.get("logsnr")(4, end=0))
    tiling = photograph.Tiling(size, 4, 2)
    # one number everywhere, which is its own largest: tiles and whole are the same law, whatever is continued at the borders
    y = torch.full((1, 2, *size), -0.7)
    begin = process.start(fk.noise((1, 2, *tiling.canvas), seed=1), torch.full((1, 2, *tiling.canvas), -0.7))
    whole = fk.sample(Beside(process), begin, plan, y=torch.full((1, 2, *tiling.canvas), -0.7))
    found = photograph.along(Beside(process), y, plan, tiling, seed=1, batch=2).x0
    assert found.shape == y.shape and torch.allclose(found, whole[..., : size[0], : size[1]], atol=1e-5)
    # a bright corner is seen by the tiles that hold it alone
    if size == (9, 13):
        y[..., 0, 0] = 5.0
        change = photograph.along(Beside(process), y, plan, tiling, seed=1).x0 - found
        assert bool((change[..., :2, :2].abs() > 0.1).all()) and not bool(change[..., 4:, 4:].any())
