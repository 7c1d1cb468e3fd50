"""What is wrong with a data set, told before a training starts."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fokker.data.archive import Archive, Entry
from fokker.data.decode import EXTENSIONS, Header, colour, decode, header
from fokker.data.images import reason, spread, threads
from fokker.data.listing import extension, listing
from fokker.errors import FokkerError

_ADVICE = {
    "broken": "cannot be decoded: replace it, or open the set with on_bad='skip'",
    "truncated": "ends too early: copy it again, or open the set with on_bad='skip'",
    "odd size": "differs from most: give size=(h, w), or open the set with on_bad='skip'",
    "transparent": "is composited on the background colour, {background}",
    "rotated": "is turned upright as its EXIF orientation says",
    "grey": "has no colour among coloured images: its three channels will be equal",
    "animated": "has several frames: the first is used",
    "duplicate": "has the same pixels as another file",
    "unknown extension": "is not read",
    "layout": "",
}


@dataclass(frozen=True)
class Finding:
    """One thing about one file; `stops` says whether the set is refused because of it."""

    kind: str
    file: str
    detail: str
    stops: bool


@dataclass(frozen=True)
class Report:
    """What `check` found. `ok` is true where nothing stops the loader; `table()` is for people, `json()` for scripts."""

    path: str
    images: int
    sizes: dict[str, int]
    classes: dict[str, int]
    background: str
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the set opens as it is."""
        return not any(f.stops for f in self.findings)

    def of(self, kind: str) -> tuple[str, ...]:
        """The files with a finding of this kind."""
        return tuple(f.file for f in self.findings if f.kind == kind)

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps({**asdict(self), "ok": self.ok}, ensure_ascii=False, indent=1)

    def table(self, limit: int = 8) -> str:
        """The report as text: a summary, and for each kind of finding at most `limit` files."""
        sizes = ", ".join(f"{n} x {s}" for s, n in list(self.sizes.items())[:4]) + (
            " ..." if len(self.sizes) > 4 else ""
        )
        lines = [self.path, f"  images   {self.images} ({sizes})"]
        if self.classes:
            few = ", ".join(f"{c} {n}" for c, n in list(self.classes.items())[:10])
            lines.append(f"  classes  {len(self.classes)}: {few}{' ...' if len(self.classes) > 10 else ''}")
        for kind in _ADVICE:
            found = [f for f in self.findings if f.kind == kind]
            if not found:
                continue
            advice = _ADVICE[kind].format(background=self.background)
            mark = "stops" if any(f.stops for f in found) else "note "
            lines.append(f"  {mark}    {kind}: {len(found)}" + (f" ({advice})" if advice else ""))
            lines += [f"             {f.file}" + (f"  {f.detail}" if f.detail else "") for f in found[:limit]]
            if len(found) > limit:
                lines.append(f"             and {len(found) - limit} more")
        lines.append(
            "  ok: the set opens as it is" if self.ok else "  not ok: the set is refused until this is settled"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Seen:
    entry: Entry
    head: Header | None
    fault: str
    digest: bytes
    transparent: bool


def check(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, background: str | Sequence[int] = "white"
) -> Report:
    """Reads every file of a set once and reports what a training would trip over or should know.

    Broken and truncated files, and files of another size than most (unless `size` will resize them), stop a set; transparent,
    EXIF-rotated, grey-among-coloured, animated, duplicate and unread files are noted. Files of arrays are opened and their
    values checked. Raises FokkerError only where there is nothing to check.
    """
    rgb = colour(background)
    shown = background if isinstance(background, str) else f"rgb{rgb}"
    if Path(path).suffix in (".npz", ".safetensors"):
        return _check_arrays(path, shown)
    archive = Archive(path)
    images = [e for e in archive.entries if extension(e.name) in EXTENSIONS]
    if not images:
        listing(archive)
    seen = spread(lambda entry: _look(archive, entry), images, threads(images))
    sizes = Counter(s.head.size for s in seen if s.head and not s.fault)
    findings = list(_findings(seen, sizes, resized=size is not None))
    classes: dict[str, int] = {}
    try:
        listed = listing(archive)
        findings += [Finding("unknown extension", name, "", False) for name in listed.ignored]
        counts = np.bincount(listed.labels[listed.labels >= 0], minlength=len(listed.classes))
        classes = {c: int(k) for c, k in zip(listed.classes, counts, strict=True)}
        findings += [Finding("layout", c, "class without images", False) for c, k in classes.items() if k == 0]
    except FokkerError as error:
        findings.append(Finding("layout", os.fspath(path), str(error), True))
    table = {f"{h}x{w}": k for (h, w), k in sizes.most_common()}
    return Report(os.fspath(path), len(images), table, classes, shown, tuple(findings))


def _look(archive: Archive, entry: Entry) -> _Seen:
    raw = archive.read(entry)
    head: Header | None = None
    try:
        head = header(raw)
        pixels = decode(raw, 4)
    except (OSError, SyntaxError, ValueError) as error:
        fault = "truncated" if head is not None and head.truncated else reason(error, entry.size)
        return _Seen(entry, head, fault, b"", False)
    fault = "truncated" if head.truncated else ""
    digest = hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()
    return _Seen(entry, head, fault, digest, head.alpha and int(pixels[3].min()) < 255)


def _findings(seen: Sequence[_Seen], sizes: "Counter[tuple[int, int]]", resized: bool) -> Iterator[Finding]:
    usual = sizes.most_common(1)[0][0] if sizes else (0, 0)
    colourful = any(s.head.colour for s in seen if s.head and not s.fault)
    first: dict[bytes, str] = {}
    for s in seen:
        name, head = s.entry.name, s.head
        if s.fault or head is None:
            yield Finding("truncated" if s.fault == "truncated" else "broken", name, s.fault, True)
            continue
        if head.size != usual:
            detail = f"{head.size[0]}x{head.size[1]} where most are {usual[0]}x{usual[1]}"
            yield Finding("odd size", name, detail, not resized)
        if s.transparent:
            yield Finding("transparent", name, "", False)
        if head.rotated:
            yield Finding("rotated", name, "", False)
        if colourful and not head.colour:
            yield Finding("grey", name, "", False)
        if head.frames > 1:
            yield Finding("animated", name, f"{head.frames} frames", False)
        if s.digest in first:
            yield Finding("duplicate", name, f"same as {first[s.digest]}", False)
        first.setdefault(s.digest, name)


def _check_arrays(path: str | os.PathLike[str], background: str) -> Report:
    from fokker.data.arrays import open_arrays

    try:
        d = open_arrays(path)
    except FokkerError as error:
        return Report(os.fspath(path), 0, {}, {}, background, (Finding("layout", os.fspath(path), str(error), True),))
    counts = np.bincount(d.label[d.label >= 0].numpy(), minlength=len(d.classes))
    classes = {c: int(k) for c, k in zip(d.classes, counts, strict=True)}
    shape = "x".join(str(s) for s in d.shape)
    digests = Counter(hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in d.tensors["x"])
    copies = sum(k - 1 for k in digests.values())
    findings = [Finding("duplicate", os.fspath(path), f"{copies} rows", False)] if copies else []
    return Report(os.fspath(path), len(d), {shape: len(d)}, classes, background, tuple(findings))
