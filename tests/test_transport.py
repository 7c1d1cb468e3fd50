"""Semi-discrete optimal transport: equal cells, the quantile map, and a start that steps finish."""

import pytest
import torch
from mixtures import normal

import fokker as fk
from fokker.solve.transport import OTStart, SemiDiscreteOT


def test_two_points_share_the_line_by_their_distance() -> None:
    # cells meet where y_0 p + h_0 = y_1 p + h_1; equal masses put that at p = 0, whatever the points
    points = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    found = SemiDiscreteOT.fit(points, batch=2000, updates=300)
    border = -(found.heights[1] - found.heights[0]) / 1.5
    assert abs(float(border)) < 0.05, "the density there is 0.4, so this is a mass of 0.02"
    assert torch.equal(found(torch.tensor([[-1.0], [1.0]])), points.float())


def test_cells_have_equal_mass_in_the_plane() -> None:
    points = normal(16, 2, seed=3) + torch.tensor([3.0, 0.0], dtype=torch.float64)
    found = SemiDiscreteOT.fit(points, seed=1, updates=300)
    share = torch.bincount(found.cell(normal(40000, 2, seed=9)), minlength=16) / 40000
    # the deviation of a share of 1/16 over 40000 draws is 0.0012
    assert float((share - 1 / 16).abs().max()) < 5 * 0.0012 + 0.005


def test_the_start_is_noised_data_at_its_time_and_keyed() -> None:
    law, process = fk.laws.ring(), fk.VP()
    data = law.sample(32, 0)
    start = OTStart(data, process, t=0.2, updates=60)
    z = fk.noise((5, 2), seed=2, dtype=torch.float64)
    assert torch.equal(start(z)[3:4], start(fk.noise((1, 2), seed=2, ids=[3], dtype=torch.float64)))
    assert bool((torch.cdist(start(z), start.map.points).amin(1) < 1e-6).all())
    x0 = fk.sample(law.denoiser(process), start(z), solver="ddim", steps=4, start=start.t, end=0)
    assert float(torch.cdist(x0, law.means).amin(1).max()) < 0.5
    with pytest.raises(fk.FokkerError, match="plain process"):
        OTStart(data, fk.MeanReverting())
