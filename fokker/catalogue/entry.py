"""From a name to an object: entries of the catalogue, classes in a user's own file, options checked before the call."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fokker.errors import FokkerError, unknown
from fokker.options import check_types


def load_object(entry: str) -> Any:
    """The object of an entry `module:Name` inside the package."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def load_user_object(name: str) -> Any:
    """The object of a user's own `module:Name` (also from the current folder) or `path/to/file.py:Name`."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute.isidentifier():
        raise FokkerError(f"{name!r} is no name of a class; write 'module:Class' or 'path/to/file.py:Class'")
    path = Path(place) if place.endswith(".py") else Path(*place.split(".")).with_suffix(".py")
    if place.endswith(".py"):
        if not path.is_file():
            raise FokkerError(f"no file {place!r} for {name!r}; write 'path/to/file.py:Class'")
        module = _from_file(path)
    else:
        module = _from_name(place, path)
    if not hasattr(module, attribute):
        raise unknown(f"name in {place}", attribute, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, attribute)


def _from_name(place: str, path: Path) -> ModuleType:
    """An importable module, else the file of that name in the current folder."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as missing:
        if missing.name != place.split(".")[0] and missing.name != place:
            raise FokkerError(f"{place!r} cannot be imported: {missing}; install what it needs") from missing
        if not path.is_file():
            raise FokkerError(f"no module {place!r}, neither installed nor as {str(path)!r} here") from missing
        return _from_file(path)
    except Exception as problem:
        raise _broken(place, problem) from problem


def _from_file(path: Path) -> ModuleType:
    source = path.read_bytes()
    name = f"fokker_user_{hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        # compiled here: importlib would take stale bytecode for a file of the same size edited within its clock's tick
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as problem:
        del sys.modules[name]
        raise _broken(str(path), problem) from problem
    return module


def _broken(place: str, problem: Exception) -> FokkerError:
    return FokkerError(f"importing {place!r} failed with {type(problem).__name__}: {problem}; mend that file first")


def build(target: Any, name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Call a class or function with options that were checked against its signature."""
    if not callable(target):
        raise FokkerError(f"{name!r} is a {type(target).__name__}, not a class or function")
    signature = inspect.signature(target)
    parameters = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for option in options:
            if option not in accepted:
                raise unknown(f"option of {name}", option, accepted)
    try:
        signature.bind(*arguments, **options)
    except TypeError as problem:
        raise FokkerError(f"{name}: {problem}; its arguments are {signature}") from problem
    check_types(target, name, options, arguments)
    return target(*arguments, **options)
