"""THE CONTRACT of guidance, and how to add one.

A guidance is a `Wrapper`: it answers E[x_0 | x_t] with a belief tilted towards a condition, and knows no solver. Strengths are
called `scale`; scale 1 is off and must then cost one evaluation. What it remembers between steps is created in `reset(run)`, so
that no run sees another. One class in one file and a record in `fokker/catalogue` are all it takes:

    class MyGuidance(Wrapper):
        def __init__(self, inner: Denoiser, scale: float = 1.0) -> None:
            super().__init__(inner)
            self.scale = scale

        def x0(self, x_t, t, **cond):
            ...
"""

from typing import Any

from fokker.denoiser import Denoiser, Run, Wrapper


def get(name: str, denoiser: Denoiser, **options: Any) -> Wrapper:
    """The guidance of that name around `denoiser`; unknown names and options raise FokkerError."""
    from fokker import catalogue

    wrapper: Wrapper = catalogue.resolve("guidance", name, denoiser, **options)
    return wrapper


def names() -> list[str]:
    """The names of all guidances."""
    from fokker import catalogue

    return catalogue.names("guidance")


def __getattr__(name: str) -> Any:
    from fokker.catalogue import public

    return public(name, {"guidance"})


__all__ = ["Denoiser", "Run", "Wrapper", "get", "names"]
