"""`fk.from_diffusers`: somebody else's pipeline as a denoiser, with its codec, its conditioner and its model beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fokker.adapt import folder
from fokker.adapt.folder import Parts
from fokker.adapt.network import Adapted, Told
from fokker.adapt.schedule import Schedule, read_schedule
from fokker.adapt.text import TextConditioner
from fokker.adapt.transformer import SD3, DiT, Flux, PixArt
from fokker.adapt.unet import UNet2D, UNet2DCondition
from fokker.adapt.vae import DiffusersVAE
from fokker.codec import Codec, Identity
from fokker.data.source import Condition
from fokker.errors import FokkerError, unknown
from fokker.grids import Times
from fokker.model import STORED, Model
from fokker.process import PREDICTIONS

NUMBERS = ("guidance", "time_ids", "image", "tokens", "pooled", "token_mask")


class Pretrained(Told):
    """A network of diffusers as a denoiser, on the process of its scheduler.

    model     the `Model` that it belongs to: `codec`, `conditioner`, `condition(n, prompt=...)`, `decode(x)`
    schedule  what its scheduler says; `grid(steps)` are the scheduler's own times
    """

    model: "PretrainedModel"

    def __init__(self, net: Adapted, schedule: Schedule) -> None:
        super().__init__(net, schedule.process, schedule.prediction, schedule.sigma_data, schedule.clock)
        self.schedule = schedule

    @property
    def codec(self) -> Codec:
        """Between the denoiser's space and pictures."""
        return self.model.codec

    @property
    def conditioner(self) -> TextConditioner | None:
        """From words to conditions; None where the network takes none."""
        return self.model.conditioner

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample of x."""
        return self.model.x_shape

    def grid(self, steps: int, size: Sequence[int] | None = None) -> Times:
        """The times of the pipeline's own scheduler; `size` (height, width) of x if it is not the model's."""
        height, width = tuple(size) if size is not None else self.shape[-2:]
        net: Any = self.net
        return self.schedule.grid(steps, net.sequence(height, width), net.spread)


@dataclass
class PretrainedModel(Model):
    """A pipeline of diffusers as a `Model`; `shape` is that of its pictures, `x_shape` that of the denoiser's space."""

    conditioner: TextConditioner | None = None
    latent: tuple[int, ...] = ()

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.latent

    def condition(self, n: int, **given: object) -> dict[str, Tensor]:
        """Conditions as tensors for n samples: `prompt=` a string or one a sample, `label=`, `guidance=` a number, tensors."""
        device = next(self.denoiser.parameters()).device
        out: dict[str, Tensor] = {}
        prompt = given.pop("prompt", None)
        if prompt is not None:
            if self.conditioner is None:
                raise FokkerError("this model takes no prompt, or was loaded with text=False")
            texts = [prompt] if isinstance(prompt, str) else list(prompt)  # type: ignore[call-overload]
            out |= {k: v.expand(n, *v.shape[1:]) if len(v) == 1 else v for k, v in self.conditioner(texts).items()}
        for name in NUMBERS:
            if name in given and name in (self.denoiser.conditions or ()):
                value = torch.as_tensor(given.pop(name))
                out[name] = value.expand(n, *value.shape[1:]) if value.ndim else value.to(torch.float32).expand(n)
        out |= super().condition(n, **given)
        for name, rows in out.items():
            if len(rows) != n:
                raise FokkerError(f"{len(rows)} rows of {name} are given for {n} samples; give one, or one a sample")
        return {k: v.to(device) for k, v in out.items()}

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        if self.conditioner is not None:
            self.conditioner.to(device)
        return self

    def save(self, path: str | Path, stored: str = "float32") -> Path:
        raise FokkerError("a pipeline of diffusers is saved as one: use fokker.adapt.to_diffusers(model, folder)")


def from_diffusers(
    source: Any,
    *,
    scheduler: Any = None,
    size: Sequence[int] | None = None,
    text: bool = True,
    prediction: str | None = None,
    null_label: int | None = None,
    dtype: str = "float32",
    variant: str | None = None,
    device: torch.device | str = "cpu",
) -> Pretrained:
    """Somebody else's model as a denoiser E[x_0 | x_t]: a pipeline of diffusers, a network of it, a folder, or hf:ORG/NAME.

    source      a pipeline or network object; the folder of one; "hf:ORG/NAME" fetches what is used after saying how large it is
    scheduler   in place of the pipeline's own: a scheduler, its config, or its folder; a network alone needs one
    size        (height, width) of the pictures in pixels, if not what the network was made for
    text        whether to load text encoders
    prediction  what the network predicts (eps, v, x0, flow), if its scheduler says it wrongly; `fk.probe` finds out
    null_label  the class that stands for none, where the network has one and does not say it
    dtype, variant, device   number format of the weights, the file variant (such as fp16), and where to put them

    Networks: UNet2D, UNet2DCondition (Stable Diffusion 1.x, 2.x, XL, inpainting, LCM), DiT, PixArt, SD3, FLUX. The result is a
    `NetworkDenoiser` whose network is `.net.net`; `.model`, `.codec` and `.conditioner` belong to it. Raises FokkerError in one
    sentence for anything that is not supported or does not fit.
    """
    _needs_diffusers()
    if dtype not in STORED:
        raise unknown("number format", dtype, STORED)
    if isinstance(source, str | Path):
        where = folder.locate(source, text, variant)
        parts = folder.read_folder(where, text, STORED[dtype], variant)
        pipeline = _encoder_of(parts) if text else None
        origin = str(source)
    elif isinstance(source, nn.Module):
        parts, pipeline, origin = Parts(type(source).__name__, {"unet": source}), None, type(source).__name__
    elif hasattr(source, "components"):
        parts, pipeline, origin = (
            _parts_of(source),
            source if hasattr(source, "encode_prompt") else None,
            type(source).__name__,
        )
    else:
        raise FokkerError(f"{type(source).__name__} is no pipeline; give a pipeline, a network, or the folder of one")
    chosen = scheduler if scheduler is not None else parts.scheduler
    if chosen is None:
        raise FokkerError(f"{parts.name} comes without a scheduler, which says what it predicts; give scheduler=")
    schedule = read_schedule(chosen)
    if prediction is not None:
        if prediction not in PREDICTIONS:
            raise unknown("prediction", prediction, PREDICTIONS)
        schedule = Schedule(schedule.process, prediction, schedule.clock, schedule.scheduler, schedule.sigma_data)
    vae = parts.modules.get("vae") or parts.modules.get("vqvae")
    codec: Codec = Identity() if vae is None else DiffusersVAE(vae)
    none = parts.settings.get("null_label") if null_label is None else null_label
    net = adapt(parts.net, codec.factor if isinstance(codec, DiffusersVAE) else 8, none)
    net.sign = schedule.sign
    denoiser = Pretrained(net, schedule)
    conditioner = None
    if pipeline is not None:
        conditioner = TextConditioner(pipeline, _encoding(net))
        net.empty = conditioner.empty if len(conditioner.encoders) else None
    denoiser.model = _model(denoiser, net, codec, conditioner, size, parts, origin)
    denoiser.eval()
    codec.eval()
    denoiser.model.to(device)
    return denoiser


def _needs_diffusers() -> None:
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise FokkerError(
            "models of diffusers need it and transformers; install them with pip install 'fokker[hf]'"
        ) from None


def adapt(net: Any, factor: int = 8, null_label: int | None = None) -> Adapted:
    """The adapter of a network, by its class; `factor` is how many pixels a side of its x stands for."""
    import diffusers

    if isinstance(net, diffusers.UNet2DModel):
        return UNet2D(net, null_label)
    if isinstance(net, diffusers.UNet2DConditionModel):
        return UNet2DCondition(net, factor)
    if isinstance(net, diffusers.PixArtTransformer2DModel):
        return PixArt(net, factor)
    kinds: list[tuple[Any, type[Adapted]]] = [
        (diffusers.DiTTransformer2DModel, DiT),
        (diffusers.SD3Transformer2DModel, SD3),
        (diffusers.FluxTransformer2DModel, Flux),
    ]
    for kind, adapter in kinds:
        if isinstance(net, kind):
            return adapter(net)
    raise FokkerError(
        f"{type(net).__name__} is not supported; UNet2DModel, UNet2DConditionModel, DiT, PixArt, SD3 and FLUX are, and "
        "any module through fk.from_torch"
    )


def _encoding(net: Adapted) -> str:
    if isinstance(net, UNet2DCondition):
        return "pooled" if net.sized else "plain"
    return {PixArt: "masked", SD3: "three", Flux: "flux"}.get(type(net), "plain")


def _parts_of(pipeline: Any) -> Parts:
    """The parts of a pipeline object."""
    modules = {}
    for role, module in pipeline.components.items():
        if module is None or role in folder.UNUSED or role == "scheduler" or not hasattr(module, "parameters"):
            continue
        if role not in folder.ROLES:
            raise FokkerError(f"this pipeline has a {role} ({type(module).__name__}), which is not supported")
        modules[role] = module
    settings = {k: v for k, v in pipeline.config.items() if not isinstance(v, tuple | list)}
    labels = getattr(pipeline, "labels", None) or {}  # where a class has several names, the first
    settings |= {"id2label": {v: k for k, v in reversed(labels.items())}} if labels else {}
    return Parts(type(pipeline).__name__, modules, pipeline.scheduler, settings)


def _encoder_of(parts: Parts) -> Any:
    """A pipeline object of the folder's parts, for its `encode_prompt`; None where there is no text."""
    import diffusers

    if not any(role.startswith("text_encoder") for role in parts.modules):
        return None
    net = parts.net
    if isinstance(net, diffusers.UNet2DConditionModel):
        name = (
            "StableDiffusionXLPipeline" if net.config.addition_embed_type == "text_time" else "StableDiffusionPipeline"
        )
    elif isinstance(net, diffusers.PixArtTransformer2DModel):
        # the two generations differ in how long a text may be
        name = "PixArtSigmaPipeline" if parts.name == "PixArtSigmaPipeline" else "PixArtAlphaPipeline"
    else:
        name = "StableDiffusion3Pipeline" if isinstance(net, diffusers.SD3Transformer2DModel) else "FluxPipeline"
    given = {**parts.modules, "scheduler": parts.scheduler}
    roles: tuple[str, ...] = (
        "vae",
        "text_encoder",
        "tokenizer",
        "unet" if "unet" in given else "transformer",
        "scheduler",
    )
    extra: dict[str, Any] = {}
    if name in ("StableDiffusionXLPipeline", "FluxPipeline", "StableDiffusion3Pipeline"):
        roles += ("text_encoder_2", "tokenizer_2")
    if name == "StableDiffusion3Pipeline":
        roles += ("text_encoder_3", "tokenizer_3")
    if name == "StableDiffusionPipeline":
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if name == "StableDiffusionXLPipeline":
        extra = {"add_watermarker": False}
        extra["force_zeros_for_empty_prompt"] = parts.settings.get("force_zeros_for_empty_prompt", True)
    with folder.quiet():
        return getattr(diffusers, name)(**{role: given.get(role) for role in roles}, **extra)


def _model(
    denoiser: Pretrained,
    net: Adapted,
    codec: Codec,
    conditioner: TextConditioner | None,
    size: Sequence[int] | None,
    parts: Parts,
    origin: str,
) -> PretrainedModel:
    factor = codec.factor if isinstance(codec, DiffusersVAE) else 1
    latent = net.x_shape
    if size is not None:
        height, width = size
        if height % factor or width % factor:
            raise FokkerError(f"size={tuple(size)} does not divide into latents; use multiples of {factor}")
        latent = (net.channels, height // factor, width // factor)
    if latent is None:
        raise FokkerError(f"{type(net.net).__name__} does not say its size; give size=(height, width) in pixels")
    colours = int(codec.vae.config.get("out_channels", 3)) if isinstance(codec, DiffusersVAE) else latent[0]
    shape = (colours, latent[1] * factor, latent[2] * factor)
    conditions: dict[str, Condition] = {}
    if "label" in net.conditions:
        conditions["label"] = Condition((), True, _classes(net, parts.settings))
    if "guidance" in net.conditions:
        conditions["guidance"] = Condition((), False)
    if conditioner is not None:
        conditions["prompt"] = Condition((), True)  # a category without names: any words
    card = {"origin": origin, "pipeline": parts.name, "scheduler": type(denoiser.schedule.scheduler).__name__}
    return PretrainedModel(denoiser, shape, (-1.0, 1.0), conditions, codec, card, conditioner, latent)


def _classes(net: Adapted, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes; their numbers where the pipeline has no names."""
    count = net.config.get("num_embeds_ada_norm") or net.config.get("num_class_embeds") or 0
    count -= 1 if isinstance(net, UNet2D) and net.null_label == count - 1 else 0
    names = settings.get("id2label") or {}
    return tuple(str(names.get(str(k), names.get(k, k))) for k in range(int(count)))
