"""Arrays in .npz and .safetensors files as a data set."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fokker.data.source import Arrays
from fokker.errors import FokkerError

_X_NAMES = ("x", "X", "images", "data", "arr_0")
_LABEL_NAMES = ("label", "labels", "y", "Y", "cls")


def open_arrays(
    path: str | os.PathLike[str], split: str | None = None, range: tuple[float, float] | None = None
) -> Arrays:
    """A .npz or .safetensors file of arrays with one row an item: `x`, optionally `label`, and any condition by its name.

    8-bit images (N, C, H, W) or (N, H, W, C) are scaled to [-1, 1]. Floats are taken as they are; `range=(lo, hi)` states
    that lo..hi is to become -1..1. split: "train" and "test" take `x_train`, `x_test` where the file has them, else "test" is
    every tenth row and "train" the others. Raises FokkerError where rows differ in number, values are not finite, or images
    of floats look like 0..1 or 0..255 and no range is given.
    """
    path = Path(path)
    arrays = _read(path)
    arrays, split = _part(arrays, split)
    key = next((k for k in _X_NAMES if k in arrays), None)
    if key is None:
        raise FokkerError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; name the array of samples 'x'")
    x = arrays.pop(key)
    tensors = {"x": torch.from_numpy(np.ascontiguousarray(_samples(x, path, range)))}
    classes: tuple[str, ...] = ()
    label = next((k for k in _LABEL_NAMES if k in arrays), None)
    if label is not None:
        numbers, classes = _labels(arrays.pop(label), path)
        tensors["label"] = numbers
    for name, value in arrays.items():
        if value.ndim and len(value) == len(x):
            kind = np.int64 if value.dtype.kind in "iub" else np.float32
            tensors[name] = torch.from_numpy(np.ascontiguousarray(value.astype(kind)))
        else:
            raise FokkerError(f"{path}: {name!r} has shape {value.shape} and there are {len(x)} samples; drop it")
    if split is not None and split != "all":
        rows = torch.arange(len(x))
        rows = rows[rows % 10 == 9] if split == "test" else rows[rows % 10 != 9]
        tensors = {k: v[rows] for k, v in tensors.items()}
    if len(tensors["x"]) == 0:
        raise FokkerError(f"{path} holds no samples in split={split!r}")
    values = tensors["x"]
    scaled = values.dtype == torch.uint8 or bool(values.abs().max() <= 1.0)
    return Arrays(tensors, str(path), "arrays from a file", classes, bounds=(-1.0, 1.0) if scaled else None)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FokkerError(f"{path} does not exist; give a .npz or .safetensors file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise FokkerError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise FokkerError(f"{path} cannot be read ({error}); save plain arrays with numpy.savez") from None


def _part(arrays: dict[str, np.ndarray], split: str | None) -> tuple[dict[str, np.ndarray], str | None]:
    """The arrays of one split, where the file names them so (x_train, x_test), and the split still to be made."""
    if split not in (None, "train", "test", "all"):
        raise FokkerError(f"split={split!r}; accepted: train, test, all")
    parts = [p for p in ("train", "test") if f"x_{p}" in arrays]
    if not parts:
        return arrays, split
    wanted = [split] if split in ("train", "test") else parts
    if wanted[0] not in parts:
        raise FokkerError(f"the file has x_{parts[0]} and no x_{wanted[0]}; open it with split='{parts[0]}'")
    names = {k.removesuffix(f"_{wanted[0]}") for k in arrays if k.endswith(f"_{wanted[0]}")}
    return {k: np.concatenate([arrays[f"{k}_{p}"] for p in wanted]) for k in names}, None


def _samples(x: np.ndarray, path: Path, range: tuple[float, float] | None) -> np.ndarray:
    """x as float32 or uint8, channels first, with its scale settled."""
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise FokkerError(f"{path}: samples of shape {x.shape} and type {x.dtype}; give numbers of shape (N, ...)")
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    if x.dtype == np.uint8 and range is None:
        return x
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        row = int(np.nonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0][0])
        raise FokkerError(f"{path}: sample {row} holds values that are not finite; remove it")
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if range is not None:
        if low < range[0] - 1e-6 or high > range[1] + 1e-6 or range[0] >= range[1]:
            raise FokkerError(
                f"{path}: values run from {low:g} to {high:g}, outside range={range}; state their true range"
            )
        return np.asarray((x - range[0]) * (2.0 / (range[1] - range[0])) - 1.0, dtype=np.float32)
    if x.ndim == 4 and x.shape[1] in (1, 3, 4) and low >= 0.0 and high > 0.0:
        top = 1 if high <= 1.0 else 255
        raise FokkerError(
            f"{path}: images of floats from {low:g} to {high:g}; say range=(0, {top}) to have them in [-1, 1], "
            "or range=(-1, 1) if they are so already"
        )
    return x


def _labels(label: np.ndarray, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    if label.dtype.kind in "US":
        names, numbers = np.unique(label.astype(str), return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int64)), tuple(str(n) for n in names)
    if label.ndim != 1 or label.dtype.kind not in "iu" or (label.size and label.min() < 0):
        raise FokkerError(
            f"{path}: labels of shape {label.shape} and type {label.dtype}; give class numbers from 0, (N,)"
        )
    top = int(label.max(initial=-1)) + 1
    return torch.from_numpy(label.astype(np.int64)), tuple(str(k) for k in np.arange(top))
