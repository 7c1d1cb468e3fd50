"""Networks, and the contract of one.

A network is a torch module called as `net(x, c_noise, **cond)`: x (batch, channels, *space) to (batch, out_channels, *space)
for any size, c_noise one number a sample; see `Network` for the conditions. Beyond that it states

- `net.config`       a JSON-able dictionary from which `build` makes it again (with other weights),
- `net.conditions`   the names of the conditions that it accepts; `net.null(batch)` gives those that mean "none",
- `net.multiple`     sizes are extended to this multiple and cropped back,
- `net.stages`       the names of its stages in the order in which they run, for `start`, `advance` and `finish`.

Its output is zero at the start, a sample's output does not depend on its batch, and its modules have names that `taps` can
use. Any other module that can be called in this way serves as well wherever a network is asked for.

To add a network: a subclass of `Network` in a file of its own, and its name in `KINDS`; a user's own goes by
"mymodule:MyNet" or "path/to/file.py:MyNet".
"""

from collections.abc import Mapping
from typing import Any

from fokker.catalogue.entry import build as construct
from fokker.catalogue.entry import load_object, load_user_object
from fokker.errors import FokkerError, unknown
from fokker.net.dit import DiT
from fokker.net.network import Network, State
from fokker.net.taps import Features, taps
from fokker.net.unet import UNet
from fokker.net.unet2d import UNet2D

KINDS: dict[str, type[Network]] = {"unet": UNet, "dit": DiT, "unet2d": UNet2D}

# Called like a network and built from their `config`, but without stages of their own.
OTHERS = {
    "mlp": "fokker.net.mlp:MLP",
    "coded": "fokker.latent.coded:Coded",
    "gradient-estimator": "fokker.latent.coded:GradientEstimator",
}

# What each costs: parameters, multiply-adds of one call at the stated size. What each reached after training is on the cards of
# the zoo. Classes, tokens and channels of other data are given as changes: build("photos", classes=2).
PRESETS: dict[str, dict[str, Any]] = {
    # 1 x 8 x 8: 0.51 M, 9.3 M
    "digits": {"kind": "unet", "width": 32, "mults": [1, 2], "blocks": 1, "heads": 2, "classes": 10, "dropout": 0.1},
    # 3 x 32 x 32: 1.7 M, 76 M; attention where there are 8 x 8 and 4 x 4 positions
    "sprites": {
        "kind": "unet",
        "channels": 3,
        "patch": 2,
        "width": 48,
        "mults": [1, 2, 2],
        "blocks": 1,
        "attention": [False, False, True],
    },
    # 3 x 32 x 32: 1.5 M, 116 M
    "photos": {"kind": "unet", "channels": 3, "patch": 2, "width": 56, "mults": [1, 2], "blocks": 1},
}


def build(config: str | Mapping[str, Any], seed: int = 0, trust: bool = False, **changes: Any) -> Network:
    """A network from its `config`, or from the name of a preset, with `changes` to single options and weights from `seed`.

    Raises FokkerError for an unknown preset, kind or option, and for a kind that is somebody's own code ("module:Class")
    unless `trust` says that it may be imported.
    """
    if isinstance(config, str):
        if config not in PRESETS:
            raise unknown("network preset", config, PRESETS)
        config = PRESETS[config]
    options = {**config, **changes}
    kind = options.pop("kind", "unet")
    if kind in KINDS:
        target = KINDS[kind]
    elif kind in OTHERS:
        target = load_object(OTHERS[kind])
    elif ":" not in str(kind):
        raise unknown("network kind", kind, [*KINDS, *OTHERS])
    elif not trust:
        raise FokkerError(f"the network {kind!r} is code of its own, which is imported only with trust=True")
    else:
        target = load_user_object(kind)
        if not (isinstance(target, type) and issubclass(target, Network)):
            raise FokkerError(f"{kind!r} is no network; make it a subclass of fokker.net.Network")
    net: Network = construct(target, f"network {kind}", (), {"seed": seed, **options})
    return net


__all__ = ["KINDS", "PRESETS", "DiT", "Features", "Network", "State", "UNet", "UNet2D", "build", "taps"]
