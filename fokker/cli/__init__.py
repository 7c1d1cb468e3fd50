"""The command line: `fokker COMMAND --help` shows each command with an example.

Exit codes: 0 when the command did what it says, 1 when it ran and the answer is no (a check that fails, bits that
differ) or a fault of ours stopped it, 2 for bad input, 130 when interrupted. Whatever stops a command is one sentence
on stderr; the traceback appears with `--debug`. One file holds one group of commands and imports what is slow only when
it runs.
"""

import sys
from collections.abc import Sequence

from fokker.cli.failure import NAME, Failure, as_failure

__all__ = ["Failure", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for place, word in enumerate(words) if word != "--debug" or place > end]
    try:
        from fokker.cli.app import app

        code = app(args=words or ["--help"], prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except BaseException as problem:
        failure = as_failure(problem)
        if debug and not isinstance(problem, SystemExit):
            raise
        if failure.sentence:
            print(f"{NAME}: {failure.sentence}", file=sys.stderr)
        return failure.code
    return code if isinstance(code, int) else 0


def run() -> None:
    """The console script."""
    sys.exit(main())
