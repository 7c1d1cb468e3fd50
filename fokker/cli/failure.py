"""Whatever can stop a command, as one sentence and an exit code."""

import sys
from dataclasses import dataclass

import typer

from fokker.errors import FokkerError, unknown

NAME = "fokker"
BAD_INPUT, FAULT, INTERRUPTED, PIPE = 2, 1, 130, 141

# typer carries its own copy of click in some versions and imports click in others; this is the class in either
ClickException = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class Failure:
    """What is printed (nothing, if there is nothing to say) and the exit code."""

    sentence: str
    code: int


def as_failure(problem: BaseException) -> Failure:
    """The sentence and the code of anything that was raised."""
    if isinstance(problem, SystemExit):
        return Failure("", problem.code if isinstance(problem.code, int) else FAULT)
    if isinstance(problem, typer.Exit):
        return Failure("", problem.exit_code)
    if isinstance(problem, KeyboardInterrupt | typer.Abort):
        return Failure("interrupted", INTERRUPTED)
    if isinstance(problem, BrokenPipeError):
        _mute()
        return Failure("", PIPE)
    if isinstance(problem, ClickException):
        return Failure(_usage(problem), BAD_INPUT)
    if isinstance(problem, FokkerError):
        return Failure(one_line(problem), BAD_INPUT)
    if isinstance(problem, UnicodeError):
        return Failure(f"the input is not text in UTF-8 ({one_line(problem)})", BAD_INPUT)
    if isinstance(problem, OSError) and problem.filename is not None:
        return Failure(f"{str(problem.filename)!r}: {one_line(problem.strerror or problem)}", BAD_INPUT)
    if isinstance(problem, ModuleNotFoundError) and (extra := _EXTRA.get((problem.name or "").partition(".")[0])):
        return Failure(f"this needs {problem.name}; install it with: pip install 'fokker[{extra}]'", BAD_INPUT)
    if isinstance(problem, RecursionError):
        return Failure("the input is nested too deeply to be read", BAD_INPUT)
    if isinstance(problem, MemoryError) or "OutOfMemory" in type(problem).__name__ or "can't allocate memory" in str(problem):
        return Failure("out of memory; ask for fewer samples at a time (-n) or a smaller --batch", FAULT)
    text = f"{type(problem).__name__}: {one_line(problem)}"
    return Failure(f"a fault of fokker, not of the input ({text}); run it again with --debug for the traceback", FAULT)


_EXTRA = {
    "diffusers": "hf",
    "transformers": "hf",
    "datasets": "hf",
    "peft": "hf",
    "gradio": "studio",
    "ot": "ot",
    "soundfile": "audio",
    "rdkit": "chem",
    "onnx": "dev",
    "onnxruntime": "dev",
}


def one_line(problem: object) -> str:
    """The message without line breaks and without a full stop."""
    return " ".join(str(problem).split()).removesuffix(".")


def _usage(problem: BaseException) -> str:
    """A complaint of the parser, with the nearest option or command that exists and where to read more."""
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else NAME
    option = getattr(problem, "option_name", None)
    if type(problem).__name__ == "NoSuchOption" and option and context is not None:
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        text = one_line(unknown("option", option, [*known, "--help"]))
    else:
        format_message = getattr(problem, "format_message", lambda: str(problem))
        text = one_line(format_message())
        text = (text[:1].lower() + text[1:]).replace(". Did", "; did").replace(". ", "; ")
    return f"{text} (see '{path} --help')"


def _mute() -> None:
    """Nobody reads stdout any more: give the interpreter something else to flush when it ends."""
    import os

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
