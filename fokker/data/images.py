"""A folder or tar of image files as a data set: listed at once, decoded when fetched."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from fokker.data.archive import Archive, Entry
from fokker.data.decode import Header, Pixels, colour, decode, header
from fokker.data.epochs import Shards
from fokker.data.listing import Listing, listing
from fokker.data.source import Condition, Indices, Source, as_index, to_float
from fokker.errors import FokkerError, unknown

T = TypeVar("T")
R = TypeVar("R")

_WORTH_A_THREAD = 2**14  # mean bytes of a file
_FULL_CHECK_BELOW = 2**30  # bytes of files that are decoded once before step 0 unless told otherwise


def open_images(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    split: str | None = None,
    on_bad: str = "stop",
    background: str | Sequence[int] = "white",
    cache: bool = False,
    verify: str | None = None,
    window: int | None = None,
) -> "Images":
    """A folder of images with optional class sub-folders, or tars of `class/name.jpg` or webdataset `key.jpg` + `key.cls`.

    size: (h, w) to which every image is resized and centre-cropped; without it all must have one size. channels: 1, 3 or 4
    (RGBA); by default 1 where every file is grey, else 3. background: the colour under transparent pixels, a name or (r, g,
    b). on_bad: "stop" refuses a set with a broken file and names it, "skip" leaves it out and lists it in `skipped`. verify:
    "full" decodes every file once now, "headers" reads sizes and endings only; by default full below 1 GiB. cache: keep the
    decoded pixels in memory as 8-bit. window: training reads this many tars at a time, in another order each epoch, and mixes
    what is in them, for disks on which reading anywhere is slow; without it every image comes from anywhere. Raises
    FokkerError.
    """
    if on_bad not in ("stop", "skip"):
        raise unknown("on_bad", on_bad, ("stop", "skip"))
    if channels not in (None, 1, 3, 4):
        raise FokkerError(f"channels={channels}; give 1 (grey), 3 (colour) or 4 (colour and opacity)")
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise FokkerError(f"size={size}; give (height, width) in pixels")
        size = (int(size[0]), int(size[1]))
    archive = Archive(path)
    listed = listing(archive, split)
    verify = verify or ("full" if sum(e.size for e in listed.entries) < _FULL_CHECK_BELOW else "headers")
    if verify not in ("full", "headers"):
        raise unknown("verify", verify, ("full", "headers"))
    found = Images(archive, listed, size, channels, on_bad, colour(background), cache, verify == "full")
    if window is not None:
        if window < 1 or not found.tars:
            raise FokkerError(f"window={window} on {path}; give 1 tar or more at a time, of a set that is made of tars")
        found.shards = Shards(np.asarray(found.tars, dtype=np.int64), window)
    return found


class Images(Source):
    """Image files behind the contract of a Source; made by `open_images`, which describes the options."""

    def __init__(
        self,
        archive: Archive,
        listed: Listing,
        size: tuple[int, int] | None,
        channels: int | None,
        on_bad: str,
        background: tuple[int, int, int],
        cache: bool,
        verify: bool,
    ) -> None:
        self.archive, self.background, self._resize = archive, background, size
        self.name, self.about = str(archive.path), "image files"
        heads = spread(self._head, listed.entries, threads(listed.entries))
        sizes = Counter(head[0].size for head in heads if not isinstance(head, str))
        shown = size or (sizes.most_common(1)[0][0] if sizes else (1, 1))
        colourful = any(head[0].colour for head in heads if not isinstance(head, str))
        self.shape = (channels or (3 if colourful else 1), *shown)
        bad: dict[int, str] = {}
        for i, head in enumerate(heads):
            if isinstance(head, str):
                bad[i] = head
            elif size is None and head[0].size != shown:
                bad[i] = f"{_by(head[0].size)} where most are {_by(shown)}"
        self._cached: Tensor | None = None
        if verify or cache:
            bad |= self._decode_all(listed, [i for i in range(len(heads)) if i not in bad], cache)
        self.skipped = tuple((listed.entries[i].name, why) for i, why in sorted(bad.items()))
        if self.skipped and (on_bad == "stop" or len(bad) == len(heads)):
            raise self._refusal(len(heads), len(sizes) > 1 and size is None)
        kept = [i for i in range(len(heads)) if i not in bad]
        self._listed = listed.keep(kept)
        self._sums = [head[1] for i in kept if not isinstance(head := heads[i], str)]
        self.labels = torch.from_numpy(self._listed.labels)
        self.classes = self._listed.classes
        self.conditions = {"label": Condition((), True, self.classes)} if self.classes else {}
        self.texts = {"caption": self._listed.captions} if self._listed.captions else {}

    def _head(self, entry: Entry) -> tuple[Header, int] | str:
        """The header and a checksum of the file's ends, or what is wrong with it."""
        try:
            start, end = self.archive.ends(entry)
            try:
                found = header(start, end)
            except OSError:
                if len(start) == entry.size:
                    raise
                found = header(self.archive.read(entry), end)
        except (OSError, SyntaxError, ValueError) as error:
            return reason(error, entry.size)
        return "truncated" if found.truncated else (found, crc32(end, crc32(start)))

    def _decode_all(self, listed: Listing, kept: list[int], cache: bool) -> dict[int, str]:
        """Decodes every item once, into memory where asked, and tells which failed."""
        store = np.empty((len(kept), *self.shape), dtype=np.uint8) if cache and _fits(len(kept), self.shape) else None

        def one(row: int) -> str:
            entry = listed.entries[kept[row]]
            try:
                pixels = self._pixels(entry)
            except OSError as error:
                return reason(error, entry.size)
            if store is not None:
                store[row] = pixels
            return ""

        faults = spread(one, range(len(kept)), threads(listed.entries))
        if store is not None:
            good = [row for row, why in enumerate(faults) if not why]
            self._cached = torch.from_numpy(store if len(good) == len(store) else store[good])
        return {kept[row]: why for row, why in enumerate(faults) if why}

    def _pixels(self, entry: Entry) -> Pixels:
        return decode(self.archive.read(entry), self.shape[0], self._resize, self.background)

    def _refusal(self, n: int, mixed: bool) -> FokkerError:
        shown = "; ".join(f"{name}: {why}" for name, why in self.skipped[:3])
        more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
        remedy = "give size=(h, w) to bring them to one size, " if mixed else ""
        return FokkerError(
            f"{len(self.skipped)} of {n} images in {self.name} cannot be used ({shown}{more}); "
            f"{remedy}repair them, or open with on_bad='skip'"
        )

    def __len__(self) -> int:
        return len(self._listed.entries)

    @property
    def files(self) -> tuple[str, ...]:
        """The name of each item's file."""
        return tuple(e.name for e in self._listed.entries)

    @property
    def tars(self) -> tuple[int, ...]:
        """For each item the number of the tar that it lies in; () where items are files of their own."""
        known: dict[str, int] = {}
        entries = self._listed.entries
        return () if any(e.offset < 0 for e in entries) else tuple(known.setdefault(e.path, len(known)) for e in entries)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Files in the set that are neither images nor read beside them."""
        return self._listed.ignored

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        index = as_index(indices, len(self))
        if self._cached is not None:
            pixels = self._cached[index]
        else:
            entries = [self._listed.entries[i] for i in index.tolist()]
            pixels = torch.from_numpy(np.stack(spread(self._fetch, entries, threads(entries))))
        return {"x": to_float(pixels), "label": self.labels[index]}

    def _fetch(self, entry: Entry) -> Pixels:
        try:
            return self._pixels(entry)
        except OSError as error:
            raise FokkerError(
                f"{entry.name} in {self.name} is broken ({reason(error, entry.size)}); "
                "run `fokker data check` on the set and repair it, or open it with verify='full', on_bad='skip'"
            ) from None

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(
            repr((self.shape, self._resize, self.background, self.classes)).encode(), digest_size=16
        )
        for entry, label, checksum in zip(self._listed.entries, self._listed.labels, self._sums, strict=True):
            digest.update(f"{entry.name} {entry.size} {label} {checksum}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def reason(error: Exception, size: int) -> str:
    """Why a file cannot be read, in a few words."""
    text = str(error)
    if size == 0:
        return "empty"
    if "truncated" in text or "unexpected end" in text.lower():
        return "truncated"
    if "cannot identify" in text:
        return "not an image"
    return f"broken: {text}" if text else "broken"


def _fits(n: int, shape: tuple[int, ...]) -> bool:
    needed = n * int(np.prod(shape))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.75 * memory:
        raise FokkerError(
            f"cache=True needs {needed / 2**30:.1f} GiB for {n} images and this machine has {memory / 2**30:.1f} GiB; "
            "open the set without it"
        )
    return True


def threads(entries: Sequence[Entry]) -> int:
    """How many threads decode these files: one for small ones, where handing over costs more than it saves."""
    heavy = sum(e.size for e in entries) >= _WORTH_A_THREAD * max(len(entries), 1)
    return min(8, os.cpu_count() or 1, len(entries) // 4) if heavy else 1


def spread(job: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """[job(i) for i in items], over threads if workers > 1: decoders release the interpreter lock."""
    if workers < 2:
        return [job(i) for i in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(job, items))
