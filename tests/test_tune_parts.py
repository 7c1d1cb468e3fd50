"""What tuning is made of: trajectories, fitted tables, screened noises, schedules that evolve, and the time it keeps to."""

import importlib
import json

import pytest
import torch

import fokker as fk
from fokker import grids, solve
from fokker.errors import FokkerError
from fokker.plan import Plan
from fokker.solve import evolved
from fokker.solve.fitted import Trajectories, fit, regression, timings
from fokker.solve.pool import Pool
from fokker.solve.source import Source

RING = fk.laws.ring()
# the module, whose name is also the function's
TUNE = importlib.import_module("fokker.solve.tune")
PROCESSES = [fk.VP(), fk.EDM(), fk.Flow(), fk.VE()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_trajectories_are_those_of_the_exact_flow_at_every_time(process):
    law = fk.laws.GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], 0.2)
    x1 = process.start(fk.noise((32, 2), dtype=torch.float64))
    paths, x0 = Trajectories.trace(law.denoiser(process), x1, 120, None)
    exact = law.flow(process, x1, 1.0, process.end)
    assert float((x0 - exact).norm() / exact.norm()) < 1e-3
    for logsnr in (-6.0, -2.3, 0.1, 2.0):
        t = float(process.time(logsnr))
        there = law.flow(process, x1, 1.0, t)
        assert float((paths.at(t) - there).norm() / there.norm()) < 1e-3
    assert torch.equal(paths.part(5).at(0.4), paths.at(0.4)[:5])
    torch.testing.assert_close(paths.at(1.0), x1)


def test_a_regression_finds_the_combination_that_is_there():
    a, b = fk.noise((16, 3), 1, dtype=torch.float64), fk.noise((16, 3), 2, dtype=torch.float64)
    torch.testing.assert_close(regression([a, b], 2.5 * a - 1e-3 * b), torch.tensor([2.5, -1e-3], dtype=torch.float64))


def test_a_fitted_table_is_the_least_squares_one_row_by_row():
    process = fk.VP()
    denoiser = RING.denoiser(process)
    x1 = process.start(fk.noise((256, 2), dtype=torch.float64))
    paths, truth = Trajectories.trace(denoiser, x1, 60, None)
    times = grids.quadratic(4).times(process)[:-1]
    table, error = fit(denoiser, paths, times, x1, truth, process.end, "fitted")
    pool = Pool(denoiser, x1, truth)
    assert pool.rms(table.plan()) == pytest.approx(error, rel=1e-6)
    # no other last row does better, and no fixed solver on these times
    for k in range(5):
        for sign in (1, -1):
            moved = table.weights.clone()
            moved[-1, k] += sign * 1e-3
            assert pool.rms(type(table)(process, times, moved, process.end).plan()) > error
    for name in ("ddim", "dpmpp-2m", "unipc", "deis"):
        assert pool.rms(solve.get(name).plan(process, grids.quadratic(4))) > error


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_timings_have_the_number_that_was_asked_for_and_are_all_different(process):
    found = [tuple(times.tolist()) for _, times in timings(process, 5, None)]
    assert all(len(times) == 5 and list(times) == sorted(times, reverse=True) for times in found)
    assert len(set(found)) == len(found) > 10
    assert all(len(times) == 3 for _, times in timings(process, 3, 0))


def test_screened_noises_stand_for_all_and_are_the_hard_ones():
    process = fk.VP()
    source = Source(RING.denoiser(process), (2,), 5, None)
    source.pool(torch.arange(32))
    plans = [solve.get("dpmpp-2m").plan(process, grids.quadratic(k)) for k in (9, 10)]
    pool = source.screened(1000, 5000, 600, *plans)
    assert pool.weight is not None and float(pool.weight.min()) >= 1
    assert len(pool) == pytest.approx(600, abs=5 * 600**0.5)

    def within(found, exact, each):
        # the variance of a sum of independent terms w v, each taken with probability 1 / w
        spread = float((pool.weight * (pool.weight - 1) * each.square()).sum().sqrt())
        assert abs(found - exact) < 5 * spread

    within(float(pool.weight.sum()), 4000, torch.ones(len(pool)))
    everybody = source.pool(torch.arange(1000, 5000))
    size = everybody.truth.square().sum(1)
    within(float((pool.weight * pool.truth.square().sum(1)).sum()), float(size.sum()), pool.truth.square().sum(1))
    error = everybody.errors(plans[0])
    assert pool.errors(plans[0]).mean() > 1.2 * error.mean()
    assert pool.rms(plans[0]) == pytest.approx(everybody.rms(plans[0]), rel=0.2)
    both = pool.joined(everybody.part(slice(0, 10)))
    assert len(both) == len(pool) + 10 and float(both.weight[-1]) == 1


def test_evolution_finds_schedules_that_a_metric_likes():
    process = fk.EDM()
    source = Source(RING.denoiser(process), (2,), 1, None)
    pool = source.pool(torch.arange(64))
    asked, judged = [], []

    def metric(x):
        asked.append(1)
        # the share of samples that miss the mode they belong to: no gradient to follow
        return float(((x - pool.truth).norm(dim=1) > 0.05).double().mean())

    def judge(name, plan):
        judged.append((metric(pool.end(plan)), plan))
        return judged[-1][0]

    late = evolved.search(pool, 4, process.end, metric, judge, 3, 0, lambda: False)
    assert not late and len(asked) > 100
    fixed = min(metric(pool.end(solve.get(n).plan(process, grids.karras(4)))) for n in ("ddim", "dpmpp-2m", "dpmpp-3m"))
    assert min(v for v, _ in judged) < fixed
    assert all(plan.nfe == 4 for _, plan in judged)
    assert evolved.search(pool, 4, process.end, metric, judge, 3, 0, lambda: True)
    to_data = evolved.schedule(evolved.Gene((0, 0), (0, 300, 600), (0, 5, 0), ((2, 0, 0, 0),) * 3), pool, None)
    assert to_data.end is None and len(to_data) == 3


class Slow(fk.Denoiser):
    """A millisecond a sample, on a clock of its own."""

    def __init__(self, inner):
        super().__init__(inner.process)
        self.inner, self.now = inner, 0.0

    def x0(self, x_t, t):
        self.inner.run = self.run
        self.clock[0] += 1e-3 * len(x_t)
        return self.inner(x_t, t)


@pytest.mark.parametrize("seconds", [20.0, 60.0])
@pytest.mark.parametrize("method", ["descent", "evolution"])
def test_all_of_it_keeps_to_the_time(monkeypatch, seconds, method):
    slow = Slow(RING.denoiser(fk.VP()))
    slow.clock = [0.0]
    monkeypatch.setattr(TUNE, "clock", lambda: slow.clock[0])
    plan = fk.tune(slow, nfe=6, shape=(2,), seconds=seconds, method=method)
    assert slow.clock[0] <= seconds
    assert slow.clock[0] > 0.3 * seconds
    assert plan.config["seconds"] <= seconds and plan.config["error"] <= plan.config["fixed_error"]


def test_a_user_s_metric_by_name_on_the_command_line(tmp_path, monkeypatch, capsys):
    from fokker.cli import main

    (tmp_path / "mine.py").write_text("def far(x):\n    return -float(x.square().mean())\n\nNUMBER = 3\n")
    monkeypatch.chdir(tmp_path)
    words = ["tune", "--law", "ring", "--nfe", "3", "-n", "48", "--steps", "1", "--seconds", "600", "--label", "0..7"]
    assert main([*words, "--metric", "mine:far", "--method", "evolution", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "far" and found["method"] == "evolution"
    assert found["value"] < 0 and "--label 0..7" in found["rerun"] and "mine:far" in found["rerun"]
    assert Plan.from_json((tmp_path / "plan.json").read_text()).nfe == 3
    capsys.readouterr()
    assert main([*words, "--metric", "mine:NUMBER"]) == 2
    assert "function" in capsys.readouterr().err
    assert main([*words, "--method", "guess"]) == 2
    assert main(["tune", "--law", "ring", "--nfe", "3", "--label", "8"]) == 2
    assert main(["tune", "--law", "ring", "--nfe", "3", "--guidance", "cfg:3"]) == 2


def test_conditions_go_round():
    denoiser = RING.denoiser(fk.VP())
    one = fk.tune(denoiser, nfe=2, shape=(2,), n=32, steps=1, seconds=600, label=torch.tensor([0, 3, 5]))
    whole = fk.tune(denoiser, nfe=2, shape=(2,), n=32, steps=1, seconds=600, label=torch.arange(32).remainder(3) * 3 % 4 + 2)
    again = fk.tune(denoiser, nfe=2, shape=(2,), n=32, steps=1, seconds=600, label=torch.tensor([0, 3, 5] * 11)[:32])
    assert one.times == pytest.approx(again.times) and one.times != pytest.approx(whole.times)
    with pytest.raises(FokkerError, match="method"):
        fk.tune(denoiser, nfe=2, shape=(2,), method="luck")
