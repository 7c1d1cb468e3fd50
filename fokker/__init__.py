"""fokker: one algebra for diffusion models.

    import fokker as fk

Nouns live here (`fk.sample`, `fk.noise`, `fk.tune`, `fk.Denoiser`, ...), kinds of methods in sub-packages (`fk.solve`,
`fk.guide`, `fk.restore`, `fk.laws`, `fk.grids`, ...), and every method of the catalogue by its class name (`fk.VP`,
`fk.DPMSolverPP`). All of them are imported when first used: `import fokker` itself loads next to nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

# The nouns of the algebra and the functions that drive it. Methods are not listed here: the catalogue knows them.
_NOUNS = {
    "Brownian": "keyed",
    "Denoiser": "denoiser",
    "FokkerError": "errors",
    "Model": "model",
    "NetworkDenoiser": "denoiser",
    "OnProcess": "denoiser",
    "Plan": "plan",
    "Process": "process",
    "Run": "denoiser",
    "Solver": "solve",
    "Trace": "loop",
    "Wrapper": "denoiser",
    "as_denoiser": "denoiser",
    "from_diffusers": "adapt",
    "from_torch": "adapt",
    "load": "model",
    "log_prob": "likelihood",
    "noise": "keyed",
    "probe": "probing",
    "run": "loop",
    "sample": "loop",
    "tune": "solve.tune",
}


def __getattr__(name: str) -> Any:
    if name in _NOUNS:
        return getattr(import_module(f"fokker.{_NOUNS[name]}"), name)
    if not name.startswith("_"):
        if find_spec(f"fokker.{name}") is not None:
            return import_module(f"fokker.{name}")
        from fokker.catalogue import public

        return public(name)
    raise AttributeError(f"fokker has no public name {name!r}")


def __dir__() -> list[str]:
    from fokker.catalogue import lazy_names

    return sorted({*globals(), *_NOUNS, *lazy_names()[1]()})
