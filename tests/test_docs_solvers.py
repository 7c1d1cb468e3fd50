"""The page of the solvers says what the registry says, and its example is a solver of the order that it states."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fokker as fk

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "solvers.md"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "_generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_solver_and_its_facts(generate: ModuleType) -> None:
    page = generate.on_page_markdown(PAGE.read_text())
    assert "generated:" not in page
    rows = {c[1].strip("` "): [x.strip() for x in c[2:6]] for c in (r.split("|") for r in page.splitlines()) if len(c) == 8}
    for name in fk.solve.names():
        solver = fk.solve.get(name)
        noise = "yes" if solver.stochastic else ""
        assert rows[name][:3] == [str(solver.order), str(solver.evaluations), noise], name
        if rows[name][3] == "exactly":
            fk.solve.get(name).plan(fk.VP(), fk.grids.logsnr(3)).inverse()


def test_what_is_recommended_exists(generate: ModuleType) -> None:
    known = {record.id for record in fk.catalogue.records()}
    assert set(generate.RECOMMENDED) <= known


def test_the_plot_is_there_and_small() -> None:
    plot = PAGE.with_suffix(".png")
    assert f"]({plot.name})" in PAGE.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size < 200_000


def test_the_example_has_the_order_that_it_states() -> None:
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[-1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names: dict[str, type[fk.Solver]] = {}
    exec(code, names)
    solver, law, process = names["Extrapolated"](), fk.laws.ring(), fk.VP()
    x_1 = process.start(fk.noise((64, 2), seed=0, dtype=torch.float64))
    truth = law.flow(process, x_1, 1.0, process.end)
    errors = []
    for steps in (64, 256):
        x_0 = fk.sample(law.denoiser(process), x_1, solver.plan(process, fk.grids.logsnr(steps)))
        errors.append((x_0 - truth).norm(dim=1).median())
    assert 1.8 < float(torch.log(errors[0] / errors[1])) / 1.3862943611 < 2.3
