"""The arena: honest numbers, every row reruns as it says, and both laws and models as its ground."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import fokker as fk
from fokker import arena
from fokker.arena import Arena
from fokker.cli import main
from fokker.data.source import Condition
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.model import Model
from fokker.net import UNet

SMALL = "arena solvers --law lowrank:dim=6,components=3,rank=2 --process edm --nfe 5,9 -n 32 --seed 3"


def small(**options: object) -> Arena:
    law = fk.laws.lowrank(dim=6, components=3, rank=2)
    return arena.solvers(law.denoiser(fk.VP()), law.shape, nfe=(4, 8, 16), n=48, names=["ddim", "dpmpp-2m", "ddpm"], **options)


def test_errors_are_those_of_the_runs() -> None:
    law, process = fk.laws.lowrank(dim=6, components=3, rank=2), fk.VP()
    found = small(grid_names=["logsnr"])
    x1 = process.start(fk.noise((48, 6), seed=0, dtype=torch.float64))
    truth = law.flow(process, x1, 1.0, process.end)
    row = next(r for r in found.rows if (r.solver, r.budget) == ("dpmpp-2m", 8))
    x0 = fk.sample(law.denoiser(process), x1, solver="dpmpp-2m", nfe=8, grid="logsnr")
    error = float((x0 - truth).square().mean().sqrt() / truth.square().mean().sqrt())
    assert row.rms == pytest.approx(error, rel=1e-6) and row.nfe == 8
    assert row.median_low is not None and row.median is not None and row.median_high is not None
    assert row.median_low <= row.median <= row.median_high


def test_budgets_are_kept_and_errors_fall() -> None:
    found = small(grid_names=["quadratic"])
    assert all(r.nfe <= r.budget for r in found.rows)
    errors = [r.rms for r in found.rows if r.solver == "dpmpp-2m"]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1


def test_grids_that_lay_out_the_same_plan_share_a_row() -> None:
    found = small(grid_names=["logsnr", "quadratic", "vp-time"])
    assert {(r.grid, r.also) for r in found.rows} == {("logsnr", ()), ("quadratic", ("vp-time",))}
    assert all(r.rerun.count("--grid") == 1 + len(r.also) for r in found.rows)
    assert "quadratic, vp-time" in found.table()
    law = fk.laws.lowrank(dim=6, components=3, rank=2)
    grids = ["quadratic", "vp-time"]
    edm = arena.solvers(law.denoiser(fk.EDM()), law.shape, nfe=(8,), n=8, names=["ddim"], grid_names=grids)
    assert [(r.grid, r.also) for r in edm.rows] == [("quadratic", ()), ("vp-time", ())]


def test_a_sampler_that_draws_noise_has_no_flow_to_meet() -> None:
    rows = [r for r in small(grid_names=["logsnr"]).rows if r.solver == "ddpm"]
    assert rows and all(r.rms is None and r.median is None and r.distance > 0 for r in rows)
    assert all(r.solver != "ddpm" for r in small(grid_names=["logsnr"]).best(8))


def test_every_row_reruns(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*shlex.split(SMALL), "--solver", "ddim", "--solver", "heun", "--solver", "ddpm", "--json"]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len({row["grid"] for row in rows}) > 3
    for row in rows[::7]:
        program, *again = shlex.split(row["rerun"])
        assert program == "fokker"
        assert main([*again, "--json"]) == 0
        (alone,) = json.loads(capsys.readouterr().out)["rows"]
        assert {**alone, "seconds": 0} == {**row, "seconds": 0}


def test_a_model_is_judged_by_its_own_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = UNet(channels=1, width=8, mults=(1, 2), blocks=1, heads=2, classes=4, seed=1)
    with torch.no_grad():
        for p in net.parameters():  # so that no output is zero
            p.add_(0.01)
    conditions = {"label": Condition((), True, ("0", "1", "2", "3"))}
    made = Model(NetworkDenoiser(net, fk.VP(), "edm", 0.5), (1, 8, 8), (-1.0, 1.0), conditions)
    path = str(made.save(tmp_path / "tiny.safetensors"))
    words = ["arena", "solvers", "--model", path, "--label", "3", "--nfe", "8", "-n", "8", "--solver", "dpmpp-2m"]
    assert main([*words, "--grid", "logsnr", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert found["resolution"] < row["rms"] < 1
    assert main([*shlex.split(row["rerun"])[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["rms"] == row["rms"]


def test_a_folder_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "arena"
    assert main([*shlex.split(SMALL), "--solver", "ddim", "--grid", "karras", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "arena.txt").read_text() == printed
    assert json.loads((out / "arena.json").read_text())["rows"][0]["solver"] == "ddim"
    assert (out / "arena.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [
        "--nfe 5",
        "--law ring --model digits",
        "--law rong",
        "--law lowrank64:rnk=3",
        "--law ring --solver ddin",
        "--law ring --process vq",
        "--law ring --nfe 0",
        "--law ring --out /nowhere/at/all",
        "--model digits --process vp",
    ],
)
def test_bad_words_are_one_sentence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["arena", "solvers", *words.split()]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_anchored_process_is_refused() -> None:
    law = fk.laws.ring()
    with pytest.raises(FokkerError):
        arena.solvers(law.denoiser(fk.MeanReverting()), law.shape, nfe=(5,))
