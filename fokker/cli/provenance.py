"""Where an output came from: version, full configuration, seed and model, written into the file itself.

Nothing in it depends on the day, the folder or the machine's name, so the same run writes the same bytes. A PNG carries it as
the text chunk `fokker`, a safetensors file in its header, an npz archive as the entry `fokker`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fokker.errors import FokkerError

CHUNK = "fokker"
KINDS = (".png", ".safetensors", ".npz")


def record(command: str, options: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """The record of a run: `options` repeat it, `found` (model hash, evaluations) let a rerun see whether it did."""
    import torch

    from fokker import __version__

    return {
        "command": command,
        "options": dict(options),
        **found,
        "fokker": __version__,
        "torch": str(torch.__version__),
    }


def digest(pixels: NDArray[Any]) -> str:
    """SHA-256 of an array's type, shape and bytes."""
    head = f"{pixels.dtype.str}{pixels.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """The record that a file carries; raises FokkerError for a file that fokker did not write."""
    if not path.is_file():
        raise FokkerError(f"there is no file {str(path)!r}; give a picture or an array that fokker wrote")
    text = {".png": _png, ".safetensors": _safetensors, ".npz": _npz}.get(path.suffix.lower(), _none)(path)
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"command", "options", "digest"} <= set(found):
        raise FokkerError(f"{str(path)!r} does not say how it was made; only files written by fokker can be rerun")
    return found


def _png(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return str(getattr(image, "text", {}).get(CHUNK, ""))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise FokkerError(
            f"{str(path)!r} is not a readable PNG ({problem}); give a file that fokker wrote"
        ) from problem


def _safetensors(path: Path) -> str:
    from fokker import store

    return json.dumps(store.read_header(path).get(CHUNK))


def _npz(path: Path) -> str:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            return str(archive[CHUNK]) if CHUNK in archive else ""
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as problem:
        raise FokkerError(f"{str(path)!r} is not a readable npz archive; give a file that fokker wrote") from problem


def _none(path: Path) -> str:
    raise FokkerError(f"{str(path)!r} is no {', '.join(KINDS[:-1])} or {KINDS[-1]} file; give one that fokker wrote")


def check_suffix(path: Path) -> None:
    """FokkerError unless outputs can be written to this name."""
    if path.suffix.lower() not in KINDS:
        raise FokkerError(
            f"--out {str(path)!r} has an ending that is not known; use {', '.join(KINDS[:-1])} or {KINDS[-1]}"
        )
    if path.is_dir():
        raise FokkerError(f"--out {str(path)!r} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise FokkerError(f"--out {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
