"""Options that came as text or from a file, checked against the signature that they are meant for."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from fokker.errors import FokkerError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "null"}
_PLAIN = (bool, int, float, str, list, tuple, dict, NoneType)


def check_types(
    target: Callable[..., Any], name: str, options: Mapping[str, Any], arguments: Sequence[Any] = ()
) -> None:
    """FokkerError where a plain value (number, word, list, null) cannot be what the signature of `target` says.

    Only numbers, words, truth values, null and sequences are judged; tensors and objects pass, and so does everything that the
    signature does not annotate in these terms. Unknown options are left to the caller.
    """
    signature = inspect.signature(target)
    try:
        bound = signature.bind_partial(*arguments, **options).arguments
    except TypeError:
        return
    for key, value in bound.items():
        annotation = signature.parameters[key].annotation
        kinds = [kind for kind in (get_args(annotation) or (annotation,)) if getattr(kind, "__name__", "") != "Tensor"]
        if _sequence(annotation):
            kinds = [annotation]
        wanted = [_wanted(kind) for kind in kinds]
        if not kinds or not all(wanted) or type(value) not in _PLAIN or any(_fits(value, kind) for kind in kinds):
            continue
        raise FokkerError(f"{name}: {key}={value!r} is not accepted; give {' or '.join(map(str, wanted))}")


def _sequence(kind: Any) -> bool:
    return get_origin(kind) in (Sequence, list, tuple)


def _wanted(kind: Any) -> str | None:
    """What a kind is called, or None for one that is not judged."""
    return "a list" if _sequence(kind) else _WORDS.get(kind)


def _fits(value: object, kind: Any) -> bool:
    if _sequence(kind):
        inner = next((k for k in get_args(kind) if k in _WORDS), None)
        return isinstance(value, list | tuple) and (inner is None or all(_fits(v, inner) for v in value))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)
