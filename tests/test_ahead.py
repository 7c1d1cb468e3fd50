"""The step ahead: for every solver, what a wrapper is told about its next state is what the loop then computes."""

from itertools import pairwise

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, SOLVERS, adaptive, start
from torch import Tensor

import fokker as fk
from fokker.ahead import Ahead, ahead
from fokker.denoiser import Wrapper
from fokker.errors import FokkerError
from fokker.process import expand

VP = PROCESSES["vp"]


class Peek(Wrapper):
    """Looks ahead at every row, and keeps in the notes what it saw and what it answered."""

    def x0(self, x_t: Tensor, t: float, **cond: Tensor) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        assert self.run is not None
        self.run.notes.setdefault("seen", []).append((x_t, ahead(self.run), belief))
        return belief


def next_state(step: Ahead, belief: Tensor) -> Tensor:
    gain = expand(step.gain, belief) if isinstance(step.gain, Tensor) else step.gain
    return gain * belief + step.rest


@pytest.mark.parametrize("name", SOLVERS)
def test_the_step_ahead_is_the_step_taken(name):
    plan = SOLVERS[name].plan(VP, fk.grids.get("logsnr")(5, start=0.9, end=0.05))
    x = start(VP, t=0.9)
    if adaptive(plan):
        return
    plain = fk.run(LAW.denoiser(VP), x, plan, seed=2)
    trace = fk.run(Peek(LAW.denoiser(VP)), x, plan, seed=2)
    # looking does not change the run, and draws no noise twice
    assert torch.equal(plain.x0, trace.x0)
    seen = trace.notes["seen"]
    for (_, step, belief), (state, _, _) in pairwise(seen):
        assert torch.allclose(next_state(step, belief), state, rtol=0, atol=1e-12)
    assert plan.inputs > 1 or len(plan.outputs) > 1 or seen[-1][1].s is not None


def test_a_grid_to_the_data_ends_in_the_belief():
    trace = fk.run(Peek(LAW.denoiser(VP)), start(VP), solver="ddpm", steps=4, end=0)
    _, step, belief = trace.notes["seen"][-1]
    assert step.s is None and torch.equal(next_state(step, belief), trace.x0)


def test_a_time_for_each_sample_has_a_gain_for_each():
    columns = torch.stack([torch.linspace(a, 0.1, 4, dtype=F64) for a in (0.9, 0.8, 0.7, 0.6)], 1)
    plan = fk.solve.get("ddpm").plan(VP, fk.grids.Times(columns))
    seen = fk.run(Peek(LAW.denoiser(VP)), start(VP), plan).notes["seen"]
    for (_, step, belief), (state, _, _) in pairwise(seen):
        assert torch.allclose(next_state(step, belief), state, rtol=0, atol=1e-12)


def test_outside_a_run_and_before_a_decision_nothing_is_known():
    with pytest.raises(FokkerError, match="outside a run"):
        ahead(fk.Run(1))
    with pytest.raises(FokkerError, match="fixed-step"):
        fk.run(Peek(LAW.denoiser(VP)), start(VP), solver="adaptive", steps=1)


def test_notes_belong_to_a_run():
    first, second = (fk.run(Peek(LAW.denoiser(VP)), start(VP), solver="ddim", steps=3) for _ in range(2))
    assert len(first.notes["seen"]) == len(second.notes["seen"]) == 3
    assert fk.run(LAW.denoiser(VP), start(VP), solver="ddim", steps=3).notes == {}
