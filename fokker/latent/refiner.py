"""DiffuseVAE: an autoencoder says roughly what a picture is, a diffusion model told of it draws it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fokker import codec as codecs
from fokker.codec import Codec
from fokker.data.source import Condition, Indices, Source
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.grids import get as grid_named
from fokker.keyed import noise as unit_noise
from fokker.latent.described import described, rebuilt
from fokker.loop import sample
from fokker.measure.features import digest
from fokker.solve import Solver
from fokker.solve import get as solver_named


class GeneratorRefiner(Codec):
    """x = vae.encode(data); decoding draws data from the rough reconstruction y = vae.decode(x), by few steps of a refiner.

    vae       any codec: a `KLAutoencoder` trained with kl = 1, a `LinearCodec`
    denoiser  told y as its condition `y`. On a plain process (formulation 1) y is that condition and no more; on
              `WholeAnchor` (formulation 2) the state carries it too, x_t = alpha x_0 + y + sigma eps. The loop takes the anchor
              off, so for one network both are the same sampler. Or the configuration of one
    steps, solver, grid  of the refiner; the plan ends at x_0 itself, where nothing of y is left in the state

    Train the refiner on `Rough(source, vae)`. As a codec its latents are the vae's, so a density of codes made after training
    (`GaussianMixture.fit`, or a `latent_model`) samples through it. With the same noise the code alone decides.

    Reference: Pandey, Mukherjee, Rai, Kumar 2022, arXiv 2201.00308.
    """

    def __init__(
        self,
        vae: Codec | Mapping[str, Any],
        denoiser: Denoiser | Mapping[str, Any],
        steps: int = 10,
        solver: str = "ddim",
        grid: str = "logsnr",
    ) -> None:
        super().__init__()
        self.vae = codecs.build(vae) if isinstance(vae, Mapping) else vae
        self.denoiser: Denoiser = rebuilt(denoiser) if isinstance(denoiser, Mapping) else denoiser
        known = self.denoiser.conditions
        if known is not None and "y" not in known:
            raise FokkerError(f"the denoiser is not told y (its conditions: {', '.join(known) or 'none'}); give one that is")
        self.steps, self.solver, self.grid_name = steps, solver, grid
        chosen: Solver = solver_named(solver)
        self.plan = chosen.plan(self.denoiser.process, grid_named(grid)(steps, end=0))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "codec": "GeneratorRefiner",
            "vae": self.vae.config,
            "denoiser": described(self.denoiser),
            "steps": self.steps,
            "solver": self.solver,
            "grid": self.grid_name,
        }

    def encode(self, data: Tensor) -> Tensor:
        return self.vae.encode(data)

    def decode(self, x: Tensor, noise: Tensor | None = None, seed: int = 0, ids: Sequence[int] | None = None) -> Tensor:
        """Data (n, ...) from codes; the refiner's `noise` is unit noise of seed and ids (0, 1, ... ) unless given."""
        return self.refine(self.vae.decode(x), noise, seed, ids)

    @torch.no_grad()
    def refine(self, y: Tensor, noise: Tensor | None = None, seed: int = 0, ids: Sequence[int] | None = None) -> Tensor:
        """Data from rough reconstructions y (n, ...)."""
        process = self.denoiser.process
        if noise is None:
            noise = unit_noise(tuple(y.shape), seed, ids, dtype=y.dtype, device=y.device)
        start = process.start(noise, y if process.anchored else None)
        return sample(self.denoiser, start, self.plan, y=y, seed=seed, ids=ids)


class Rough(Source):
    """A source whose items carry their reconstruction y = vae.decode(vae.encode(x)) as one more condition."""

    def __init__(self, source: Source, vae: Codec) -> None:
        if "y" in source.conditions:
            raise FokkerError("the data have an anchor y already; leave it out of them")
        self.source, self.vae = source, vae
        self.name, self.about, self.shape = f"{source.name}, beside a rough one", source.about, source.shape
        self.bounds, self.classes, self.vocabulary = source.bounds, source.classes, source.vocabulary
        self.texts, self.skipped = source.texts, source.skipped
        self.conditions = {**source.conditions, "y": Condition(tuple(source.shape), False)}

    def __len__(self) -> int:
        return len(self.source)

    @torch.no_grad()
    def batch(self, indices: Indices) -> dict[str, Tensor]:
        whole = self.source.batch(indices)
        here = next((p.device for p in (*self.vae.parameters(), *self.vae.buffers())), whole["x"].device)
        return {**whole, "y": self.vae.decode(self.vae.encode(whole["x"].to(here))).cpu()}

    @property
    def fingerprint(self) -> str:
        weights = digest(*self.vae.state_dict().values()) if self.vae.state_dict() else ""
        text = f"{self.source.fingerprint} rough {self.vae.config} {weights}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
