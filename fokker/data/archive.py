"""Files in a folder or in uncompressed tars, listed once and read at random without unpacking."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fokker.errors import FokkerError

_BLOCK = 512
_KEPT_OPEN = 128  # tars; a set may have more of them than a process may have files open


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its name inside the set, where its bytes lie, and how many there are."""

    name: str
    path: str
    offset: int
    size: int


class Archive:
    """The files of a folder (every one below it) or of one or several tars, sorted by name; hidden files are left out.

    Reads use positions, never a shared cursor, so threads and forked or spawned workers may share one. Raises FokkerError
    for a path that is neither, and for compressed tars, which cannot be read at random.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FokkerError(f"{self.path} does not exist; give a folder, a .tar, a .npz, a .safetensors or toy:NAME")
        entries = list(_tar(self.path) if self.path.is_file() else _folder(self.path))
        self.entries = tuple(sorted(entries, key=lambda e: e.name))
        self._open: dict[str, int] = {}
        self._owner = os.getpid()

    def read(self, entry: Entry) -> bytes:
        """The bytes of one file."""
        if entry.offset < 0:
            with open(entry.path, "rb") as file:
                return file.read()
        return self._at(entry.path, (entry.size, entry.offset))[0]

    def ends(self, entry: Entry, first: int = 2**17, last: int = 512) -> tuple[bytes, bytes]:
        """The first and the last bytes of one file, enough for its header and to see whether it is whole."""
        if entry.size <= first:
            raw = self.read(entry)
            return raw, raw[-last:]
        if entry.offset >= 0:
            start = entry.offset
            raw, tail = self._at(entry.path, (first, start), (last, start + entry.size - last))
            return raw, tail
        with open(entry.path, "rb") as file:
            return os.pread(file.fileno(), first, 0), os.pread(file.fileno(), last, entry.size - last)

    def _at(self, path: str, *places: tuple[int, int]) -> list[bytes]:
        """Runs of (size, offset) bytes of a tar."""
        if self._owner != os.getpid():  # a forked worker opens its own
            self._open, self._owner = {}, os.getpid()
        if path not in self._open:
            if len(self._open) >= _KEPT_OPEN:
                with open(path, "rb") as file:
                    return [os.pread(file.fileno(), size, offset) for size, offset in places]
            self._open[path] = os.open(path, os.O_RDONLY)
        return [os.pread(self._open[path], size, offset) for size, offset in places]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}, "_owner": -1}

    def __del__(self) -> None:
        if getattr(self, "_owner", -1) == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)


def _hidden(name: str) -> bool:
    parts = name.split("/")
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1] in ("Thumbs.db", "desktop.ini")


def _folder(root: Path) -> Iterator[Entry]:
    shards = []
    for folder, below, files in os.walk(root, followlinks=True):
        below.sort()
        for file in files:
            path = os.path.join(folder, file)
            name = os.path.relpath(path, root).replace(os.sep, "/")
            if name.endswith(".tar"):
                shards.append(path)
            elif not _hidden(name):
                yield Entry(name, path, -1, os.path.getsize(path))
    for shard in sorted(shards):
        yield from _tar(Path(shard))


def _tar(path: Path) -> Iterator[Entry]:
    if path.suffix != ".tar":
        raise FokkerError(
            f"{path} is not a folder or an uncompressed .tar; unpack it (gunzip, unzip, zstd -d) or repack it"
        )
    try:
        entries = list(_plain_tar(path))
    except _Unusual:
        entries = list(_any_tar(path))
    if not entries:
        raise FokkerError(f"{path} holds no files; is it a tar?")
    with open(path, "rb") as file:
        file.seek(-min(_BLOCK, path.stat().st_size), os.SEEK_END)
        if any(file.read()):
            raise FokkerError(f"{path} has no end mark after {len(entries)} files: it was cut short; copy it again")
    yield from entries


class _Unusual(Exception):
    """A header that the fast reader leaves to the standard library."""


def _plain_tar(path: Path) -> Iterator[Entry]:
    """The common case, five times faster than tarfile: plain headers with short names."""
    total, where = path.stat().st_size, str(path)
    with open(path, "rb") as file:
        descriptor, offset = file.fileno(), 0
        while offset + _BLOCK <= total:
            head = os.pread(descriptor, _BLOCK, offset)
            if head[0] == 0 and not any(head):
                return
            kind = head[156:157]
            if head[257:262] != b"ustar" or kind not in b"0\x005" or head[345]:
                raise _Unusual
            try:
                checksum = int(head[148:156].split(b"\0", 1)[0], 8)
                size = int(head[124:136].split(b"\0", 1)[0], 8)
            except ValueError:
                raise _Unusual from None
            if checksum != sum(head) - sum(head[148:156]) + 8 * 32:
                raise _Unusual
            name = head[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape").removeprefix("./")
            if kind != b"5" and not _hidden(name):
                yield Entry(name, where, offset + _BLOCK, min(size, max(0, total - offset - _BLOCK)))
            offset += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _any_tar(path: Path) -> Iterator[Entry]:
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isreg() and not _hidden(name):
                    size = min(member.size, max(0, total - member.offset_data))
                    yield Entry(name, str(path), member.offset_data, size)
    except tarfile.ReadError as error:
        raise FokkerError(f"{path} cannot be read as a tar ({error}); was the copy cut short?") from None
