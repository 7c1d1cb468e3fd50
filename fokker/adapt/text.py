"""Text encoders and tokenizers as a conditioner: words become the conditions that the network takes.

The encoding is the pipeline's own (`encode_prompt`): lengths, layers, masks, and what stands for no text differ from model to
model, and are theirs to say.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fokker.adapt.folder import quiet
from fokker.errors import FokkerError

Found = dict[str, Tensor]
Encode = Callable[[Any, list[str], torch.device, bool], Found]


def _plain(pipeline: Any, texts: list[str], device: torch.device, none: bool) -> Found:
    return {"tokens": pipeline.encode_prompt(texts, device, 1, none)[none]}


def _pooled(pipeline: Any, texts: list[str], device: torch.device, none: bool) -> Found:
    found = pipeline.encode_prompt(texts, device=device, do_classifier_free_guidance=none)
    return {"tokens": found[none], "pooled": found[2 + none]}


def _three(pipeline: Any, texts: list[str], device: torch.device, none: bool) -> Found:
    found = pipeline.encode_prompt(texts, None, None, device=device, do_classifier_free_guidance=none)
    return {"tokens": found[none], "pooled": found[2 + none]}


def _masked(pipeline: Any, texts: list[str], device: torch.device, none: bool) -> Found:
    with quiet():  # the pipeline cleans captions where it has the packages for it, and says so where it has not
        found = pipeline.encode_prompt(texts, none, device=device, clean_caption=True)
    return {"tokens": found[2 * none], "token_mask": found[2 * none + 1].bool()}


def _flux(pipeline: Any, texts: list[str], device: torch.device, none: bool) -> Found:
    tokens, pooled, _ = pipeline.encode_prompt(texts, None, device=device)
    return {"tokens": tokens, "pooled": pooled}


# What each kind of network is told; with `none`, of the negative prompt that stands for no text.
ENCODE: dict[str, Encode] = {"plain": _plain, "pooled": _pooled, "three": _three, "masked": _masked, "flux": _flux}


class TextConditioner(nn.Module):
    """`conditioner(["a cat", ...])` gives the network's conditions, one row a text; `empty()` those of no text, one row.

    `kind` is a key of `ENCODE`. Raises FokkerError for what is no text.
    """

    def __init__(self, pipeline: Any, kind: str) -> None:
        super().__init__()
        parts = {name: getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
        self.encoders = nn.ModuleDict({k: v for k, v in parts.items() if isinstance(v, nn.Module)})
        self.pipeline, self.kind = pipeline, kind
        self._empty: Found | None = None

    def forward(self, texts: str | Sequence[str]) -> Found:
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise FokkerError("give prompts as strings, one a sample")
        return self._encode(texts, False)

    def empty(self) -> Found:
        """The conditions of no text, (1, ...) each."""
        if self._empty is None:
            self._empty = {k: v[:1] for k, v in self._encode([""], True).items()}
        return self._empty

    @torch.no_grad()
    def _encode(self, texts: list[str], none: bool) -> Found:
        device = next(self.encoders.parameters()).device
        return ENCODE[self.kind](self.pipeline, texts, device, none)
