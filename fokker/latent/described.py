"""A denoiser inside a codec as JSON, and back."""

from collections.abc import Mapping
from typing import Any

from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.errors import FokkerError
from fokker.model import build_net, build_process


def described(denoiser: Denoiser) -> dict[str, Any]:
    """What rebuilds a `NetworkDenoiser`; FokkerError for any other, and for a network without a configuration."""
    config = getattr(getattr(denoiser, "net", None), "config", None)
    if not isinstance(denoiser, NetworkDenoiser) or not isinstance(config, Mapping) or denoiser.clock is not None:
        kind = type(denoiser).__name__
        raise FokkerError(f"{kind} has no network with a config (or has a clock of its own) and cannot be rebuilt")
    return {
        "net": dict(config),
        "process": denoiser.process.config,
        "prediction": denoiser.prediction,
        "sigma_data": denoiser.sigma_data,
    }


def rebuilt(config: Mapping[str, Any]) -> NetworkDenoiser:
    """The denoiser of such a description, with weights of its own."""
    options = dict(config)
    net = build_net(options.pop("net"))
    return NetworkDenoiser(net, build_process(options.pop("process")), **options)
