"""The command line: what it prints, its exit codes, and that no input whatever gets a traceback."""

import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import typer

from fokker.cli import failure, main, spec
from fokker.cli.app import app
from fokker.errors import FokkerError

ROOT = Path(__file__).parent.parent


def call(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def leaves(command: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command with its words, from the parser itself: a new command is in these tests by existing."""
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, (*path, name))
        else:
            yield (*path, name), child


COMMANDS = dict(leaves(typer.main.get_command(app)))

# a command line of each command that is right and quick; the bad ones are made from it by one fault each
RIGHT: dict[tuple[str, ...], list[str]] = {
    ("sample",): ["--model", "{tiny}.safetensors", "--steps", "2", "--out", "x.npz"],
    ("rerun",): ["{sample}.png"],
    ("edit",): ["{pictures}/40.png", "edited.png", "--model", "{tiny}.safetensors", "--source-label", "3",
                "--target-label", "8", "--steps", "2"],
    ("restore",): ["{pictures}/40.png", "x.png", "--steps", "2"],
    ("enhance",): ["{noisy}.wav", "quiet.wav", "--prior", "{noisy}.wav", "--steps", "2"],
    ("train",): ["{recipe}.yaml"],
    ("distil",): ["--model", "{tiny}.safetensors", "--data", "toy:digits", "--start", "2", "--steps", "1",
                  "--samples", "32", "--batch", "16", "--out", "student"],
    ("plan",): ["ddim", "--steps", "2"],
    ("likelihood",): ["--law", "ring", "-n", "3"],
    ("demo",): ["--quick", "--out", "demo"],
    ("arena", "solvers"): ["--law", "ring", "--nfe", "4", "--solver", "ddim", "--grid", "uniform", "-n", "16"],
    ("arena", "inverse"): ["--operator", "mask:0.5", "--restorer", "ddnm", "--steps", "2", "--measurements", "1", "-n", "8"],
    ("tune",): ["--law", "ring", "--nfe", "2", "-n", "16", "--steps", "1", "--out", "tuned.json"],
    ("classify",): ["{pictures}/40.png", "--model", "{tiny}.safetensors", "--samples", "4"],
    ("write",): ["a", "--parallel", "63"],
    ("systems",): ["--family", "solvers"],
    ("reproduce",): [],
    ("cite",): ["dpm-solver-pp"],
    ("data", "check"): ["{pictures}"],
    ("data", "list"): [],
}

# values that an option or argument must refuse, by its name on the command line
REFUSED: dict[str, list[str]] = {
    "--steps": ["0", "-1", "x", "1.5", "", "1e3", "nan", "99999999999999999999", "0x10", "10001", "--"],
    "--nfe": ["0", "-7", "many", "2.5", "", "inf", "1000000000000"],
    "--process": ["vpp", "", "VP", ":", "ddim", "vp:beta_min=-5", "vp:beta=3", "vp:1,2,3,4", "edm:sigma_max=x", "a:b",
                  "{binary}", "nothere:Process", "os:getcwd", "vp:beta_min=0,beta_max=0", "vp:,=",
                  "fokker.solve:Solver"],
    "--grid": ["unifrom", "", "karras:rho=x", "logsnr:3", "vp", "ddim", "a b", "karras:power=2", "json:loads", "\0",
               "💥"],
    "--end": ["-0.1", "1.1", "x", "nan", "inf", "", "1", "-inf"],
    "--seeds": ["", "x", "3..1", "1..", "..", "-1", "1.5", "0..99999999999", "1,,2", "٣"],
    "--family": ["solver", "", "blocks ", "Solvers", "nothing"],
    "--kind": ["solvers", "", "thing"],
    "--status": ["work", "", "reproduced", "WORKS"],
    "--size": ["64", "0x0", "x", "-1x5", "64x", "1.5x2", "", "99999999x9"],
    "--model": ["digit", "", "{missing}.safetensors", "{binary}.safetensors", "{empty}.safetensors", "{folder}",
                "{torn}.safetensors",
                "{list}.json", "nope:Model", "{recipe}.yaml", "/", "..", "~"],
    "--n": ["0", "-1", "1000001", "x", "1.5", "1e3", ""],
    "--seed": ["", "x", "-1", "1.5", "3..1", "0..", "1e3", "0,,1", "0...3", "seed"],
    "--label": ["10", "-5", "three", "", "0,99", "3.5", "1..x"],
    "--prompt": ["a red circle", "", "3"],
    "--cond": ["label", "=3", "lable=3", "label=x", "label=3.5", "", "tokens=1", "y=0", "label=", "label=[1,2,3]"],
    "--solver": ["ddimm", "", "vp", "dpmpp-3m:order=x", "nothere:Solver", "{python}:NotASolver", "{python}:Fails",
                 "ddim:2",
                 "{brokenpython}:Solver", ":", "ddim:eta=-1"],
    "--plan": ["{missing}.json", "{empty}.json", "{binary}.json", "{list}.json", "{wrong}.json", "{folder}",
               "{plan}.json", "",
               "{recipe}.yaml", "{otherplan}.json"],
    "--guidance": ["cgf:3", "", "cfg:x", "cfg:scale=x", "cfg:3,scale=4", "cfg:sacle=3", "ddim",
                   "{python}:NotASolver", ":", "cfg:1,2,3",
                   "cfg:interval=3", "cfg:interval=[5,1]", "{python}:Fails", "os:getcwd"],
    "--negative": ["a red circle", ""],
    "--prior": ["{missing}.wav", "{empty}.png", "{folder}", ""],
    "--noise-std": ["x", "", "-1"],
    "--batch": ["0", "-1", "x", "65537", ""],
    "--samples": ["0", "-1", "x", "1.5", ""],
    "--scales": ["", "x", "1", "4,1", "1,2,3", "-1,2", "1,nan"],
    "--peak": ["0", "-1", "x", "2", ""],
    "--parallel": ["0", "-1", "x", "5000", ""],
    "--temperature": ["0", "-1", "x", ""],
    "--device": ["gpu", "", "cuda:99", "tpu", "CPU"],
    "--method": ["edikt", "", "DDIM", "none", "edict:2", "{folder}"],
    "--source-label": ["10", "three", "", "3.5"],
    "--target-label": ["10", "three", "", "-5"],
    "--source-prompt": ["a red circle", ""],
    "--target-prompt": ["a red circle"],
    "--source": ["lable=3", "label", "=3", "label=x", "label=3"],
    "--target": ["lable=3", "label", "=3", "label=x", "label=3"],
    "--background": ["whit", "", "#12", "300,0,0", "transparent"],
}  # fmt: skip
POSITIONAL: dict[tuple[str, ...], list[str]] = {
    ("plan",): ["ddimm", "", "DDIM", "vp", "logsnr", "ddim:order=2", "ddim:3", "dpmpp-3m:order=x", "dpmpp-2m:ordr=2",
                "nothere:Solver", "os:getcwd", "json:JSONDecoder", "{missing}.json", "{empty}", "{binary}.json",
                "{list}.json",
                "{wrong}.json", "{folder}.json", "{python}:Absent", "{python}:NotASolver", "{brokenpython}:Solver",
                "{python}:Fails", ":", "::", "=", "dpmpp-2m:order=99", "dpmpp-2m:order=-1", "{deep}.json",
                "{plan}.json"],
    ("rerun",): ["{missing}.png", "{binary}.png", "{empty}.png", "{folder}", "{tiny}.safetensors", "{binary}.npz",
                 "{list}.json", "",
                 "{pictures}/40.png", "{binary}.safetensors", "{forged}.png", "{otherforged}.png",
                 "{torn}.safetensors"],
    ("enhance",): ["{missing}.wav", "{binary}.png", "{folder}", "{list}.json", ""],
    ("train",): ["{missing}.yaml", "{binary}.yaml", "{empty}.yaml", "{folder}", "{list}.json", "{deep}.json",
                 "{tiny}.safetensors", "",
                 "{badyaml}.yaml", "{tags}.yaml"],
    ("classify",): ["{missing}.png", "{folder}", "{binary}.png"],
    ("write",): ["UPPER", "a" * 65, "%", "💥"],
    ("systems",): ["dpm-solvr", "", "42", "solvers", "💥"],
    ("reproduce",): ["no-such-system", "", "../../etc/passwd", "ddim", "__init__", "DPM", "a b c"],
    ("cite",): ["dpm-solver-pq", "", "everything", "%s"],
    ("data", "check"): ["{missing}", "{binary}", "{empty}", "{folder}", "{binary}.tar", "",
                        "{broken}", "toy:digits", "{wrong}.json"],
}  # fmt: skip


RECIPE = """
data: {{source: "toy:digits"}}
net: {{preset: digits, width: 8}}
out: {out}
samples: 16
batch: 16
cpu: true
"""
# overrides that no recipe takes
OVERRIDES = [
    "sampels=3", "samples", "=3", "samples=", "samples=x", "samples=-5", "samples=0", "samples=1.5", "samples=.nan",
    "samples=[1]",
    "batch=0", "batch=x", "batch=-8", "seed=x", "seed={a: 1}", "data=toy:digit", "data.source=toy:nope", "data.sauce=1",
    "data.source=5", "data={}", "data=[]", "data=5", "data=hf:", "data=nowhere/at/all", "data.split=tset",
    "data.n=-3", "data.n=x",
    "net.kind=unt", "net.width=0", "net.width=x", "net.widht=8", "net=5", "net.preset=digit", "net.mults=5",
    "net.classes=3",
    "net.channels=3", "net.kind=os:getcwd", "process=vpp", "process.sigma_max=-1", "process.sigma_max=x",
    "process.sigma=1",
    "process=[]", "prediction=epsilon", "prediction=5", "sigma_data=-1", "sigma_data=x", "sigma_data=0",
    "conditions=label",
    "conditions=[lable]", "objective.weight=nope", "objective.wieght=edm", "objective=x", "optimiser.beta1=x",
    "optimiser.beta3=1",
    "rate.peak=x", "rate.peek=1", "rate.kind=cosin", "average.kind=x", "average.halflife=x", "checkpoint.every=0",
    "checkpoint.keep=x",
    "checkpoint.evry=1", "log.every=x", "log.pictures.n=x", "log.pictures.solver=5", "log.tensorboard=maybe",
    "precision=fp16",
    "precision=5", "compile=perhaps", "accumulate=0", "accumulate=x", "accumulate=3", "patience=0", "patience=x",
    "cpu=maybe",
    "store=float8", "resume=maybe", "resume=5", "card=x", "out=5", "out=[]", "a.b.c=1", "..=1", ".=1", "💥=1",
    "data.source.x=1",
    "samples=99999999999999999999999999999999x", "rate=[", "rate={", "rate.peak=: :", "batch=true", "seed=1e999",
    "resume=must",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Things that are no input: missing, empty, random bytes, lists for mappings, folders for files."""
    from PIL import Image

    import fokker as fk
    from fokker.cli import picture
    from fokker.data.source import Condition
    from fokker.denoiser import NetworkDenoiser
    from fokker.loop import lay
    from fokker.model import Model
    from fokker.net import build

    top = tmp_path_factory.mktemp("bad")
    noise = random.Random(0).randbytes(500)
    (top / "folder.json").mkdir()
    (top / "folder").mkdir()
    (top / "pictures").mkdir()
    for shade in (40, 200):
        Image.new("RGB", (8, 6), (shade, 0, shade)).save(top / "pictures" / f"{shade}.png")
    (top / "broken").mkdir()
    for suffix in ("", ".json", ".npz", ".tar", ".safetensors", ".yaml", ".png"):
        (top / f"binary{suffix}").write_bytes(noise)
        (top / f"empty{suffix}").write_bytes(b"")
    (top / "list.json").write_text("[1, 2, 3]")
    fk.audio.write(top / "noisy.wav", 0.2 * fk.noise((1, 1, 4000)), 8000)
    (top / "wrong.json").write_text('{"fokker_plan": 1, "process": {"process": "VP"}, "rwos": []}')
    (top / "deep.json").write_text("[" * 100_000)
    bad_rows = [{"t": None, "terms": []}, {"t": None, "terms": [["x", 7, 1.0]]}]
    plan = {
        "process": {"process": "VP"},
        "rows": bad_rows,
        "outputs": [1],
        "inputs": 1,
        "noises": [],
        "end": 0,
        "config": {},
    }
    (top / "plan.json").write_text(json.dumps(plan))
    (top / "otherplan.json").write_text(lay(fk.EDM(sigma_max=3.0), "ddim", steps=2).json())
    (top / "badyaml.yaml").write_text("data: [1, 2\nnet: {")
    (top / "tags.yaml").write_text("data: !!python/object/apply:os.system ['true']\n")
    (top / "recipe.yaml").write_text(RECIPE.format(out=top / "run"))
    model = Model(
        NetworkDenoiser(build("digits", width=8), fk.EDM(), "edm", 0.7),
        (1, 8, 8),
        conditions={"label": Condition((), True, tuple("0123456789"))},
    ).save(top / "tiny.safetensors")
    (top / "torn.safetensors").write_bytes(model.read_bytes()[:-100])
    assert call("sample", "--model", model, "--steps", "2", "--out", top / "sample.png")[0] == 0
    page = np.zeros((4, 4), dtype=np.uint8)
    picture.save_page(top / "forged.png", page, {"command": "sample", "options": {"modle": "x"}})
    picture.save_page(top / "otherforged.png", page, {"command": "rm", "options": {}})
    (top / "python.py").write_text("class NotASolver:\n    pass\n\ndef Fails():\n    raise ValueError('two\\nlines')\n")
    (top / "brokenpython.py").write_text("class Solver(:\n")
    names = {"python": "python.py", "brokenpython": "brokenpython.py"}
    return {name: str(top / names.get(name, name)) for name in {*names, "missing", *(p.stem for p in top.iterdir())}}


def near_misses(word: str, draw: random.Random, n: int) -> list[str]:
    """Misspellings: a letter lost, doubled, swapped or changed."""
    found = []
    for _ in range(n):
        k = draw.randrange(2 if word.startswith("--") else 0, len(word))
        letter = draw.choice("abcdefghijklmnopqrstuvwxyz")
        found.append(draw.choice([word[:k] + word[k + 1 :], word[:k] + word[k] + word[k:], word[:k] + letter + word[k + 1 :],
                                  word[:k] + word[k + 1 : k + 2] + word[k] + word[k + 2 :]]))  # fmt: skip
    return found


def numeric(command: typer.core.TyperCommand, option: str) -> bool:
    """Whether an option takes a number."""
    hints = get_type_hints(command.callback)
    wanted = {hints[parameter.name] for parameter in command.params if option in parameter.opts}
    return any({int, float} & {hint, *get_args(hint)} for hint in wanted)


def junk(draw: random.Random) -> str:
    """A word with digits in it that is no number."""
    letters = draw.choices("0123456789.-+ _,:xyz!?*%$#@", k=draw.randint(1, 9))
    letters.insert(draw.randint(0, len(letters)), draw.choice("xyz?*%!"))
    return "".join(letters)


def bad_lines() -> list[tuple[str, ...]]:
    """Command lines with one fault each, in a fixed order."""
    draw = random.Random(20260101)
    lines: list[tuple[str, ...]] = [
        ("",),
        ("--",),
        ("-x",),
        ("--nothing",),
        ("💥",),
        ("sample ",),
        ("a" * 5000,),
        ("0",),
    ]
    names = {path[0] for path in COMMANDS}
    lines += [(wrong,) for name in sorted(names) for wrong in near_misses(name, draw, 8) if wrong not in names]
    for path, command in COMMANDS.items():
        right = RIGHT[path]
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        known = {*options, "--help", "--debug"}
        for option in options:
            for wrong in near_misses(option, draw, 4):
                # click takes a unique beginning of an option for the option
                if wrong not in known and not any(name.startswith(wrong) for name in known):
                    lines.append((*path, *right, wrong, "1"))
            if not any(p.is_flag for p in command.params if option in p.opts and hasattr(p, "is_flag")):
                lines.append((*path, *right, option))
            lines += [(*path, *right, option, value) for value in REFUSED.get(option, [])]
            if numeric(command, option):
                lines += [(*path, *right, option, junk(draw)) for _ in range(12)]
        lines += [(*path, *right, "-z"), (*path, *right, "--no-such-option"), (*path, *right, "--json=maybe")]
        lines += [(*path, value) for value in POSITIONAL.get(path, [])]
    lines += [
        ("plan",), ("plan", "ddim", "--steps", "2", "--nfe", "2"), ("plan", "ddim", "heun"), ("plan", "heun",
        "--nfe", "1"),
        ("plan", "ddpm", "--inverse"), ("plan", "ddim", "--steps", "2", "--out", "{missing}/x.json"),
        ("plan", "ddim", "--steps", "2", "--out", "{folder}"), ("plan", "ddim", "--grid", "karras", "--end", "1"),
        ("reproduce",), ("reproduce", "--all", "--null"), ("reproduce", "--all", "x"), ("reproduce", "x", "--out", "y"),
        ("systems", "dpm-solver-pp", "--family", "solvers"), ("cite",), ("data",), ("data", "chekc", "."), ("data",
        "check"),
    ]  # fmt: skip
    lines += [("train", "{recipe}.yaml", "out=elsewhere", override) for override in OVERRIDES]
    return list(dict.fromkeys(lines))


LINES = bad_lines()


def test_every_command_has_a_right_line_and_the_fuzz_is_large_enough() -> None:
    assert set(RIGHT) == set(COMMANDS)
    assert len(LINES) >= 500


@pytest.mark.parametrize("part", range(20))
def test_bad_input_is_one_sentence_and_exit_code_2(
    part: int, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files["folder"])
    wrong = []
    for line in LINES[part::20]:
        words = [re.sub(r"\{(\w+)\}", lambda match: files[match[1]], word) for word in line]
        code, out, err = call(*words)
        sentences = err.splitlines()
        if code != 2 or len(sentences) != 1 or not sentences[0].startswith("fokker: ") or "Traceback" in err or out:
            wrong.append((line, code, err[-500:], out[:100]))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example_that_starts_with_the_command(path: tuple[str, ...]) -> None:
    code, out, err = call(*path, "--help")
    assert (code, err) == (0, "")
    assert f"Example: fokker {' '.join(path)}" in " ".join(out.split())


@pytest.mark.parametrize("path", [path for path in RIGHT if path != ("reproduce",)], ids=" ".join)
def test_the_right_line_is_right(path: tuple[str, ...], files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files["folder"])
    words = [re.sub(r"\{(\w+)\}", lambda match: files[match[1]], word) for word in RIGHT[path]]
    code, out, err = call(*path, *words)
    assert code == 0 and out and (path in (("train",), ("demo",)) or err == "")


def test_debug_shows_the_traceback_anywhere_on_the_line() -> None:
    with pytest.raises(FokkerError, match="did you mean 'ddim'"):
        call("plan", "ddimm", "--steps", "2", "--debug")
    assert call("plan", "ddimm", "--steps", "2")[0] == 2


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 2, "'x.yaml': No such file or directory"),
        (FokkerError("two\nlines."), 2, "two lines"),
        (MemoryError(), 1, "out of memory"),
        (KeyError("x"), 1, "a fault of fokker"),
        (ModuleNotFoundError("No module named 'diffusers'", name="diffusers"), 2, "pip install 'fokker[hf]'"),
        (SystemExit(3), 3, ""),
    ],
)
def test_whatever_is_raised_becomes_a_sentence_and_a_code(problem: BaseException, code: int, words: str) -> None:
    found = failure.as_failure(problem)
    assert found.code == code and words in found.sentence and "\n" not in found.sentence


def test_a_closed_pipe_and_an_interrupt_leave_no_traceback() -> None:
    where = {"cwd": ROOT, "text": True, "stderr": subprocess.PIPE}
    line = f"{sys.executable} -m fokker systems | head -n 1"
    done = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, **where)
    assert done.stderr == "" and done.stdout.startswith("id")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "fokker", "systems"], stdout=writer, **where)
    os.close(writer)
    assert done.stderr == "" and done.returncode != 0


def test_help_is_quick_because_torch_stays_out() -> None:
    code = "import sys; from fokker.cli import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# --- small languages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("0..3", [0, 1, 2, 3]), ("5,0..2", [5, 0, 1, 2]), (" 1 , 3..3 ", [1, 3])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert spec.seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "name", "values", "options"),
    [
        ("ddim", "ddim", (), {}),
        ("apg:7.5", "apg", (7.5,), {}),
        ("mask:0.5,seed=3", "mask", (0.5,), {"seed": 3}),
        ("x:sde=true,mode=fast,k=null", "x", (), {"sde": True, "mode": "fast", "k": None}),
        ("mine:MySolver", "mine:MySolver", (), {}),
        ("path/mine.py:my_solver:order=2", "path/mine.py:my_solver", (), {"order": 2}),
        ("pack.mine:MySolver:2,eta=1", "pack.mine:MySolver", (2,), {"eta": 1}),
    ],
)
def test_methods(text: str, name: str, values: tuple[object, ...], options: dict[str, object]) -> None:
    assert spec.method(text) == spec.Spec(name, values, options)


# --- commands ------------------------------------------------------------------------------------------------------------


def test_plan_prints_stores_and_reads_the_same_table(tmp_path: Path) -> None:
    where = tmp_path / "plan.json"
    code, text, _ = call("plan", "dpmpp-2m", "--steps", "5", "--process", "edm", "--grid", "karras", "--out", where)
    assert code == 0 and text.splitlines()[-1].startswith("5 evaluations, 6 rows")
    assert call("plan", where)[1] == text
    assert json.loads(call("plan", where, "--json")[1]) == json.loads(where.read_text())


def test_plan_keeps_within_a_budget() -> None:
    assert "7 evaluations" in call("plan", "heun", "--nfe", "8", "--end", "0")[1]


def test_a_solver_in_the_users_own_file_runs_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fokker.solve import Solver, pairs\n\n"
        "@dataclass(frozen=True)\nclass MyDDIM(Solver):\n    order = 1\n\n"
        "    def lay(self, draft, x, nodes):\n        for t, s in pairs(nodes):\n            D = draft.ask(x, t)\n"
        "            x = (s.sigma / t.sigma) * x + (s.alpha - t.alpha * s.sigma / t.sigma) * D\n        return x\n"
    )
    monkeypatch.chdir(tmp_path)
    ours = json.loads(call("plan", "ddim", "--steps", "6", "--json")[1])["rows"]
    for name in ("mine:MyDDIM", "mine.py:MyDDIM", str(tmp_path / "mine.py:MyDDIM")):
        rows = json.loads(call("plan", name, "--steps", "6", "--json")[1])["rows"]
        assert [row["t"] for row in rows] == [row["t"] for row in ours]


def test_systems_lists_records_with_a_derived_status() -> None:
    rows = json.loads(call("systems", "--json")[1])
    assert len(rows) == len({row["id"] for row in rows}) == 182
    assert {"id", "family", "status", "entry", "last"} <= set(rows[0])
    works = json.loads(call("systems", "--status", "works", "--json")[1])
    assert {row["id"] for row in works} == {row["id"] for row in rows if row["status"] == "works"}


def test_cite_prints_bibtex_once_a_paper() -> None:
    code, text, _ = call("cite", "dpm-solver-pp", "dpm-solver-pp")
    assert code == 0 and text.count("@misc") == 1 and "2211.01095" in text


def test_data_check_names_the_bad_file(tmp_path: Path) -> None:
    from PIL import Image

    for k in range(3):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / f"{k}.png")
    assert call("data", "check", tmp_path)[0] == 0
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    code, text, err = call("data", "check", tmp_path)
    assert code == 1 and "torn.png" in text and err == ""
    assert not json.loads(call("data", "check", tmp_path, "--json")[1])["ok"]


@pytest.fixture
def sampled(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of samples, in a folder of its own that is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.safetensors").write_bytes(Path(files["tiny"] + ".safetensors").read_bytes())
    line = "sample --model tiny.safetensors --label 0..9 -n 12 --steps 3 --seed 4,7 --guidance cfg:2 --out grid.png"
    assert call(*line.split())[0] == 0
    return tmp_path / "grid.png"


def test_a_picture_says_how_it_was_made_and_is_made_again(sampled: Path) -> None:
    code, text, _ = call("rerun", "grid.png")
    assert code == 0 and "identical" in text
    assert sampled.read_bytes() == sampled.with_name("grid.rerun.png").read_bytes()
    record = json.loads(call("rerun", "grid.png", "--show")[1])
    assert record["options"]["seeds"] == [4, 7] and record["nfe"] == 6 and len(record["model_sha256"]) == 64
    assert not any(word in json.dumps(record) for word in (str(sampled.parent), os.uname().nodename))


def test_a_name_with_seed_in_braces_makes_one_picture_a_seed(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fokker.model import Model

    decode, sizes = Model.decode, []
    monkeypatch.setattr(Model, "decode", lambda self, x: sizes.append(len(x)) or decode(self, x))
    line = "sample --model tiny.safetensors --label 0..9 -n 12 --steps 3 --seed 4,7 --guidance cfg:2 --out one-{seed}.png"
    assert call(*line.split())[0] == 0
    alone = line.replace("4,7", "7").replace("{seed}", "alone")
    assert call(*alone.split())[0] == 0
    assert Path("one-7.png").read_bytes() == Path("one-alone.png").read_bytes() != Path("one-4.png").read_bytes()
    assert sizes == [12, 12, 12], "an autoencoder rounds by its batch, which other seeds must not change"
    assert "identical" in call("rerun", "one-4.png")[1]


def test_a_record_holds_the_batch_that_was_taken(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many samples fit changes with the hour; a rerun takes the parts of the run."""
    from fokker import batches

    assert json.loads(call("rerun", "grid.png", "--show")[1])["options"]["batch"] == 12
    monkeypatch.setattr(batches, "free", lambda device: 1)
    assert "identical" in call("rerun", "grid.png")[1]


def test_a_rerun_that_differs_says_why_and_is_a_failure(sampled: Path) -> None:
    import torch

    import fokker as fk

    model = fk.load("tiny.safetensors")
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.1)
    model.save("tiny.safetensors")
    code, text, _ = call("rerun", "grid.png")
    assert code == 1 and "model_sha256 was" in text
    assert json.loads(call("rerun", "grid.png", "--json")[1])["identical"] is False


def draw(*words: object) -> tuple[dict[str, object], np.ndarray]:
    """The report and the numbers of one `fokker sample`."""
    code, out, err = call("sample", "--model", "tiny.safetensors", *words, "--out", "x.npz", "--json")
    assert code == 0, err
    with np.load("x.npz", allow_pickle=False) as archive:
        return json.loads(out), archive["x0"]


def test_samples_belong_to_their_seed_and_number(sampled: Path) -> None:
    close = {"rtol": 0, "atol": 1e-5}  # rounding may depend on the batch
    report, many = draw("-n", 5, "--steps", 3, "--seed", "2..4")
    assert report["n"] == 15 and report["nfe"] == 3
    np.testing.assert_allclose(draw("-n", 5, "--steps", 3, "--seed", 3)[1], many[5:10], **close)
    np.testing.assert_allclose(draw("-n", 2, "--steps", 3, "--seed", 3)[1], many[5:7], **close)
    np.testing.assert_allclose(draw("-n", 5, "--steps", 3, "--seed", "2..4", "--batch", 2)[1], many, **close)
    assert np.abs(many[:5] - many[5:10]).max() > 0.1


def test_a_stored_plan_and_an_own_solver_run_in_sample(sampled: Path) -> None:
    straight = draw("-n", 2, "--solver", "ddim", "--steps", 4)[1]
    assert call("plan", "ddim", "--steps", "4", "--process", "edm", "--out", "plan.json")[0] == 0
    np.testing.assert_array_equal(draw("-n", 2, "--plan", "plan.json")[1], straight)
    Path("mine.py").write_text("from fokker.solve.onestep import DDIM\n\nclass Mine(DDIM):\n    pass\n")
    np.testing.assert_array_equal(draw("-n", 2, "--solver", "mine:Mine", "--steps", 4)[1], straight)


def test_guidance_of_scale_one_is_off_and_costs_one_evaluation(sampled: Path) -> None:
    plain, off = (draw("-n", 3, "--label", 3, "--steps", 3, *more) for more in ((), ("--guidance", "cfg:1")))
    assert plain[0]["nfe"] == off[0]["nfe"] == 3
    np.testing.assert_array_equal(plain[1], off[1])
    assert draw("-n", 3, "--label", 3, "--steps", 3, "--guidance", "cfg:3")[0]["nfe"] == 6


def test_train_goes_on_where_it_stopped_and_gives_a_model_to_sample(sampled: Path) -> None:
    Path("r.yaml").write_text(RECIPE.format(out="run"))
    code, text, _ = call("train", "r.yaml", "samples=32")
    assert code == 0 and text.startswith("run/model.safetensors")
    first = Path("run/model.safetensors").read_bytes()
    assert call("train", "r.yaml", "samples=32")[0] == 0
    assert Path("run/model.safetensors").read_bytes() == first
    code, _, sentence = call("train", "r.yaml", "samples=32", "batch=8")
    assert code == 2 and sentence.count("\n") == 1
    assert call("sample", "--model", "run", "--label", "3", "--steps", "2", "--out", "y.png")[0] == 0


@pytest.mark.parametrize("method", ["edict", "direct", "infedit"])
def test_an_edited_picture_and_its_comparison_are_rerun_to_the_bit(
    tmp_path: Path, files: dict[str, str], method: str
) -> None:
    out = tmp_path / "out.png"
    options = ["--model", files["tiny"] + ".safetensors", "--source-label", "3", "--target-label", "8", "--steps", "2"]
    assert call("edit", f"{files['pictures']}/40.png", out, *options, "--method", method)[0] == 0
    for file in (out, tmp_path / "out.compare.png"):
        assert call("rerun", file)[0] == 0, file.name
        assert file.with_name(f"{file.stem}.rerun.png").read_bytes() == file.read_bytes()


def test_a_restored_photograph_is_rerun_to_the_bit_and_keeps_what_was_known(tmp_path: Path, files: dict[str, str]) -> None:
    from PIL import Image

    source, out = f"{files['pictures']}/40.png", tmp_path / "out.png"
    code, said, _ = call("restore", source, out, "--steps", "2", "--draws", "2", "--json")
    told = json.loads(said)
    assert code == 0 and told["size"] == [6, 8] and told["nfe"] == 4 and (tmp_path / "out.compare.png").is_file()
    assert call("rerun", out)[0] == 0
    # given as the measurement: transparent pixels are found, the others kept
    whole = np.asarray(Image.open(source).convert("RGBA")).copy()
    whole[2:4, 3:6, 3] = 0
    holes = tmp_path / "holes.png"
    Image.fromarray(whole).save(holes)
    code, _, _ = call("restore", holes, out, "--operator", "mask", "--measured", "--steps", "2", "--no-compare")
    found = np.asarray(Image.open(out))
    assert code == 0 and (found == whole[..., :3])[whole[..., 3] > 0].all()
    for operator, size in (("downsample:2", (16, 12)), ("colourise", (8, 6)), ("blur:1", (8, 6))):
        assert call("restore", source, out, "--operator", operator, "--measured", "--steps", "1")[0] == 0
        assert Image.open(out).size == size
    for wrong in (("--operator", "ct:4", "--measured"), ("--operator", "mask", "--measured"), ("--operator", "ddim"),
                  ("--operator", "mask:2"), ("--restorer", "mask"), ("--overlap", "40"), ("--model", "digits:3")):  # fmt: skip
        assert call("restore", source, out, *wrong)[0] == 2, wrong
    assert call("restore", source, tmp_path / "out.jpg")[0] == 2 and call("restore", tmp_path / "no.png", out)[0] == 2


def test_a_model_of_an_anchored_process_restores_what_it_was_trained_on(tmp_path: Path, files: dict[str, str]) -> None:
    from PIL import Image

    import fokker as fk
    from fokker.data.source import Condition
    from fokker.denoiser import NetworkDenoiser
    from fokker.model import Model
    from fokker.net import build

    net = build("digits", channels=3, width=8, classes=0, image_channels=3)
    known = {"y": Condition((3, 8, 8), False)}
    model = Model(NetworkDenoiser(net, fk.ResidualShift(), "edm", 0.7), (3, 8, 8), conditions=known)
    source, out, bare, told = f"{files['pictures']}/40.png", tmp_path / "out.png", tmp_path / "bare", tmp_path / "told"
    model.save(bare.with_suffix(".safetensors"))
    model.card = {"trained": {"recipe": {"data": {"degrade": {"operator": "downsample", "factor": 2, "noise_std": 0.1}}}}}
    model.save(told.with_suffix(".safetensors"))
    code, said, _ = call("restore", source, out, "--model", f"{told}.safetensors", "--json")
    assert code == 0 and json.loads(said)["size"] == [6, 8] and json.loads(said)["nfe"] == 8
    assert call("rerun", out)[0] == 0
    code, said, _ = call("restore", source, out, "--model", f"{told}.safetensors", "--measured", "--draws", "2")
    assert code == 0 and Image.open(out).size == (16, 12)
    assert call("restore", source, out, "--model", f"{bare}.safetensors", "--operator", "blur:1")[0] == 0
    for wrong, name in ((("--restorer", "ddnm"), told), ((), bare)):
        code, _, sentence = call("restore", source, out, "--model", f"{name}.safetensors", *wrong)
        assert code == 2 and sentence.count("\n") == 1, sentence
