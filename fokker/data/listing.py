"""Which files of an archive are items, and what their folders and side-car files say of them."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fokker.data.archive import Archive, Entry
from fokker.data.decode import EXTENSIONS
from fokker.errors import FokkerError, unknown

SIDECARS = frozenset({"cls", "json", "txt"})
_PARTS = frozenset({"train", "test", "val", "valid", "validation"})
_LABEL_KEYS = ("label", "cls", "class")
_CAPTION_KEYS = ("caption", "text")


@dataclass(frozen=True)
class Listing:
    """The items of a set in their order, with labels (-1: none), class names, captions, and files that are not used."""

    entries: tuple[Entry, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    captions: tuple[str, ...]
    ignored: tuple[str, ...]

    def keep(self, chosen: Sequence[int]) -> "Listing":
        """The same classes with only the chosen items."""
        captions = tuple(self.captions[i] for i in chosen) if self.captions else ()
        labels = self.labels[np.asarray(chosen, dtype=np.int64)]
        return Listing(tuple(self.entries[i] for i in chosen), labels, self.classes, captions, self.ignored)


def extension(name: str) -> str:
    """The lower-case ending of a file name, without the dot."""
    return name.rsplit("/", 1)[-1].rpartition(".")[2].lower() if "." in name else ""


def _key(name: str) -> str:
    """What a webdataset groups by: the path up to the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def listing(archive: Archive, split: str | None = None) -> Listing:
    """Sorts an archive into items and the rest.

    A label comes from a side-car (`key.cls`, `key.json`) where there is one, else from the first folder below the one that
    all images share. Top folders called train, test or val are splits; without them `split="test"` is the tenth of the
    items that a hash of their names picks, and `split="train"` the others. Raises FokkerError for a set without images.
    """
    images: list[Entry] = []
    others: list[Entry] = []
    for entry in archive.entries:
        (images if extension(entry.name) in EXTENSIONS else others).append(entry)
    if not images:
        raise FokkerError(f"{archive.path} holds no images; known endings: {', '.join(sorted(EXTENSIONS))}")
    stems = {_key(e.name) for e in images} if others else set()
    used = [e for e in others if extension(e.name) in SIDECARS and _key(e.name) in stems]
    ignored = {e.name for e in others} - {e.name for e in used}

    shared = _shared_folder(e.name for e in images)
    folders = [e.name[len(shared) :].split("/")[:-1] for e in images]
    tops = {f[0] if f else "" for f in folders}
    if tops <= _PARTS:
        if split is not None:
            if split not in tops:
                raise unknown("split", split, tops)
            chosen = [i for i, f in enumerate(folders) if f[0] == split]
            images, folders = [images[i] for i in chosen], [folders[i] for i in chosen]
        folders = [f[1:] for f in folders]
    elif split is not None:
        if split not in ("train", "test", "all"):
            raise unknown("split", split, ("train", "test", "all"))
        held_out = [crc32(e.name[len(shared) :].encode("utf-8", "surrogateescape")) % 10 == 0 for e in images]
        chosen = [i for i, out in enumerate(held_out) if split == "all" or out == (split == "test")]
        images, folders = [images[i] for i in chosen], [folders[i] for i in chosen]
        if not images:
            raise FokkerError(f"split={split!r} of {archive.path} is empty: it has too few images to hold a tenth out")

    given, captions = _sidecar_facts(archive, images, used)
    if given is None and any(folders):
        if not all(folders):
            loose = next(e.name for e, f in zip(images, folders, strict=True) if not f)
            raise FokkerError(
                f"{archive.path} has images in class folders and beside them ({loose}); "
                "move them into a class folder, or all of them out"
            )
        given = [f[0] for f in folders]
    labels, classes = _number(given, len(images))
    return Listing(tuple(images), labels, classes, captions, tuple(sorted(ignored)))


def _shared_folder(names: Iterable[str]) -> str:
    folder = os.path.commonpath({n.rpartition("/")[0] or "." for n in names})
    return "" if folder in ("", ".") else folder + "/"


def _sidecar_facts(
    archive: Archive, images: Sequence[Entry], used: Sequence[Entry]
) -> tuple[list[int | str] | None, tuple[str, ...]]:
    """Labels and captions from side-car files, in the order of the images; None and () where there are none."""
    labels: dict[str, int | str] = {}
    captions: dict[str, str] = {}
    for entry in used:
        key, kind = _key(entry.name), extension(entry.name)
        text = archive.read(entry).decode("utf-8", "replace").strip()
        if kind == "txt":
            captions[key] = text
        elif kind == "cls":
            labels[key] = int(text) if text.lstrip("-").isdigit() else text
        else:
            try:
                facts = json.loads(text)
            except json.JSONDecodeError as error:
                raise FokkerError(
                    f"{entry.name} in {archive.path} is not JSON ({error}); repair or remove it"
                ) from None
            if isinstance(facts, dict):
                for field in _LABEL_KEYS:
                    if isinstance(facts.get(field), int | str):
                        labels[key] = facts[field]
                for field in _CAPTION_KEYS:
                    if isinstance(facts.get(field), str):
                        captions[key] = facts[field]
    keys = [_key(e.name) for e in images]
    without = [k for k in keys if k not in labels]
    if labels and without:
        raise FokkerError(
            f"{len(without)} of {len(keys)} images have no label beside them ({without[0]}); label all or none"
        )
    given = [labels[k] for k in keys] if labels else None
    return given, tuple(captions.get(k, "") for k in keys) if captions else ()


def _number(given: Sequence[int | str] | None, n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as 0..k-1: numbers keep their value, names are numbered in alphabetical order."""
    if given is None:
        return np.full(n, -1, dtype=np.int64), ()
    if all(isinstance(g, int) for g in given):
        numbers = np.asarray(given, dtype=np.int64)
        if numbers.min() < 0:
            raise FokkerError(f"a label is {int(numbers.min())}; class numbers start at 0")
        return numbers, tuple(str(k) for k in range(int(numbers.max()) + 1))
    names = sorted({str(g) for g in given})
    where = {name: k for k, name in enumerate(names)}
    return np.asarray([where[str(g)] for g in given], dtype=np.int64), tuple(names)
