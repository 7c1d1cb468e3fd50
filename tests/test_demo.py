"""The demonstration in miniature, its numbers' schema, and the restorer that it leans on against the exact posterior."""

import base64
import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import fokker as fk
from fokker.cli import main as command
from fokker.data import toy
from fokker.demo import classifying, restoring, sampling, threads, training
from fokker.demo.budget import FULL, QUICK
from fokker.demo.main import FILES, main
from fokker.demo.numbers import Expectation
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG
from fokker.laws.mixture import GaussianMixture
from fokker.measure import ClassAccuracy, Value
from fokker.restore.moments import MomentMatching
from fokker.restore.operators import Matrix
from fokker.train.config import load_recipe

TINY = dataclasses.replace(
    QUICK, samples=640, snapshots=2, each=1, unguided=60, evaluations=3, compared=1, calls=(2, 4)
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, main(out, TINY, seed=3, workers=1, quiet=True)


def test_every_file_is_there_and_whole(done):
    out, _ = done
    assert {p.name for p in out.iterdir()} == {*FILES, "training"}
    for name in ("samples", "solvers", "restoration", "training"):
        with Image.open(out / f"{name}.png") as picture:
            picture.load()
            assert picture.width > 400 and len(picture.convert("L").getcolors(256)) > 20, name


def test_numbers_have_their_schema(done):
    out, found = done
    stored = json.loads((out / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(found))
    shares = ("class_accuracy", "precision", "recall", "memorised", "memorised_held_out")
    assert all(0 <= stored[name] <= 1 for name in shares)
    assert stored["frechet"] > 0 and stored["frechet_floor"] > 0
    assert stored["frechet_over_floor"] == pytest.approx(stored["frechet"] / stored["frechet_floor"])
    assert stored["frechet_about"]["n"] == TINY.unguided and stored["frechet_about"]["features"] == "pixels"
    for task in ("mask", "blur"):
        found = stored["restoration"][task]
        assert {"psnr", "psnr_baseline", "psnr_measured", "psnr_one_sample"} <= found.keys()
        assert found["psnr_baseline"] > found["psnr_measured"]
    stages = {"train", "sample", "solvers", "restore mask", "restore blur", "classify", "report", "total"}
    assert stored["seconds"].keys() == stages
    assert sum(v for k, v in stored["seconds"].items() if k != "total") <= stored["seconds"]["total"]
    assert stored["solvers"]["at_equal_calls"].keys() == {"ddim", "heun", "dpmpp-2m"}
    for record in stored["values"].values():
        assert Value.from_json(record).json() == record
    assert all(e["met"] == (e["value"] >= e["bar"] if e["relation"] == ">=" else e["value"] <= e["bar"])
               for e in stored["expectations"])  # fmt: skip


def test_the_report_is_one_file_with_its_pictures_inside(done):
    out, _ = done
    page = (out / "report.html").read_text(encoding="utf-8")
    inside = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert inside == [(out / f"{name}.png").read_bytes() for name in ("training", "samples", "solvers", "restoration")]
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    assert "make demo" in page and "fokker sample --model" in page


def test_the_model_is_loaded_and_sampled_by_others(done, tmp_path):
    out, _ = done
    model = fk.load(out / "model.safetensors")
    assert model.labels == tuple("0123456789") and "measured" in model.card
    picture = tmp_path / "three.png"
    assert command(["sample", "--model", str(out / "model.safetensors"), "--label", "3", "--steps", "2",
                    "--out", str(picture)]) == 0  # fmt: skip
    assert picture.is_file()


def test_a_finished_demo_begins_anew_and_finds_the_same(done, tmp_path):
    first, found = done
    again = main(tmp_path, TINY, seed=3, workers=1, quiet=True)
    timeless = {k: v for k, v in found.items() if k not in ("seconds",)}
    assert {k: v for k, v in again.items() if k != "seconds"} == timeless
    assert not (first / training.FOLDER / "checkpoints").exists()


def test_the_command_hands_its_options_on(tmp_path, monkeypatch, capsys):
    given = {}

    def run(out, budget, seed, workers, quiet):
        given.update(out=out, budget=budget, seed=seed, workers=workers, quiet=quiet)
        return {"class_accuracy": 1.0}

    monkeypatch.setattr("fokker.demo.main.main", run)
    assert command(["demo", "--out", str(tmp_path), "--seed", "5", "--threads", "2", "--quick", "--json"]) == 0
    assert given == {"out": tmp_path, "budget": QUICK, "seed": 5, "workers": 2, "quiet": True}
    assert json.loads(capsys.readouterr().out) == {"class_accuracy": 1.0}


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with threads.used(2) as chosen:
        assert chosen == torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    with threads.used(0) as chosen:
        assert 1 <= chosen <= max(1, threads.cores())
    with pytest.raises(FokkerError, match="threads=-1"), threads.used(-1):
        pass


def test_the_folder_may_not_be_a_file(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(FokkerError, match="is a file"):
        main(tmp_path / "demo", TINY, quiet=True)


def test_the_demo_trains_the_recipe_of_the_zoo(tmp_path):
    recipe = training.recipe_of(tmp_path, FULL, seed=0)
    shipped = load_recipe(Path(fk.__file__).parent / "zoo" / "digits.yaml")
    assert recipe.trajectory() == shipped.trajectory()


def test_the_zoo_has_what_the_recipe_trains():
    """Its weights say which recipe made them, and their card holds numbers that meet the bars."""
    shipped = load_recipe(Path(fk.__file__).parent / "zoo" / "digits.yaml")
    model = fk.load("digits")
    trained, measured = model.card["trained"], model.card["measured"]
    recipe = {k: v for k, v in trained["recipe"].items() if k != "fingerprint"}
    assert recipe == json.loads(json.dumps(shipped.trajectory()))
    assert trained["recipe"]["fingerprint"] == toy("digits").fingerprint
    assert measured["class_accuracy"] >= 0.97 and measured["frechet"] <= measured["frechet_floor"]
    label = torch.arange(10).repeat(5)
    x = sampling.draw(CFG(model.denoiser, sampling.SCALE), label, seed=7, nfe=12)
    right = ClassAccuracy()(x, label)
    assert right.value >= 0.9, "50 guided samples of a model whose accuracy is 0.995"


def test_grey_levels_are_those_of_the_data():
    x = toy("digits", split="all").x
    torch.testing.assert_close(sampling.to_levels(x), x, rtol=0, atol=0)
    torch.testing.assert_close(sampling.to_levels(x + 0.06), x.clamp(max=1), rtol=0, atol=0)
    assert sampling.to_levels(torch.tensor([-7.0, 7.0])).tolist() == [-1, 1]


def test_bars_are_read_in_their_direction():
    assert Expectation("a", 1.0, ">=", 1.0, "").met and not Expectation("a", 0.9, ">=", 1.0, "").met
    assert Expectation("a", 1.0, "<=", 1.0, "").met and not Expectation("a", 1.1, "<=", 1.0, "").met


def class_law() -> tuple[GaussianMixture, fk.EDM]:
    train = toy("digits")
    return GaussianMixture.fit(train.x, components=1, rank=24, labels=train.label), fk.EDM(sigma_min=0.02)


def test_classification_by_an_exact_denoiser():
    """One Gaussian a class denoises each class best under its own name; the errors of ten names on the same noise say so."""
    law, process = class_law()
    held_out = toy("digits", split="test")
    rows = torch.arange(0, 397, 8)
    eps = fk.noise((len(rows), 1, 8, 8), seed=0).double()
    t = float(process.time(-2 * math.log(1.5)))
    errors = classifying.class_errors(law.denoiser(process), held_out.x[rows].double(), t, eps)
    found = errors.argmin(1)
    assert errors.shape == (len(rows), 10)
    assert float((found == held_out.label[rows]).double().mean()) > 0.8


def test_the_baseline_is_the_posterior_mean_of_its_law():
    """Its mean squared error must be below that of what was measured, and it must be exact where nothing is hidden."""
    train, held_out = toy("digits"), toy("digits", split="test")
    mask, blur = restoring.tasks()
    x = held_out.x[:12]
    for task in (mask, blur):
        y = task.measure(x, seed=0)
        better = (restoring.gaussian_mean(train, task, y) - x).square().mean()
        assert better < 0.3 * (restoring.seen(task, y) - x).square().mean()
    whole = dataclasses.replace(mask, operator=type(mask.operator)(torch.ones(1, 1, 8, 8)), noise_std=1e-3)
    y = whole.measure(x, seed=0)
    assert float((restoring.gaussian_mean(train, whole, y) - x).square().mean().sqrt()) < 0.036  # a rounding's spread


@pytest.mark.parametrize("process", [fk.VP(), fk.EDM(), fk.Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("t", [0.1, 0.4, 0.95])
def test_moment_matching_is_exact_on_a_gaussian(process, t):
    """With as many iterations as measurements it is E[x_0 | x_t, y]; with one less it is not."""
    root = fk.noise((6, 6), seed=1, dtype=torch.float64)
    mean = fk.noise((1, 6), seed=2, dtype=torch.float64)
    law = GaussianMixture([1.0], mean, (root @ root.T / 6 + 0.1 * torch.eye(6, dtype=torch.float64))[None])
    matrix, y = fk.noise((3, 6), seed=3, dtype=torch.float64), fk.noise((3,), seed=4, dtype=torch.float64)
    x = fk.noise((4, 6), seed=5, dtype=torch.float64)
    truth = law.posterior(matrix, y, 0.3).denoiser(process)(x, t)

    def guided(iterations: int) -> torch.Tensor:
        operator = Matrix(matrix)
        return MomentMatching(law.denoiser(process), operator, y.expand(4, 3), 0.3, iterations)(x, t)

    torch.testing.assert_close(guided(3), truth, rtol=1e-9, atol=1e-11)
    assert float((guided(1) - truth).abs().max()) > 1e-4


def test_moment_matching_refuses_what_it_cannot_do():
    law, process = class_law()
    operator = restoring.tasks()[0].operator
    with pytest.raises(FokkerError, match="iterations=0"):
        MomentMatching(law.denoiser(process), operator, torch.zeros(1, 1, 8, 8), 0.1, iterations=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_bar_is_met_on_every_seed(tmp_path, seed):
    found = main(tmp_path, FULL, seed=seed, quiet=True)
    missed = [e for e in found["expectations"] if not e["met"]]
    assert not missed
