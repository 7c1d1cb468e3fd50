"""Weights, gradients and optimiser state in slices over the processes (FSDP), for networks that do not fit one device whole.

A run that is sharded is the same run: checkpoints hold whole tensors, so one process reads what several wrote and the other
way round.

Reference: Zhao et al. 2023, arXiv 2304.11277 (fully sharded data parallel), as torch's `fully_shard`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to the device and leave each process its slice; blocks in a list are gathered one at a time."""
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # slices are cut along the first dimension, in memory too
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for part in reversed(list(module.modules())):  # inner ones first
        if isinstance(part, nn.ModuleList):
            for block in part:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def synchronise(module: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over the processes, or keeps them for a later one."""
    module.set_requires_gradient_sync(now)  # type: ignore[operator]


@torch.no_grad()
def whole(value: Tensor) -> Tensor:
    """The tensor of which this process may hold a slice; every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """The slice that this process holds."""
    return value.to_local() if isinstance(value, DTensor) else value


def gathered(tensors: Mapping[str, Tensor], main: bool) -> dict[str, Tensor]:
    """`whole` of all of them, one after the other, kept on the CPU of the main process and dropped elsewhere."""
    found = {}
    for name, value in tensors.items():
        entire = whole(value.detach())
        if main:
            found[name] = entire.cpu() if isinstance(value, DTensor) else entire
    return found


@torch.no_grad()
def fill(own: Tensor, value: Tensor) -> None:
    """own <- value, where `value` is whole and `own` may be a slice."""
    if isinstance(own, DTensor):
        own.copy_(distribute_tensor(value.to(own.device), own.device_mesh, own.placements))
    else:
        own.copy_(value)


@torch.no_grad()
def exchange(a: Tensor, b: Tensor) -> None:
    """The numbers of a in b and the other way round."""
    if isinstance(a, DTensor):
        # the module keeps views of the slice it was given: its memory must stay where it is
        kept = a.detach().clone()
        a.copy_(b)
        b.copy_(kept)
    else:
        a.data, b.data = b.data, a.data
