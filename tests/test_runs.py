"""Wrappers, networks and tokens inside a run: state belongs to it, calls are counted, and runs do not see each other."""

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES, SHAPED, cond, quick, start
from torch import Tensor, nn

import fokker as fk
from fokker.denoiser import NetworkDenoiser, OnProcess, Run, Wrapper
from fokker.grids import LogSNR
from fokker.plan import Plan, Row

VP = fk.VP()
every = pytest.mark.parametrize("process", PROCESSES)


class Momentum(Wrapper):
    """Adds a share of the last belief: remembers within a run."""

    def reset(self, run: Run) -> None:
        self.last: Tensor | None = None

    def x0(self, x_t: Tensor, t: float, **cond: Tensor) -> Tensor:
        belief = self.inner(x_t, t, **cond)
        out = belief if self.last is None else belief + 0.1 * (belief - self.last)
        self.last = belief
        return out


def test_state_belongs_to_a_run():
    wrapper = Momentum(quick(VP))
    x = start(VP)
    once = fk.sample(wrapper, x, solver="ddim", steps=5)
    assert torch.equal(fk.sample(wrapper, x, solver="ddim", steps=5), once)
    assert fk.sample(wrapper, start(VP, 2), solver="ddim", steps=5).shape == (2, 2)
    assert not torch.equal(once, fk.sample(quick(VP), x, solver="ddim", steps=5))


def test_a_run_inside_a_run_sees_nothing_of_it():
    """A wrapper may start runs of its own, with the same wrapper objects, in the middle of another run."""
    wrapper, x = Momentum(quick(VP)), start(VP)
    alone = fk.sample(wrapper, x, solver="ddim", steps=5)
    inner = []

    def watch(run: Run, x_t: Tensor, belief: Tensor) -> None:
        inner.append(fk.run(wrapper, x, solver="ddim", steps=5))

    outer = fk.run(wrapper, x, solver="ddim", steps=5, watch=watch)
    assert torch.equal(outer.x0, alone) and outer.nfe == 5
    assert all(torch.equal(trace.x0, alone) and trace.nfe == 5 for trace in inner)


def test_threads_do_not_share_a_run():
    from concurrent.futures import ThreadPoolExecutor

    wrapper = Momentum(LAW.denoiser(VP))
    plan = fk.solve.get("ddpm").plan(VP, LogSNR(8))
    starts = [fk.noise((2, 2), seed=k, dtype=F64) for k in range(6)]
    expected = [fk.sample(wrapper, x, plan, seed=k) for k, x in enumerate(starts)]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda k: fk.sample(wrapper, starts[k], plan, seed=k), range(6)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_evaluations_are_counted_through_guidance_and_wrappers():
    labels = torch.tensor([0, 1, 1, 0])
    leaf = LAW.denoiser(VP)
    for batched in (True, False):
        guided = Momentum(fk.guide.CFG(Momentum(leaf), scale=2.0, batched=batched))
        assert fk.run(guided, start(VP), solver="heun", steps=3, label=labels).nfe == 2 * 6
    twice = fk.guide.CFG(fk.guide.CFG(leaf, scale=2.0), scale=3.0)
    assert fk.run(twice, start(VP), solver="ddim", steps=3, label=labels).nfe == 4 * 3


def test_the_run_tells_its_wrappers_where_it_is():
    seen = []

    class Spy(Wrapper):
        def x0(self, x_t: Tensor, t: float, **cond: Tensor) -> Tensor:
            seen.append((self.run.row, self.run.rows, self.run.t, self.run.nfe, self.run.seed, list(self.run.ids)))
            return self.inner(x_t, t, **cond)

    fk.sample(Spy(quick(VP)), start(VP, 2), solver="ddim", steps=3, seed=8, ids=[4, 9])
    times = LogSNR(3).times(VP).tolist()
    assert seen == [(k, 4, pytest.approx(times[k]), float(k), 8, [4, 9]) for k in range(3)]


@every
def test_a_network_runs_on_every_process(process):
    """A small convolution, EDM-preconditioned: finite from the noise end on, in half precision too, on any size."""
    process = PROCESSES[process]
    gen = torch.Generator().manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(0.1 * torch.randn(2, 2, 3, 3, generator=gen))

        def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
            return nn.functional.conv2d(x, self.a, padding=1) + 0.01 * c.to(x)[:, None, None, None]

    denoiser = NetworkDenoiser(Net(), process)
    for dtype in (torch.float32, torch.bfloat16):
        x = start(process, shape=(2, 3, 5), dtype=dtype)
        for name, end in (("dpmpp-2m", None), ("heun", 0), ("ddpm", 0)):
            out = fk.sample(denoiser, x, solver=name, steps=5, end=end, **cond(process, x))
            assert out.shape == x.shape and out.dtype == dtype
    if not process.anchored:
        moved = OnProcess(NetworkDenoiser(Net(), fk.VP()), process)
        assert torch.isfinite(fk.sample(moved, start(process, shape=(2, 3, 5)), solver="dpmpp-2m", steps=5)).all()


def test_rows_may_have_several_times_a_sample():
    """Tokens at their own times: clean ones stay where they are while noisy ones move."""
    law = SHAPED
    n, tokens = 3, SHAPED.shape[0]
    starts = torch.tensor([0.9, 0.5], dtype=F64).expand(n, tokens)
    grid = [starts, starts * 0.5, starts * 0.25]
    x = VP.add_noise(law.sample(n), fk.noise((n, *law.shape), dtype=F64), starts)
    (a, _, c), (d, _, f) = (VP.coefficients(t, x) for t in grid[:2])
    from fokker.plan import Draft, Node

    draft = Draft(VP)
    nodes = [Node.at(VP, t) for t in grid]
    out = fk.solve.get("ddim").lay(draft, draft.given(), nodes)
    plan = draft.finish([out], nodes[0].t, nodes[-1].t, {})
    belief = law.denoiser(VP)(x, starts)
    first = f / c * x + (d - a * f / c) * belief
    rows = []
    arrived = fk.sample(law.denoiser(VP), x, plan, watch=lambda run, x_t, belief: rows.append(x_t))
    assert torch.allclose(rows[1], first, atol=1e-12) and arrived.shape == x.shape
    again = Plan.from_json(plan.json())
    assert torch.equal(fk.sample(law.denoiser(VP), x, again), arrived)
    assert isinstance(plan.rows[1], Row)
