"""What every file of the package keeps to: light import, no global randomness, no pickle, readable length."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fokker"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# functions that draw from torch's global generator unless they are given one
DRAWS = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "rand_like",
    "randn_like",
    "randint_like",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
}
DRAWS_IN_PLACE = {
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
}
NUMPY_SEEDED = {"default_rng", "Generator", "Philox", "PCG64", "SeedSequence", "BitGenerator"}
LOADS = {"torch.load", "torch.save", "numpy.load", "np.load"}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def faults(source: str) -> list[str]:
    """The lines of a source that use the global generators, or read what may be a pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            wrong = {m.partition(".")[0] for m in modules} & {
                "pickle",
                "joblib",
                "dill",
                "cloudpickle",
                "shelve",
                "random",
            }
            found += [f"line {node.lineno}: import of {name}" for name in sorted(wrong)]
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), {word.arg for word in node.keywords}
        last = name.rpartition(".")[2]
        seeded = "generator" in options
        if name.startswith("torch.") and name.count(".") == 1 and last in DRAWS and not seeded:
            found.append(f"line {node.lineno}: {name} without generator=")
        # torch.nn.init draws from the global generator, which the builder of networks seeds and puts back
        drawn = isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS_IN_PLACE and "init." not in name
        if drawn and not seeded:
            found.append(f"line {node.lineno}: {last} without generator=")
        if re.fullmatch(r"(np|numpy)\.random\.\w+", name) and last not in NUMPY_SEEDED:
            found.append(f"line {node.lineno}: {name}")
        if name in ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed_all"):
            found.append(f"line {node.lineno}: {name}")
        refused = any(word.arg == "allow_pickle" and is_false(word.value) for word in node.keywords)
        if name in LOADS and not refused:
            found.append(f"line {node.lineno}: {name} may read or write a pickle")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_global_randomness_and_no_pickle(path: Path) -> None:
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch\nx = torch.randn(3)",
        "import torch\ntorch.load('x')",
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.random.rand(3)",
        "import numpy as np\nnp.load('x.npy')",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.empty(3).normal_()",
    ],
)
def test_the_rules_find_what_they_forbid(line: str) -> None:
    assert faults(line)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_readable_in_one_sitting(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    wrong = [n for n, line in enumerate(lines, 1) if re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", line)]
    assert wrong == []


def test_import_costs_little_more_than_torch() -> None:
    """`import fokker` in at most 0.1 s when torch is there already: best of five processes."""
    code = "import time, torch; a = time.perf_counter(); import fokker; print(time.perf_counter() - a)"
    assert min(float(python(code)) for _ in range(5)) <= 0.1


def test_import_leaves_heavy_parts_alone() -> None:
    heavy = (
        "matplotlib",
        "sklearn",
        "scipy",
        "PIL",
        "diffusers",
        "transformers",
        "torchmetrics",
        "torchdiffeq",
        "accelerate",
        "pandas",
        "tensorboard",
        "rich",
    )
    code = f"import sys, fokker; print([m for m in {heavy!r} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_version_is_stated_once_and_agrees() -> None:
    import fokker

    assert fokker.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    from packaging.requirements import Requirement

    rows = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {name.lower().replace("_", "-"): version for name, _, version in (row.partition("==") for row in rows)}
    assert all(pins.values())
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [row for extra in ("hf", "ot", "audio", "docs", "dev") for row in extras[extra]]
    for requirement in map(Requirement, wanted):
        if requirement.name != "fokker":
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement


def test_everything_that_is_not_python_is_shipped() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fokker"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    others = {path for path in files if path.suffix != ".py"}
    assert others <= shipped
    for folder in {path.parent for path in SOURCES}:
        assert (folder / "__init__.py").exists(), f"{folder} is no package and would not be shipped"
