"""Patches of two real photographs that come with scikit-learn: a Chinese temple and a dahlia."""

import numpy as np
import torch
from numpy.typing import NDArray

from fokker.data.draws import Draw, split_ids
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

NAMES = ("china", "flower")
_TEST_BAND = (0.40, 0.65)  # rows with roofs, trees and petals in them, so that the test set looks like the train set


def photograph(name: str, zoom: int = 1) -> NDArray[np.uint8]:
    """One whole photograph, uint8 (3, 427 // zoom, 640 // zoom), reduced by averaging zoom x zoom pixels.

    Reference: scikit-learn's `load_sample_images`; china.jpg by Robert Aron, flower.jpg by dany13 (CC BY 2.0).
    """
    from sklearn.datasets import load_sample_image

    if name not in NAMES:
        raise unknown("photograph", name, NAMES)
    image = np.asarray(load_sample_image(f"{name}.jpg"))
    if not 1 <= zoom <= 8:
        raise FokkerError(f"zoom={zoom}; give a whole number from 1 to 8")
    h, w = image.shape[0] // zoom, image.shape[1] // zoom
    cells = image[: h * zoom, : w * zoom].reshape(h, zoom, w, zoom, 3).astype(np.float64)
    return np.asarray(np.rint(cells.mean(axis=(1, 3))).transpose(2, 0, 1), dtype=np.uint8)


def build(
    n: int = 4096,
    seed: int = 0,
    split: str = "train",
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    zoom: int = 2,
    flip: bool = True,
) -> Arrays:
    """x (channels, h, w) in [-1, 1]: patches at random places of the photographs reduced by `zoom`; label: which of the two.

    Test patches come from the rows between 0.40 and 0.65 of each photograph's height, train patches from above and below, so
    no pixel is in both; "all" draws from the whole. flip: mirror every second patch, on average. channels: 3, or 1 for the
    luminance 0.299 R + 0.587 G + 0.114 B.
    """
    if channels not in (1, 3):
        raise FokkerError(f"channels={channels}; give 1 (luminance) or 3 (colour)")
    h, w = int(size[0]), int(size[1])
    ids = split_ids(n, split)
    draw = Draw("photos", seed, ids)
    which, place = draw.integers("photograph", len(NAMES)), draw.uniform("place", 2)
    mirrored = draw.uniform("flip") < 0.5 * flip
    x = np.empty((n, 3, h, w), dtype=np.uint8)
    for k, name in enumerate(NAMES):
        image = photograph(name, zoom)
        top, bottom = (round(image.shape[1] * share) for share in _TEST_BAND)
        bands = {"train": [(0, top), (bottom, image.shape[1])], "test": [(top, bottom)], "all": [(0, image.shape[1])]}[
            split
        ]
        starts = np.concatenate([np.arange(low, high - h + 1) for low, high in bands])
        if not len(starts) or image.shape[2] < w:
            tallest = max(high - low for low, high in bands)
            raise FokkerError(
                f"patches of {h}x{w} do not fit the {split} region of {tallest}x{image.shape[2]}; give a smaller zoom or size"
            )
        windows = np.lib.stride_tricks.sliding_window_view(image, (h, w), axis=(1, 2))
        mine = np.nonzero(which == k)[0]
        rows = starts[(place[mine, 0] * len(starts)).astype(np.int64)]
        columns = (place[mine, 1] * windows.shape[2]).astype(np.int64)
        x[mine] = windows[:, rows, columns].transpose(1, 0, 2, 3)
    x[mirrored] = x[mirrored, :, :, ::-1]
    if channels == 1:
        x = np.rint(np.einsum("nchw,c->nhw", x.astype(np.float64), [0.299, 0.587, 0.114]))[:, None].astype(np.uint8)
    return Arrays(
        {"x": torch.from_numpy(x), "label": torch.from_numpy(which)},
        "photos",
        "patches of scikit-learn's two photographs",
        classes=NAMES,
    )
