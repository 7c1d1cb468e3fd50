"""The one exception users see: a sentence that says what was given, what is accepted, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class FokkerError(ValueError):
    """A mistake in the caller's input, told in one sentence. The command line prints it and exits with 2."""


def unknown(kind: str, given: object, accepted: Iterable[str]) -> FokkerError:
    """The error for a name that does not exist, with the nearest one that does."""
    names = sorted(accepted)
    near = get_close_matches(str(given), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:200]) + (f" and {len(names) - 200} more" if len(names) > 200 else "")
    hint = f"did you mean {near[0]!r}?" if near else f"accepted: {listed or 'none'}"
    return FokkerError(f"unknown {kind} {str(given)!r}; {hint}")
