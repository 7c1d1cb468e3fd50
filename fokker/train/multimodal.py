"""The denoising loss of several modalities, each at a time of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.multimodal import JointDenoiser
from fokker.train.objective import Denoising, Key, Objective, Tensors, weight


@dataclass(frozen=True)
class MultiModal(Objective):
    """loss = sum over parts of share_m w_m(logsnr) mean |x_m - D_m(x_1 at t_1, x_2 at t_2, ...)|^2 with independent t_m.

    denoising  the weight and the distribution of each part's time, as for one modality
    ends       the share of parts at time 0 exactly, and as large a share at time 1: the times of what is known and of what is
               lost, which have to be trained and not extrapolated to
    shares     {name: share} of the parts in the loss (1 each); means over coordinates balance parts of different sizes

    The batch holds the parts by their names; a part that it lacks may be the data's x. A `JointDenoiser` goes where the trainer
    has a denoiser. Reference: Bao et al. 2023, arXiv 2303.06555, equation 4.
    """

    denoising: Denoising = field(default_factory=lambda: Denoising(times="uniform"))
    ends: float = 0.1
    shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.ends < 0.5:
            raise FokkerError(f"ends={self.ends} is not accepted; give a share in [0, 0.5)")

    def draw(self, denoiser: Any, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """{name}, {name}/eps, {name}/t and {name}/weight of every part, on `device`."""
        joint: JointDenoiser = denoiser
        u = key.each(2 * len(joint.shapes))
        ids, index = key.names()
        missing = [name for name in joint.shapes if name not in batch]
        if len(missing) > 1:
            raise FokkerError(f"the data have no {', '.join(missing)}; one part at most may be the data's x")
        drawn: Tensors = {}
        for k, (name, shape) in enumerate(joint.shapes.items()):
            x = batch[name] if name in batch else batch["x"]
            if tuple(x.shape[1:]) != shape:
                raise FokkerError(f"the part {name!r} has shape {tuple(x.shape[1:])} in the data and {shape} in the denoiser")
            process = joint.processes[name]
            t = self.denoising.time(process, u[:, 2 * k].clamp(1e-12, 1 - 1e-12))
            place = u[:, 2 * k + 1]
            t = torch.where(place < self.ends, 0.0, torch.where(place > 1 - self.ends, 1.0, t))
            # each part has an index of its own, as far as bit 54 from the shared ones
            where = {"stream": "train", "index": index | (k + 1) << 48, "dtype": x.dtype}
            drawn[f"{name}/eps"] = process.sample_noise(tuple(x.shape), key.seed, ids, **where)
            sd = float(getattr(joint, "sigma_data", {}).get(name, 1.0))
            logsnr = process.logsnr(t)
            # at time 0 there is nothing to denoise
            w = torch.where(t > 0, weight(self.denoising.weight, logsnr.clamp(max=60), sd), 0.0)
            drawn |= {name: x, f"{name}/t": t, f"{name}/weight": w.to(torch.float32)}
        return {k: v.to(device) for k, v in drawn.items()}

    def loss(self, denoiser: Any, drawn: Tensors) -> Tensor:
        """The loss of each sample, (B,)."""
        joint: JointDenoiser = denoiser
        x_t, t = {}, {}
        for name, process in joint.processes.items():
            t[name] = drawn[f"{name}/t"]
            x_t[name] = process.add_noise(drawn[name], drawn[f"{name}/eps"], t[name])
        total = torch.zeros((), device=next(iter(drawn.values())).device)
        for name, belief in joint(x_t, t).items():
            error = (belief - drawn[name]).square().flatten(1).mean(1)
            total = total + self.shares.get(name, 1.0) * drawn[f"{name}/weight"] * error
        return total
