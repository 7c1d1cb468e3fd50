"""The U-Net that the checks of caches and quantisation share: digits, noise prediction on VP, trained once a process.

A plain noise-prediction network as the methods' papers have it (the zoo's digits are preconditioned): 0.5 M parameters, class
conditional, about 80 s of one core. Its recipe was fixed before anything was measured on it.
"""

import math
from functools import cache

import torch

from fokker.data.toys import digits
from fokker.denoiser import NetworkDenoiser
from fokker.keyed import noise, uniform
from fokker.net import build
from fokker.process import VP

STEPS, BATCH, RATE = 500, 128, 2e-3
PROCESS = VP()


@cache
def trained() -> NetworkDenoiser:
    """500 steps of Adam at batch 128, the rate decaying as a cosine, labels dropped for one sample in ten."""
    data = digits.build().tensors
    net = build("digits", dropout=0.0)
    denoiser = NetworkDenoiser(net, PROCESS, "eps")
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        u = uniform((BATCH, 3), step, stream="train", index=1)
        rows = (u[:, 0] * len(data["x"])).long()
        t = PROCESS.end + (1 - PROCESS.end) * (u[:, 1] + torch.arange(BATCH)) / BATCH
        label = torch.where(u[:, 2] < 0.1, -1, data["label"][rows])
        x, eps = data["x"][rows], noise((BATCH, 1, 8, 8), step, stream="train")
        loss = (denoiser.call(PROCESS.add_noise(x, eps, t), t, label=label) - eps).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return denoiser.eval().requires_grad_(False)
