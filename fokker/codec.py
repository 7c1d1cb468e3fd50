"""Codecs: between the space a denoiser works in and the space of data.

THE CONTRACT. A codec is a module with `encode(data) -> x`, `decode(x) -> data`, both with a leading batch dimension and data
in the data set's own range, and a `config` that rebuilds it by name. Latent diffusion is everything else, in a codec's space.
A new codec is a subclass of `Codec`; it is found by its class name, if the catalogue has it or once its module is imported.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fokker.catalogue import lazy_names, public
from fokker.errors import FokkerError, unknown


class Codec(nn.Module):
    """encode and decode; the identity unless a subclass says otherwise."""

    def encode(self, data: Tensor) -> Tensor:
        """Data (n, ...) to the denoiser's space."""
        return data

    def decode(self, x: Tensor) -> Tensor:
        """A point of the denoiser's space (n, ...) to data."""
        return x

    def save_memory(self) -> bool:
        """Called when one sample does not fit: a codec that can work in tiles does so from now on and says True."""
        return False

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this codec: its class name and its options."""
        return {"codec": type(self).__name__}


class Identity(Codec):
    """The denoiser works on the data themselves."""


def build(config: Mapping[str, Any]) -> Codec:
    """The codec of a `config`; raises FokkerError for an unknown name or option."""
    options = dict(config)
    name = options.pop("codec", "Identity")
    known = {kind.__name__: kind for kind in _kinds(Codec)}
    if name not in known and name in lazy_names("codec")[1]():
        public(name, {"codec"})  # imports its module
        known = {kind.__name__: kind for kind in _kinds(Codec)}
    if name not in known:
        raise unknown("codec", name, known)
    try:
        return known[name](**options)
    except TypeError as error:
        raise FokkerError(f"codec {name}: {error}") from None


def _kinds(kind: type[Codec]) -> list[type[Codec]]:
    return [found for below in kind.__subclasses__() for found in (below, *_kinds(below))]
