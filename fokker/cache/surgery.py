"""Where a U-Net may be cut: the names of what lies below a skip connection, and of its encoder.

Our `UNet`, and any network built as diffusers' are, from `down_blocks`, `mid_block` and `up_blocks` of resnets, attentions,
down- and upsamplers. Only names leave this file; `fokker.net.taps` does the rest.
"""

from collections.abc import Iterator

from torch import nn

from fokker.errors import FokkerError
from fokker.net.unet import UNet


def find(module: nn.Module) -> nn.Module:
    """The one U-Net inside a denoiser; raises FokkerError if there is none, or several."""
    found = {id(m): m for m in module.modules() if is_unet(m)}
    if len(found) != 1:
        raise FokkerError(
            f"{len(found)} U-Nets were found in this denoiser; a feature cache needs exactly one, ours or one with "
            "down_blocks, mid_block and up_blocks as diffusers builds them"
        )
    return next(iter(found.values()))


def is_unet(module: nn.Module) -> bool:
    """Whether this module is a U-Net that can be cut."""
    parts = ("conv_in", "down_blocks", "mid_block", "up_blocks")
    return isinstance(module, UNet) or all(getattr(module, name, None) is not None for name in parts)


def skips(net: nn.Module) -> int:
    """How many skip connections there are; number 0 is the outermost."""
    return len(net.down) if isinstance(net, UNet) else sum(1 for _ in _down(net)) + 1


def below(net: nn.Module, level: int) -> list[str]:
    """The modules below the skip connection `level`: what a step that computes the skips 0 .. level afresh leaves out.

    Raises FokkerError unless 0 <= level < skips(net).
    """
    if not 0 <= level < skips(net):
        raise FokkerError(f"level={level} is not accepted; this network has the skip connections 0 to {skips(net) - 1}")
    if isinstance(net, UNet):
        deeper = range(level + 1, len(net.down))
        return [*(f"down.{i}" for i in deeper), "mid", *(f"up.{i}" for i in reversed(deeper))]
    names, skip = [], 0
    for units in _down(net):
        skip += 1
        names += units if skip > level else []
    names.append("mid_block")
    skip += 1
    for units, takes in _up(net):
        skip -= takes
        names += units if skip > level else []
    return names


def encoder(net: nn.Module) -> list[str]:
    """Everything up to and with the middle."""
    if isinstance(net, UNet):
        return ["inp", *(f"down.{i}" for i in range(len(net.down))), "mid"]
    return ["conv_in", *(f"down_blocks.{i}" for i, _ in enumerate(_blocks(net, "down_blocks"))), "mid_block"]


def decoder(net: nn.Module) -> list[str]:
    """Everything after the middle but the output convolution, in the order in which it runs."""
    if isinstance(net, UNet):
        return [f"up.{i}" for i in reversed(range(len(net.up)))]
    return [f"up_blocks.{i}" for i, _ in enumerate(_blocks(net, "up_blocks"))]


def middle(net: nn.Module) -> str:
    """The bottleneck."""
    return "mid" if isinstance(net, UNet) else "mid_block"


def _blocks(net: nn.Module, name: str) -> list[nn.Module]:
    blocks = getattr(net, name)
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _columns(block: nn.Module, prefix: str) -> Iterator[list[str]]:
    """The modules of a block that run one after another: each resnet with the attention or motion layer beside it."""
    lists = {name: child for name, child in block.named_children() if isinstance(child, nn.ModuleList)}
    if "resnets" not in lists:
        raise FokkerError(
            f"{prefix} is a {type(block).__name__} without resnets, whose parts are not known; choose modules="
        )
    n = len(lists["resnets"])
    beside = [name for name, child in lists.items() if len(child) == n and name not in ("downsamplers", "upsamplers")]
    for j in range(n):
        yield [f"{prefix}.{name}.{j}" for name in beside]


def _down(net: nn.Module) -> Iterator[list[str]]:
    """Groups of modules on the way down, each of which ends with a skip."""
    for i, block in enumerate(_blocks(net, "down_blocks")):
        yield from _columns(block, f"down_blocks.{i}")
        if getattr(block, "downsamplers", None) is not None:
            yield [f"down_blocks.{i}.downsamplers.0"]


def _up(net: nn.Module) -> Iterator[tuple[list[str], int]]:
    """Groups of modules on the way up, each with the number of skips that it takes."""
    for i, block in enumerate(_blocks(net, "up_blocks")):
        for units in _columns(block, f"up_blocks.{i}"):
            yield units, 1
        if getattr(block, "upsamplers", None) is not None:
            yield [f"up_blocks.{i}.upsamplers.0"], 0
