"""Scanned handwritten digits: 1,797 real 8x8 images that come with scikit-learn."""

import numpy as np
import torch
from numpy.typing import NDArray

from fokker.data.draws import SPLITS, Draw
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

TRAIN = 1400


def build(n: int | None = None, seed: int = 0, split: str = "train") -> Arrays:
    """x (1, 8, 8) in [-1, 1] as pixel / 8 - 1, label 0..9.

    The split is fixed and stratified: 1,400 train and 397 test items, whatever the seed. With n, the first n items in an
    order that the seed draws; without, all of the split in the file's order. Raises FokkerError where n is too large.

    Reference: Alpaydin, Kaynak 1998, UCI Optical Recognition of Handwritten Digits (its test part, as in scikit-learn).
    """
    from sklearn.datasets import load_digits

    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    pixels, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    train = _train_mask(labels)
    rows = np.nonzero({"train": train, "test": ~train, "all": np.ones_like(train)}[split])[0]
    if n is not None:
        if not 1 <= n <= len(rows):
            raise FokkerError(f"n={n} digits of split {split!r}, which has {len(rows)}; give n from 1 to {len(rows)}")
        rows = rows[np.argsort(Draw("digits", seed, rows).uniform("order"), kind="stable")][:n]
    x = torch.from_numpy((pixels[rows] / 8.0 - 1.0).astype(np.float32)).reshape(-1, 1, 8, 8)
    return Arrays(
        {"x": x, "label": torch.from_numpy(labels[rows])},
        "digits",
        "scikit-learn's 1,797 handwritten digits",
        classes=[str(k) for k in range(10)],
    )


def _train_mask(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The 1,400 training items: the same share of every class, the largest remainders rounded up."""
    counts = np.bincount(labels)
    exact = counts * TRAIN / len(labels)
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: TRAIN - quota.sum()]] += 1
    keys = Draw("digits", 0, np.arange(len(labels))).uniform("split")
    mask = np.zeros(len(labels), dtype=bool)
    for c in range(len(counts)):
        members = np.nonzero(labels == c)[0]
        mask[members[np.argsort(keys[members], kind="stable")[: quota[c]]]] = True
    return mask
