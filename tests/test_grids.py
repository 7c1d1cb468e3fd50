"""Grids decrease strictly from their start to their end, in the spacing they say, or say why not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws_for_tests import F64, GRIDS, PROCESSES

import fokker as fk
from fokker.errors import FokkerError
from fokker.grids import FAINTEST, Karras, LogSNR, Quadratic, Shifted, Times, Uniform, VPTime, reversed_times

EVERY = [(g, p) for g in GRIDS for p in PROCESSES]


@pytest.mark.parametrize(("grid", "process"), EVERY)
@settings(max_examples=15)
@given(steps=st.integers(2, 60), start=st.floats(0.3, 1.0), below=st.floats(0.02, 0.9))
def test_times_decrease_strictly_between_the_ends(grid, process, steps, start, below):
    process, make = PROCESSES[process], fk.grids.get(grid)
    end = max(start * below, process.end)
    if not (process.logsnr(start) < process.logsnr(end) - 1e-6 and process.logsnr(end) > FAINTEST):
        return
    t = make(steps, start=start, end=end).times(process)
    assert t.dtype == F64 and len(t) == steps + 1
    assert t[0] == start and t[-1] == end
    assert (t.diff() < 0).all()


@pytest.mark.parametrize(("grid", "process"), EVERY)
def test_end_zero_replaces_the_last_stretch(grid, process):
    """The number of steps stays the one asked for; the node before x_0 is the process's own end."""
    process, make = PROCESSES[process], fk.grids.get(grid)
    t = make(6, end=0).times(process)
    assert len(t) == 7 and t[-1] == 0 and t[-2] == process.end
    assert torch.equal(t[:-1], make(5).times(process))
    assert make(1, end=0).times(process).tolist() == [1.0, 0.0]
    assert make(6, end=0).to_data and not make(6).to_data


def test_spacings():
    """Each grid is even in its own variable."""
    edm, vp = fk.EDM(), fk.VP()

    def even(v: torch.Tensor) -> bool:
        return torch.allclose(v.diff(), v.diff()[:1].expand(len(v) - 1), rtol=1e-7)

    assert even(Uniform(9).times(vp))
    assert even(Quadratic(9, power=3.0).times(vp) ** (1 / 3))
    assert even(LogSNR(9).times(vp).apply_(lambda t: vp.logsnr(t).item()))
    assert even(edm.sigma(Karras(9).times(edm)) ** (1 / 7))
    assert even(edm.sigma(Karras(9, rho=3.0).times(edm)) ** (1 / 3))
    assert even(vp.time(edm.logsnr(VPTime(9).times(edm))) ** 0.5)
    # the published numbers of EDM: sigma_max, ..., sigma_min in 18 steps
    sigma = edm.sigma(Karras(17).times(edm))
    expected = (80 ** (1 / 7) + torch.arange(18, dtype=F64) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(sigma, expected, rtol=1e-9)


def test_a_shift_multiplies_the_noise_level():
    flow = fk.Flow()
    even, moved = (Shifted(8, start=0.9, end=0.1, shift=s).times(flow) for s in (1.0, 3.0))
    assert torch.allclose(even, Uniform(8, start=0.9, end=0.1).times(flow), rtol=1e-12)
    odds = moved / (1 - moved) / 3
    assert torch.allclose((odds / (1 + odds)).diff(), (odds / (1 + odds)).diff()[:1].expand(8), rtol=1e-9)
    # SD3's 28 steps: the times 1, 1 - 1/28, ... shifted by 3, and x_0
    u = torch.arange(28, 0, -1, dtype=F64) / 28
    times = Shifted(28, end=0, shift=3.0).times(flow)
    assert times[0] == 1.0 and times[-1] == 0 and (times[1] - 3 * u[1] / (1 + 2 * u[1])).abs() < 1e-3
    with pytest.raises(FokkerError, match="shift=0"):
        Shifted(4, shift=0)


@pytest.mark.parametrize("grid", ["logsnr", "karras", "vp-time"])
def test_grids_in_noise_do_not_dwell_where_nothing_is_seen(grid):
    """From no signal at all the first step goes to FAINTEST and on; none is spent below it."""
    process = fk.Flow()
    t = fk.grids.get(grid)(8).times(process)
    assert t[0] == 1.0 and process.logsnr(t[1]) > FAINTEST


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0), "steps=0"),
        (lambda: Uniform(True), "steps=True"),
        (lambda: Uniform(2.0), "steps=2.0"),
        (lambda: Uniform(4, start=0.0), "start=0.0"),
        (lambda: Uniform(4, start=1.5), "start=1.5"),
        (lambda: Uniform(4, end=1.0), r"end=1.0.*\[0, start=1.0\)"),
        (lambda: Uniform(4, start=1e-3).times(fk.VP()), "at or below the process's end"),
        (lambda: Times([0.5]), "at least two times"),
        (lambda: Times([1.2, 0.5]), r"lie in \[0, 1\]"),
        (lambda: Times([0.9, 0.5, 0.5, 0.1]), r"times 1 and 2 of the grid do not decrease \(0.5 then 0.5\)"),
        (lambda: Times([[0.9, 0.9], [0.5, 0.95]]), "times 0 and 1"),
        (lambda: Times([0.1, 0.5]), "do not decrease"),
        (lambda: Times([[0.9, 0.9], [0.5, 0.4], [0.1, 0.4]]), r"times 1 and 2 .* for sample 1 \(0.4 then 0.4\)"),
        (lambda: Times([0.1, 0.5], rising=True, to_x0=True), "rising"),
        (lambda: fk.grids.get("karas"), "did you mean 'karras'"),
        (lambda: fk.grids.get("fokker.grids:check"), "is not a Grid"),
    ],
)
def test_what_is_no_grid_is_refused(make, message):
    with pytest.raises(FokkerError, match=message):
        make()


def test_times_take_nothing_they_would_ignore():
    with pytest.raises(TypeError):
        Times([0.9, 0.5], start=0.8)


def test_functions_make_the_classes():
    vp = fk.VP()
    for name, kind in (("uniform", Uniform), ("quadratic", Quadratic), ("logsnr", LogSNR), ("karras", Karras)):
        made = getattr(fk.grids, name)(5, end=0.1)
        assert isinstance(made, kind) and torch.equal(made.times(vp), kind(5, end=0.1).times(vp))


@pytest.mark.parametrize("grid", GRIDS)
def test_reversed_times_are_the_same_upwards(grid):
    process = fk.VP()
    down = fk.grids.get(grid)(6)
    up = reversed_times(down, process)
    assert torch.equal(up.times(process), down.times(process).flip(0))
    # x_0 itself is no place to start from
    up = reversed_times(fk.grids.get(grid)(6, end=0), process)
    assert up.times(process)[0] == process.end and len(up.times(process)) == 6


def test_config_says_how_to_make_it_again():
    import json

    for grid in (Karras(5, rho=3.0, end=0.1), Times([[0.9, 0.8], [0.2, 0.1]])):
        config = json.loads(json.dumps(grid.config))
        kind = getattr(fk.grids, config.pop("grid"))
        assert torch.equal(kind(**config).times(fk.VP()), grid.times(fk.VP()))
    assert math.isclose(Karras(5, rho=3.0).config["rho"], 3.0)
