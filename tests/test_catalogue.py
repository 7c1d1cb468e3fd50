"""The catalogue: every published system once, names that resolve, statuses that follow from measurements alone."""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fokker as fk
from fokker import catalogue, checks
from fokker.catalogue import measured
from fokker.catalogue.record import load
from fokker.checks import Criterion, Outcome, Report, SeedRun
from fokker.cite import cite, paragraph
from fokker.errors import FokkerError

FAMILIES = {
    "acceleration": 9,
    "control": 21,
    "discrete": 6,
    "distillation": 11,
    "domains": 9,
    "editing": 16,
    "foundations": 26,
    "inverse": 15,
    "latent": 18,
    "perception": 17,
    "restoration": 18,
    "solvers": 16,
}
SYSTEMS = catalogue.records(systems_only=True)
BUILT = catalogue.records(planned=False)


def test_every_published_system_is_there_once() -> None:
    assert len(SYSTEMS) == sum(FAMILIES.values()) == 182
    assert len({record.id for record in catalogue.records()}) == len(catalogue.records())
    assert {name: len(catalogue.records(name, systems_only=True)) for name in catalogue.families()} == FAMILIES
    assert len({record.arxiv for record in SYSTEMS}) == 182
    assert len({record.title for record in SYSTEMS}) == 182


@pytest.mark.parametrize("record", catalogue.records(), ids=lambda record: record.id)
def test_a_record_is_well_formed(record: catalogue.Record) -> None:
    assert re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", record.id)
    assert not record.system or re.fullmatch(r"[a-z0-9-]+", record.id)
    assert record.title and record.title == record.title.strip()
    assert not record.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", record.arxiv)
    assert record.arxiv or not record.system
    assert 1 <= int(record.arxiv[2:4] or 1) <= 12 if record.arxiv else True
    assert record.kind in catalogue.KINDS
    assert "others" not in record.authors[:-1]
    if record.system:
        assert 60 < len(record.claim) < 700, "a claim is one to three sentences with numbers"
        assert re.search(r"\d", record.claim), "a claim states the numbers expected"


@pytest.mark.parametrize("record", BUILT, ids=lambda record: record.id)
def test_every_entry_imports_and_takes_its_options(record: catalogue.Record) -> None:
    target = catalogue.entry_class(record)
    assert callable(target)
    if record.kind == "solver":
        assert catalogue.resolve("solver", record.id) is not None


def test_every_check_has_a_record_with_an_entry() -> None:
    known = {record.id: record for record in SYSTEMS}
    for identifier in checks.checked():
        assert identifier in known, f"fokker/checks has {identifier}, the catalogue has no such system"
        assert known[identifier].entry, f"{identifier} has a check and no entry"


def test_every_check_module_keeps_the_contract() -> None:
    for identifier in checks.checked():
        module = checks.load(identifier)
        assert module.__doc__ and "null" in module.__doc__.lower(), f"{identifier}: the docstring says what the null is"
        assert isinstance(module.EXPECT, str) and len(module.EXPECT) > 10, identifier


def test_reading_everything_takes_less_than_30_ms() -> None:
    # in a process of its own, as a user meets it; processor time and the best of five, since the machine may be busy
    code = "import time, fokker.catalogue as c; t = time.process_time(); c.records(); print(time.process_time() - t)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout) for _ in range(5)]
    assert min(seconds) < 0.030


def test_importing_fokker_reads_no_record() -> None:
    code = "import sys, fokker; print('fokker.catalogue' in sys.modules, 'tomllib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


# names


def test_a_name_gives_the_instance_with_the_options_of_its_record() -> None:
    two, three = catalogue.resolve("solver", "dpmpp-2m"), catalogue.resolve("solver", "dpmpp-3m")
    assert type(two) is type(three) and (two.order, three.order) == (2, 3)
    assert catalogue.resolve("solver", "dpmpp-2m", order=1).order == 1
    assert catalogue.resolve("grid", "karras", 7, rho=5.0).steps == 7


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: catalogue.get("dpm-solver-p"), "did you mean 'dpm-solver-pp'"),
        (lambda: catalogue.resolve("solver", "dpmp-2m"), "did you mean 'dpmpp-2m'"),
        (lambda: catalogue.resolve("solver", "karras"), "'karras' is a grid, not a solver"),
        (lambda: catalogue.resolve("solver", "ddim", etaa=0.5), "did you mean 'eta'"),
        (lambda: catalogue.resolve("grid", "karras"), "missing a required argument: 'steps'"),
        (lambda: catalogue.records(family="solver"), "did you mean 'solvers'"),
        (lambda: catalogue.records(kind="solvers"), "did you mean 'solver'"),
        (lambda: catalogue.resolve("solver", "nowhere.py:Mine"), "no file 'nowhere.py'"),
        (lambda: catalogue.resolve("solver", "no_such_module:Mine"), "no module 'no_such_module'"),
        (lambda: catalogue.resolve("solver", "fokker.solve.onestep:DDMI"), "did you mean 'DDIM'"),
        (lambda: catalogue.resolve("solver", "fokker.solve:"), "write 'module:Class'"),
    ],
)
def test_a_wrong_name_is_told_what_would_be_right(call, says: str) -> None:
    with pytest.raises(FokkerError) as error:
        call()
    assert says in str(error.value)


def test_a_planned_system_is_said_to_be_planned() -> None:
    planned = next(record for record in SYSTEMS if not record.entry)
    with pytest.raises(FokkerError, match="is planned"):
        catalogue.resolve(planned.kind, planned.id)


OWN = """
from dataclasses import dataclass
from fokker.solve import Solver

@dataclass(frozen=True)
class MySolver(Solver):
    weight: float = 1.0
"""


def test_a_class_of_the_users_own_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_own_solver.py"
    file.write_text(OWN)
    by_file = catalogue.resolve("solver", f"{file}:MySolver", weight=2.0)
    assert by_file.weight == 2.0
    assert catalogue.find("solver", f"{file}:MySolver")[0] is type(by_file), "one file is imported once"
    monkeypatch.chdir(tmp_path)  # a console script does not have the current folder on its path
    assert catalogue.resolve("solver", "my_own_solver:MySolver").weight == 1.0
    assert isinstance(fk.solve.get("my_own_solver:MySolver"), fk.Solver)
    with pytest.raises(FokkerError, match="did you mean 'weight'"):
        catalogue.resolve("solver", f"{file}:MySolver", wieght=2.0)
    with pytest.raises(FokkerError, match="did you mean 'MySolver'"):
        catalogue.resolve("solver", f"{file}:MySolvr")
    file.write_text(OWN.replace("1.0", "3.0"))
    assert catalogue.resolve("solver", f"{file}:MySolver").weight == 3.0, "an edited file is read again"


def test_a_users_file_that_does_not_import_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(FokkerError, match=r"ZeroDivisionError: division by zero; mend that file"):
        catalogue.resolve("solver", f"{tmp_path / 'broken.py'}:MySolver")


def test_classes_are_public_by_their_name() -> None:
    from fokker.process import VP

    assert fk.VP is VP and catalogue.public("VP") is VP
    getattr_fn, dir_fn = catalogue.lazy_names("solver")
    assert getattr_fn("DDIM").__name__ == "DDIM" and "DDIM" in dir_fn() and "VP" not in dir_fn()
    for name in ("VP", "_DDIM", "Ddim"):
        with pytest.raises(AttributeError):
            getattr_fn(name)
    with pytest.raises(FokkerError):
        catalogue.lazy_names("solvers")


def test_one_class_name_means_one_class() -> None:
    where: dict[str, str] = {}
    for record in BUILT:
        assert where.setdefault(record.name, record.entry) == record.entry, f"{record.name} names two classes"


def test_a_bad_record_is_refused(tmp_path: Path) -> None:
    good = "[[record]]\nid = 'a'\ntitle = 'A'\nkind = 'solver'\n"
    for bad, says in (
        (good.replace("'solver'", "'solvr'"), "did you mean 'solver'"),
        (good + "entri = 'a:B'\n", "did you mean 'entry'"),
        (good + "entry = 'a.B'\n", "'module:Name'"),
    ):
        path = tmp_path / f"{abs(hash(bad))}.toml"
        path.write_text(bad)
        with pytest.raises(FokkerError, match=says):
            load(path)


# verdicts


def outcome(value: float, measured_value: float = 1.0) -> Outcome:
    return Outcome({"m": measured_value}, {"b": 2.0}, [("ratio", value, "<=", 0.6), ("slope", 2.0, ">=", 1.8)])


def test_a_verdict_is_computed_from_the_criteria() -> None:
    assert outcome(0.6).passed and not outcome(0.61).passed
    assert not Outcome({"m": 1.0}, {}, []).passed, "without a criterion nothing was checked"
    assert not Outcome({}, {}, [Criterion("equal", 1.0, "==", 1.0 + 1e-15)]).passed
    assert [c.holds for c in checks.within("slope", 2.3, 1.8, 2.2)] == [True, False]
    assert not checks.exactly("same bits", False).holds
    with pytest.raises(FokkerError, match="unknown comparison"):
        Criterion("x", 1.0, "=<", 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", ["<=", "<", ">=", ">", "=="])
def test_nothing_passes_on_numbers_that_are_not_finite(bad: float, op: str) -> None:
    assert not Criterion("x", bad, op, 1.0).holds
    assert not Criterion("x", 1.0, op, bad).holds
    assert not outcome(0.1, measured_value=bad).passed


# the runner, on checks of our own


GOOD = '''"""Twice the seed stays small; the null is the number itself made large."""
from fokker.checks import Criterion, Outcome
EXPECT = "twice the seed is at most 10"
def check(seed, null=False):
    value = (100.0 if null else 2.0) * (seed + 1)
    return Outcome({"twice": value}, {"seed": float(seed)}, [Criterion("twice", value, "<=", 10.0)])
'''


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> str:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(checks, "__path__", [str(tmp_path)])
    monkeypatch.setattr(checks, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.delitem(sys.modules, f"fokker.checks.{name}", raising=False)
    return name.replace("_", "-")


def test_a_check_runs_at_three_seeds_and_its_null_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = made(tmp_path, monkeypatch, "of_ours", GOOD)
    assert checks.checked() == ["of-ours"] and checks.has_check(name)
    report, null = checks.reproduce(name), checks.reproduce(name, null=True)
    assert report.passed and report.ok and not null.passed and null.ok
    plain = report.as_json()
    assert plain["measured"] == {"twice": 4.0} and plain["baseline"] == {"seed": 1.0} and plain["passed"] is True
    assert plain["expectation"].startswith("twice") and len(plain["runs"]) == 3 and plain["commit"] is not None
    text = "\n".join(report.lines())
    assert "holds  twice: 6 <= 10" in text and "verdict: pass" in text
    assert "FAILS  twice: 100 <= 10" in "\n".join(null.lines())
    assert not checks.reproduce(name, seeds=(3, 9)).passed, "one seed that fails fails the check"


def test_a_null_that_passes_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = made(tmp_path, monkeypatch, "too_weak", GOOD.replace("100.0 if null", "2.0 if null"))
    assert not checks.reproduce(name, null=True).ok


def test_a_check_that_raises_fails_and_a_null_that_crashes_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made(tmp_path, monkeypatch, "that_crashes", GOOD.replace("    value", "    1 / 0\n    value"))
    report, null = checks.reproduce(name), checks.reproduce(name, null=True)
    assert not report.ok and not null.ok
    assert "ZeroDivisionError at that_crashes.py:5" in report.runs[0].error
    refusal = "    from fokker.errors import FokkerError\n    raise FokkerError('x')\n"
    name = made(tmp_path, monkeypatch, "that_refuses", GOOD.replace("    value", refusal + "    value"))
    assert not checks.reproduce(name).ok and checks.reproduce(name, null=True).ok


def test_all_checks_are_kept_after_each_and_others_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, monkeypatch, "of_ours", GOOD)
    path = tmp_path / "measured.json"
    measured.write({"another": {"passed": True}}, path)
    data = checks.reproduce_all(path)
    assert data == measured.read(path) and set(data) == {"another", "of-ours"}
    assert data["of-ours"]["null_ok"] is True and data["of-ours"]["null_run"]["passed"] is False


def test_checks_in_processes_of_their_own_measure_the_same(tmp_path: Path) -> None:
    """Two at once give every report, and the numbers of one after the other."""

    def numbers(jobs: int) -> dict:
        path, order = tmp_path / f"{jobs}.json", []
        data = checks.reproduce_all(path, ["dpm-solver", "adaptive-guidance"], (0,), lambda r: order.append(r.id), jobs)
        assert sorted(order) == ["adaptive-guidance"] * 2 + ["dpm-solver"] * 2 and data == measured.read(path)
        return {name: (last["measured"], last["null_run"]["measured"]) for name, last in data.items()}

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert numbers(2) == numbers(1)
    finally:
        torch.set_num_threads(torch_threads)


def test_an_unknown_check_is_refused_with_the_near_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, monkeypatch, "of_ours", GOOD)
    with pytest.raises(FokkerError, match="did you mean 'of-ours'"):
        checks.load("of-our")
    assert not checks.has_check("../catalogue/record")


# statuses


def measurement(passed: bool = True) -> dict:
    run = SeedRun(0, 0.1, outcome(0.5 if passed else 0.7))
    runs = tuple(SeedRun(seed, run.seconds, run.outcome) for seed in (0, 1, 2))
    null_runs = tuple(SeedRun(seed, run.seconds, outcome(0.9)) for seed in (0, 1, 2))
    where = {"date": "2025-01-01", "commit": "abc", "hardware": "a | b", "torch": "2", "threads": 1, "version": "0"}
    report = Report("dpm-solver-pp", False, "ratio <= 0.6", runs, "digest", where)
    return measured.add({}, report, Report("dpm-solver-pp", True, "ratio <= 0.6", null_runs, "digest", where))


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ({}, "works", ""),
        ({"null_ok": False}, "not reproduced", "the null did not fail"),
        ({"seeds": [0, 1]}, "not reproduced", "2 seeds of 3"),
        ({"seeds": [0, 0, 0]}, "not reproduced", "1 seeds of 3"),
        ({"passed": False}, "not reproduced", "not finite"),
        ({"passed": "yes"}, "not reproduced", ""),
    ],
)
def test_a_status_follows_from_the_measurement(
    change: dict, status: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "has_check", lambda identifier: identifier == "dpm-solver-pp")
    data = copy.deepcopy(measurement())
    data["dpm-solver-pp"] |= change
    assert catalogue.status("dpm-solver-pp", data) == status
    assert why in measured.reason(data["dpm-solver-pp"])


def test_what_is_missing_makes_it_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    data = measurement()
    monkeypatch.setattr(checks, "has_check", lambda identifier: True)
    assert catalogue.status("dpm-solver-pp", {}) == "planned"
    planned = next(record for record in SYSTEMS if not record.entry)
    assert catalogue.status(planned.id, {planned.id: data["dpm-solver-pp"]}) == "planned"
    monkeypatch.setattr(checks, "has_check", lambda identifier: False)
    assert catalogue.status("dpm-solver-pp", data) == "planned"


def test_a_failed_measurement_tells_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "has_check", lambda identifier: identifier == "dpm-solver-pp")
    data = measurement(passed=False)
    assert catalogue.status("dpm-solver-pp", data) == "not reproduced"
    assert "ratio 0.7, not <= 0.6 (seed 0)" in measured.reason(data["dpm-solver-pp"])
    page = measured.render(data)
    assert page == measured.render(data)
    assert "[dpm-solver-pp](https://arxiv.org/abs/2211.01095) | not reproduced" in page
    assert "`dpm-solver-pp`: ratio 0.7, not <= 0.6" in page and "0 works, 1 not reproduced, 181 planned" in page
    assert catalogue.count(data) == {"works": 0, "not reproduced": 1, "planned": 181}


def test_records_as_rows_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "has_check", lambda identifier: identifier == "dpm-solver-pp")
    data = measurement()
    rows = catalogue.table(SYSTEMS, data)
    assert len(rows) == 182 and all(row["status"] in measured.STATUSES for row in rows)
    plain = catalogue.as_json("dpm-solver-pp", data)
    assert plain["status"] == "works" and plain["last"]["measured"] == {"m": 1.0} and plain["stale"] is True
    assert {"id", "title", "arxiv", "family", "kind", "entry", "claim", "authors", "year"} <= set(plain)
    assert plain["year"] == 2022


def test_measured_data_is_strict_json_and_a_torn_file_is_refused(tmp_path: Path) -> None:
    run = SeedRun(0, 0.1, outcome(math.nan, math.inf))
    report = Report("dpm-solver-pp", False, "x", (run,), "d", {})
    data = measured.add({}, report, Report("dpm-solver-pp", True, "x", (run,), "d", {}))
    path = tmp_path / "measured.json"
    measured.write(data, path)
    assert measured.read(path) == data and not path.with_suffix(".tmp").exists()
    assert data["dpm-solver-pp"]["runs"][0]["criteria"][0]["value"] == "nan"
    path.write_text(path.read_text()[:50])
    with pytest.raises(FokkerError, match="is not JSON"):
        measured.read(path)
    assert measured.read(tmp_path / "none.json") == {}


def test_what_was_committed_as_measured_still_has_its_records() -> None:
    known = {record.id for record in SYSTEMS}
    assert set(measured.read()) <= known


# citations


def test_bibtex_of_ids_of_a_plan_and_of_a_paper_without_known_authors() -> None:
    text = cite(["dpm-solver-pp", "dpmpp-2m", "edict"])
    assert text.count("@misc{") == 2, "one paper comes once"
    assert "author = {Bram Wallace and Akash Gokul and Nikhil Naik}" in text and "eprint = {2211.12446}" in text
    nameless = catalogue.Record("x", "On & on", "solvers", "solver", arxiv="2401.00001")
    assert "author" not in cite(nameless) and "{{On \\& on}}" in cite(nameless) and "year = {2024}" in cite(nameless)
    with pytest.raises(FokkerError, match="did you mean"):
        cite(["edictt"])
    plan = fk.solve.get("dpmpp-2m").plan(fk.VP(), fk.grids.karras(4))
    text = cite(plan)
    assert "2211.01095" in text and "2206.00364" in text and text.count("@misc{") == 2
    assert "et al." in paragraph("deediff")
    assert len(paragraph("deediff").splitlines()) >= 1


@pytest.mark.parametrize("record", SYSTEMS, ids=lambda record: record.id)
def test_every_system_can_be_cited(record: catalogue.Record) -> None:
    text = cite(record)
    assert text.count("{") == text.count("}") and record.arxiv in text
