"""Other people's models as denoisers, and ours on their way out.

    denoiser = fk.from_diffusers("path/to/pipeline")              # UNet2D, Stable Diffusion, DiT, PixArt, SD3, FLUX
    denoiser = fk.from_torch(net, process=fk.Flow(), prediction="flow")

    fokker.adapt.to_diffusers(model, "folder")                    # a folder that diffusers loads
    fokker.adapt.to_onnx(denoiser, "call.onnx", shape=(4, 64, 64))
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "PlanScheduler": "scheduler",
    "Pretrained": "pretrained",
    "PretrainedModel": "pretrained",
    "from_diffusers": "pretrained",
    "from_torch": "torch",
    "plan_to_onnx": "onnx",
    "to_diffusers": "export",
    "to_onnx": "onnx",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"fokker.adapt.{_WHERE[name]}"), name)
    raise AttributeError(f"fokker.adapt has no public name {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
