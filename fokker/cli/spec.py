"""Small languages of option values: seeds, and a method with its options.

Seeds: `7`, `0..15` (both ends included), `1,5,9..12`.

A method: `ddim`, `apg:7.5`, `dpmpp-3m:order=2`, `mask:0.5,seed=3`; a class of the user's own comes as
`mymodule:MySolver` or `path/file.py:MySolver`, with options after one more colon.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from fokker.errors import FokkerError

MOST_SEEDS = 1_000_000
_CLASS = re.compile(r"^([^:=,]+:[A-Za-z_]\w*)(?::(.*))?$")


def seeds(text: str) -> list[int]:
    """The seeds of `7`, `0..15` or `1,5,9..12`, in order."""
    found: list[int] = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\.\.(\d{1,18}))?\s*", part)
        if match is None:
            raise FokkerError(f"seeds {text!r} are not understood; write 7, 0..15 or 1,5,9..12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST_SEEDS:
            raise FokkerError(f"the range {part.strip()!r} is empty or above {MOST_SEEDS} seeds; write first..last")
        found.extend(range(first, last + 1))
    return found


def numbers(text: str, what: str = "numbers") -> list[int]:
    """Whole numbers above zero, `5,8,10` or `1..4`."""
    found = seeds(text) if re.fullmatch(r"[\d.,\s]+", text) else []
    if not found or min(found) < 1:
        raise FokkerError(f"{what} {text!r} are not whole numbers above 0; write 5,8,10 or 1..4")
    return found


@dataclass(frozen=True)
class Spec:
    """A method as it was named on the command line: its name, its positional values and its options."""

    name: str
    values: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def method(text: str) -> Spec:
    """`apg:7.5,eta=0` as a Spec; a value is a number, true, false, null or a word."""
    own = _CLASS.match(text)
    # a lower-case word after the colon is an option's value only when the name is not a module or a file
    if own is not None and (own[1].partition(":")[2][0].isupper() or "." in own[1].partition(":")[0]):
        name, tail = own[1], own[2] or ""
    else:
        name, _, tail = text.partition(":")
    if not name.strip():
        raise FokkerError(f"{text!r} names no method; write a name such as ddim, or name:option=value")
    values: list[Any] = []
    options: dict[str, Any] = {}
    # a comma inside brackets belongs to a list
    for part in filter(None, (piece.strip() for piece in re.split(r",(?![^\[]*\])", tail))):
        key, equals, value = part.partition("=")
        if not equals:
            if options:
                raise FokkerError(f"{part!r} in {text!r} comes after named options; put plain values first")
            values.append(literal(part))
        elif not key.strip().isidentifier():
            raise FokkerError(f"{part!r} in {text!r} is no option; write name=value")
        else:
            options[key.strip()] = literal(value.strip())
    return Spec(name.strip(), tuple(values), options)


def literal(text: str) -> Any:
    """A number, true, false, null or a list of numbers where it reads as one, else the word itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    numbers = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return value if numbers or isinstance(value, int | float | bool | None) else text


def size(text: str) -> tuple[int, int]:
    """`512x768` as (height, width)."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    if match is None or not int(match[1]) or not int(match[2]):
        raise FokkerError(f"size {text!r} is not understood; write HEIGHTxWIDTH, such as 512x768")
    return int(match[1]), int(match[2])
