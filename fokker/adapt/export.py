"""The way back: a model as a folder that diffusers loads."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker import store
from fokker.adapt.pretrained import Pretrained, PretrainedModel
from fokker.codec import Identity
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.model import Model
from fokker.net.unet2d import UNet2D
from fokker.process import EDM, Process

ROWS = 1000
NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def to_diffusers(model: Model | Pretrained, folder: str | Path) -> Path:
    """Write a model as a folder that diffusers loads, weights as safetensors; returns the folder.

    A model that came from diffusers (and may have been trained on) is written as the pipeline it was. One that was trained here
    with `net: {kind: unet2d}` becomes a `UNet2DModel` with, by what it predicts,

        eps, v, x0   a DDIM pipeline with 1000 betas, those of its process; the features of their noise levels are its table
                     of times ("learned"). Its own samples at those 1000 times are the same numbers.
        edm          the network with an `EDMEulerScheduler` of its sigma_data and range, whose preconditioning is the same

    Raises FokkerError for a network of another kind, whose weights have no place in diffusers, for a codec, and for a process
    that is not variance preserving where betas are needed.
    """
    path = Path(folder)
    if path.exists() and any(path.iterdir()):
        raise FokkerError(f"{str(path)!r} is not empty; give a new folder")
    if isinstance(model, Pretrained):
        model = model.model
    if isinstance(model, PretrainedModel):
        return _as_it_was(model, path)
    net = model.denoiser.net
    if not isinstance(net, UNet2D):
        raise FokkerError(f"{type(net).__name__} has no counterpart in diffusers; train with net: {{kind: unet2d}}")
    if not isinstance(model.codec, Identity) or model.denoiser.clock is not None or net.image_channels:
        raise FokkerError("only models of images without a codec, a clock of their own, or images beside x are written")
    side = model.shape[-2:]
    size: Any = side[0] if side[0] == side[1] else list(side)
    if model.denoiser.prediction == "edm":
        _edm(model, net, size, path)
    elif model.denoiser.prediction in NAMES:
        _ddim(model, net, size, path)
    else:
        raise FokkerError(f"diffusers' U-Net pipelines predict eps, v, x0 or edm, not {model.denoiser.prediction!r}")
    known = {"bounds": model.bounds, "null_label": net.classes or None, "id2label": dict(enumerate(model.labels))}
    store.write_text(path / "fokker.json", json.dumps(known))
    return path


def _as_it_was(model: PretrainedModel, path: Path) -> Path:
    """A pipeline of diffusers, with its text encoders where they were loaded."""
    import diffusers

    denoiser: Any = model.denoiser
    net, scheduler = denoiser.net.net, denoiser.schedule.scheduler
    vae = getattr(model.codec, "vae", None)
    if model.conditioner is not None:
        model.conditioner.pipeline.save_pretrained(path, safe_serialization=True)
    elif vae is None:
        diffusers.DDIMPipeline(net, scheduler).save_pretrained(path, safe_serialization=True)
    elif isinstance(net, diffusers.DiTTransformer2DModel):
        diffusers.DiTPipeline(net, vae, scheduler).save_pretrained(path, safe_serialization=True)
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        index["id2label"] = {str(k): name for k, name in enumerate(model.labels)}
        store.write_text(path / "model_index.json", json.dumps(index, indent=2))
    elif isinstance(net, diffusers.UNet2DModel):
        diffusers.LDMPipeline(vae, net, scheduler).save_pretrained(path, safe_serialization=True)
    else:
        raise FokkerError(
            "the text encoders of this pipeline were not loaded; load it with text=True to write it whole"
        )
    return path


def betas_of(process: Process, rows: int = ROWS) -> list[float]:
    """The betas of a variance-preserving process at the times 1/rows, 2/rows, ..., 1; raises FokkerError for another."""
    t = torch.arange(1, rows + 1, dtype=torch.float64) / rows
    alpha, sigma = process.alpha(t), process.sigma(t)
    if process.anchored or float((alpha**2 + sigma**2 - 1).abs().max()) > 1e-6:
        raise FokkerError(
            f"{process.name} is not variance preserving, so it has no betas; train on VP, or with prediction edm"
        )
    bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    betas: list[float] = (1 - bar[1:] / bar[:-1]).tolist()
    return betas


def _ddim(model: Model, net: UNet2D, size: Any, path: Path) -> None:
    import diffusers

    denoiser = model.denoiser
    betas = betas_of(denoiser.process)
    weights = {k: v.detach().to("cpu", torch.float32) for k, v in net.net.state_dict().items()}
    weights["time_proj.weight"] = _features(denoiser, net)
    config = {k: v for k, v in net.net.config.items() if not k.startswith("_")}
    config |= {"sample_size": size, "time_embedding_type": "learned", "num_train_timesteps": ROWS}
    written = diffusers.UNet2DModel(**config)
    written.load_state_dict(weights)
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=ROWS,
        trained_betas=betas,
        prediction_type=NAMES[denoiser.prediction],
        clip_sample=False,
        timestep_spacing="trailing",
    )
    diffusers.DDIMPipeline(written.eval(), scheduler).save_pretrained(path, safe_serialization=True)


def _features(denoiser: NetworkDenoiser, net: UNet2D) -> Tensor:
    """What the network is told at each row, (rows, width): its features of the noise level there."""
    device = next(net.parameters()).device
    t = torch.arange(1, ROWS + 1, dtype=torch.float64) / ROWS
    with torch.no_grad():
        told: Tensor = net.net.time_proj(denoiser.c_noise(t, torch.empty(ROWS, 1, device=device)))
    return told.to("cpu", torch.float32)


def _edm(model: Model, net: UNet2D, size: Any, path: Path) -> None:
    import diffusers

    process = model.denoiser.process
    # the network knows its process by the log-SNR only
    high = -0.5 * float(process.logsnr(1.0).clamp_min(-12.0))
    low = -0.5 * float(process.logsnr(process.end))
    ends = (process.sigma_min, process.sigma_max) if isinstance(process, EDM) else (math.exp(low), math.exp(high))
    scheduler = diffusers.EDMEulerScheduler(*ends, sigma_data=model.denoiser.sigma_data)
    net.net.register_to_config(sample_size=size)
    net.net.save_pretrained(path / "unet", safe_serialization=True)
    scheduler.save_pretrained(path / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "EDMEulerScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    store.write_text(path / "model_index.json", json.dumps(index, indent=2))
