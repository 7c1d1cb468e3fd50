"""Files that are whole or are refused: safetensors with one JSON header, a digest over every byte, and atomic replacement.

The header is one string in the file's metadata. It begins with the SHA-256 of the file in which these 64 characters are
zeros, so a file needs no companion and any altered byte is noticed. Writing goes to `NAME.tmp` in the same folder, is
flushed to the disk and then renamed, so a reader finds the old file or the new one and nothing between.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError

Header = dict[str, Any]
_BLANK = "0" * 64
_MARK = rb'{\"sha256\":\"'  # as it stands in the file: JSON inside a JSON string
_CHUNK = 1 << 22


def write(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON `header` to `path`, atomically; the digest is added here.

    Raises FokkerError if `header` is not JSON.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = json.dumps({"sha256": _BLANK, **header}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FokkerError(f"the header of {path} is not JSON ({error}); give numbers, strings, lists and mappings") from None
    whole = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(path.name + ".tmp")
    save_file(whole, temporary, metadata={"fokker": text})
    with open(temporary, "r+b") as file:
        at, digest = _digest(file)
        file.seek(at)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    replace(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Rename a finished temporary file and make the folder's entry last."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], Header]:
    """The tensors and the header of `path`; raises FokkerError unless every byte is as it was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    try:
        return load_file(path, device=str(device)), header
    except SafetensorError as error:
        raise _refused(path, f"is not readable ({error})") from None


def read_header(path: str | Path) -> Header:
    """The header alone, after the digest of the whole file was verified."""
    path = Path(path)
    if not path.is_file():
        raise FokkerError(f"there is no file {path}; give the path of a file that fokker wrote")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = file.read(min(size, 100_000_000))
        try:
            header: Header = json.loads(json.loads(head)["__metadata__"]["fokker"])
            stated = header.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _refused(path, "is truncated, altered or not from fokker (no readable header)") from None
        if not isinstance(stated, str) or _digest(file)[1] != stated:
            raise _refused(path, "is truncated or altered (its SHA-256 does not match)")
    return header


def check_fields(own: Mapping[str, Tensor], given: Mapping[str, Tensor], origin: str | Path) -> None:
    """Raise FokkerError unless `given` has the names and shapes of `own`: n of n."""
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shared = own.keys() & given.keys()
    if missing or extra:
        raise FokkerError(
            f"{origin} matches {len(shared)} of {len(own)} fields (missing: {_some(missing)}; extra: {_some(extra)}); "
            "load it with the configuration that it was made with"
        )
    for name, value in own.items():
        if value.shape != given[name].shape:
            raise FokkerError(
                f"{origin}: {name} has shape {tuple(given[name].shape)}, here it is {tuple(value.shape)}; "
                "load it with the configuration that it was made with"
            )


def _some(names: list[str]) -> str:
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refused(path: str | Path, why: str) -> FokkerError:
    return FokkerError(f"{path} {why}; restore it from a copy or write it again")


def _digest(file: Any) -> tuple[int, str]:
    """(where the digest stands, the SHA-256 of the file with zeros there)."""
    file.seek(0)
    first = file.read(8 + _CHUNK)
    mark = first.find(_MARK)
    at = mark + len(_MARK)
    if mark >= 0:
        first = first[:at] + _BLANK.encode() + first[at + 64 :]
    sha = hashlib.sha256(first)
    while chunk := file.read(_CHUNK):
        sha.update(chunk)
    return at, sha.hexdigest()
