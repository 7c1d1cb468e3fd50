"""What the loop adds to a denoiser: no wait for the device, one graph for a whole run, and the same numbers either way."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fokker as fk
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG
from fokker.loop import finite, pure
from fokker.plan import Plan


class Net(nn.Module):
    """A small network with fixed weights and a class condition."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(4, 16), nn.Linear(16, 4)
        for k, p in enumerate(self.parameters()):
            p.data = fk.noise(tuple(p.shape), seed=k)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        shift = c[:, None] if label is None else c[:, None] + label[:, None]
        return self.outward(torch.tanh(self.inward(x) + shift))


class Waits(TorchDispatchMode):
    """Counts operations that read a number from a tensor, for which a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


def denoiser() -> Denoiser:
    return NetworkDenoiser(Net(), fk.VP()).requires_grad_(False)


def plan(solver: str, steps: int = 6) -> Plan:
    return fk.solve.get(solver).plan(fk.VP(), fk.grids.logsnr(steps, end=0))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "unipc", "deis", "ddpm", "dpmpp-2m-sde"])
def test_no_row_waits_for_the_device(solver: str) -> None:
    x, net, waits = fk.noise((3, 4)), denoiser(), {}
    for steps in (6, 24):
        laid = plan(solver, steps)
        # the coefficients of the process, numbers of the CPU, are read once and remembered
        fk.sample(net, x, laid)
        with Waits() as mode:
            fk.sample(net, x, laid)
        waits[steps] = mode.count
    assert waits[6] == waits[24] <= 1, f"reads of tensors in a run: {waits}"


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "unipc", "deis"])
def test_a_run_on_tensors_without_numbers(solver: str) -> None:
    """On the meta device there is nothing to read: any look at a value raises."""
    net = denoiser().to("meta")
    guided = CFG(net, scale=3.0)
    label = torch.zeros(3, dtype=torch.int64, device="meta")
    x0 = fk.sample(guided, torch.empty(3, 4, device="meta"), plan(solver), check=False, label=label)
    assert x0.shape == (3, 4) and x0.is_meta


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-3m", "unipc"])
def test_the_rows_as_a_pure_function(solver: str) -> None:
    laid, x = plan(solver), fk.noise((3, 4))
    f = pure(denoiser(), laid)
    assert torch.equal(f(x), fk.sample(denoiser(), x, laid))
    assert torch.equal(f(x[:2]), f(x)[:2])


def test_one_graph_for_a_whole_run() -> None:
    laid, x = plan("dpmpp-2m", 4), fk.noise((3, 4))
    label = torch.tensor([0, 1, 2])
    guided = CFG(denoiser(), scale=3.0)
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    f = torch.compile(pure(guided, laid), fullgraph=True, backend=backend)
    torch.testing.assert_close(f(x, label=label), fk.sample(guided, x, laid, label=label))
    assert len(graphs) == 1


@pytest.mark.parametrize("solver", ["ddpm", "adaptive"])
def test_what_is_no_pure_function_is_refused(solver: str) -> None:
    with pytest.raises(FokkerError):
        pure(denoiser(), plan(solver))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(value: float) -> None:
    x = torch.ones(1000)
    assert finite(x) and finite(torch.full((4,), 3e38))
    x[17] = value
    assert not finite(x)
    x[18] = -value
    assert not finite(x)


class OnDevice(TorchDispatchMode):
    """Notes operations of a run that touch a tensor of the CPU: a copy between devices cannot be captured into a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.elsewhere = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, Tensor)]
        self.elsewhere += [str(func)] if any(v.device.type == "cpu" for v in tensors) else []
        return out


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "unipc", "deis"])
@pytest.mark.parametrize("name", ["digits", "sprites"])
def test_a_guided_network_runs_without_leaving_the_device(name: str, solver: str) -> None:
    """What a CUDA graph asks of a run, on a device without numbers: no look at a value, no copy from or to the CPU."""
    model = fk.load(name)
    net = copy.deepcopy(model.denoiser).to("meta")
    f = pure(CFG(net, scale=2.0), plan_on(net.process, solver))
    x, label = torch.empty(2, *model.shape, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    with torch.no_grad(), OnDevice() as mode:
        assert f(x, label=label).is_meta
    assert mode.operations > 200 and not mode.elsewhere, mode.elsewhere[:5]


def plan_on(process: fk.Process, solver: str) -> Plan:
    return fk.solve.get(solver).plan(process, fk.grids.logsnr(4, end=0))
