"""Recovery likelihood: an energy learns by contrast with what its own sampler finds, an initialiser by catching up with it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.energy import CooperativeEnergy
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.train.objective import Key, Objective, Tensors

RESERVED = ("x", "e", "e2", "z", "k")


@dataclass(frozen=True)
class RecoveryLikelihood(Objective):
    """loss = w_k [f(y_K) - f(y)] / d + share |y_K - g|^2 / d at a uniform level k, d the number of coordinates.

    y = r x_k is data at level k, y_K the end of the Langevin chain that starts from the initialiser at x_{k+1}: the gradient
    of the first term is that of the recovery log-likelihood. y_K and y_0 are constants to both terms: nothing is differentiated
    through the chain, and one update of both networks is the cooperative pair of updates. w_k = sqrt(v_0 / v_k), and g is the
    mean of y_0. Each network learns from the other, so one of them has to be slower: as published, give the initialiser a tenth
    of the energy's rate, `Optimiser(rates={"denoiser.initialiser": 0.1})`.

    shared    y and x_{k+1} share the noise drawn for x_0; False draws x_{k+1} = y + sqrt(v) e as the Markov chain has it. Data
              enter the first term by y alone and the chain by x_{k+1} alone, so that both have the same mean gradient
    share     of the initialiser's loss

    A `CooperativeEnergy` goes where the trainer has a denoiser. Reference: Zhu et al. 2023, arXiv 2309.05153, algorithm 1.
    """

    shared: bool = True
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.share < 0:
            raise FokkerError(f"share={self.share} is not accepted; it is not negative")

    def draw(self, denoiser: Any, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """x_0, noises, the chain's noise and the level, on `device`."""
        model: CooperativeEnergy = denoiser
        x = batch["x"]
        ids, index = key.names()
        shape = tuple(x.shape)

        all_of_it = noise((shape[0], model.moves + 3, *shape[1:]), key.seed, ids, "train", index | 1 << 40, x.dtype)
        drawn = {"x": x, "e": all_of_it[:, 0], "e2": all_of_it[:, 1], "z": all_of_it[:, 2:]}
        levels = model.ladder.levels
        drawn["k"] = (key.each(1)[:, 0] * levels).long().clamp(max=levels - 1)
        rest = {k: v for k, v in batch.items() if k not in RESERVED}
        return {k: v.to(device) for k, v in (drawn | rest).items()}

    def loss(self, denoiser: Any, drawn: Tensors) -> Tensor:
        """The loss of each sample, (B,)."""
        model: CooperativeEnergy = denoiser
        cond = {name: v for name, v in drawn.items() if name not in RESERVED}
        x, e, k = drawn["x"], drawn["e"], drawn["k"]
        here = model.part("a", k, x) * x + model.part("s", k, x) * e
        if self.shared:
            x_next = model.part("a", k + 1, x) * x + model.part("s", k + 1, x) * e
        else:
            v = model.part("v", k, x)
            x_next = torch.sqrt(1 - v) * here + torch.sqrt(v) * drawn["e2"]
        y = model.part("r", k, x) * here
        with torch.no_grad():
            start = model.begin(x_next, k, drawn["z"][:, 0], **cond)
        found = model.refine(start, x_next, k, drawn["z"][:, 1:], **cond)
        v0: Tensor = model.v[0]  # type: ignore[index]
        w = torch.sqrt(v0 / model.part("v", k, k.to(x.dtype)))
        both = model.energy(torch.cat([found, y]), torch.cat([k, k]), **{n: torch.cat([c, c]) for n, c in cond.items()})
        below, above = both.chunk(2)
        count = x[0].numel()
        loss: Tensor = w * (below - above) / count
        if model.initialiser is not None:
            loss = loss + self.share * (model.aim(x_next, k, **cond) - found).square().flatten(1).mean(1)
        return loss
