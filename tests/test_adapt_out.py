"""The way out: folders that diffusers loads, and ONNX files, with the same numbers."""

import json
from pathlib import Path
from typing import Any

import diffusers
import onnxruntime
import pytest
import torch
from test_adapt import adapted, conditions
from tiny_pipelines import alive, make
from torch import Tensor

import fokker as fk
from fokker import model as models
from fokker.adapt import plan_to_onnx, to_diffusers, to_onnx
from fokker.adapt.export import betas_of
from fokker.adapt.folder import quiet
from fokker.data.source import Condition
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.model import Model
from fokker.net import UNet, UNet2D, build


def trained(process: fk.Process, prediction: str, classes: int = 0) -> Model:
    """As training leaves it."""
    net = UNet2D(channels=3, width=8, mults=(1, 2), blocks=1, attention=(False, True), heads=8, classes=classes)
    alive(net)
    conditions = {"label": Condition((), True, tuple("abc"[:classes]))} if classes else {}
    return Model(NetworkDenoiser(net, process, prediction, 0.6).eval(), (3, 8, 8), (-1.0, 1.0), conditions)


@pytest.mark.parametrize(("process", "prediction"), [(fk.VP(), "eps"), (fk.Cosine(), "v"), (fk.VP(beta_max=10.0), "x0")])
def test_a_model_trained_here_runs_in_diffusers(tmp_path: Path, process: fk.Process, prediction: str) -> None:
    model = trained(process, prediction)
    with quiet():
        to_diffusers(model, tmp_path / "out")
        pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=8, output_type="np").images
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    times = [k / 8 for k in range(8, 0, -1)] + [0.0]
    x_0 = fk.sample(model.denoiser, x, solver="ddim", grid=fk.grids.Times(values=times, to_x0=True))
    wanted = (x_0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(found - wanted).max() < 1e-4 and wanted.std() > 0.1
    # and back again, at any time of the table
    again = fk.from_diffusers(tmp_path / "out")
    state = fk.noise((2, 3, 8, 8))
    for t in (0.9, 0.5, 0.001):
        tolerance = 1e-5 / float(process.alpha(t))
        torch.testing.assert_close(again(state, t), model.denoiser(state, t), rtol=0, atol=tolerance)


@pytest.mark.parametrize("process", [fk.EDM(sigma_max=20.0), fk.VP()], ids=["EDM", "VP"])
def test_a_model_inside_edm_s_preconditioning(tmp_path: Path, process: fk.Process) -> None:
    model = trained(process, "edm", classes=3)
    with quiet():
        to_diffusers(model, tmp_path / "out")
        net = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet", use_safetensors=True)
        scheduler = diffusers.EDMEulerScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    scheduler.set_timesteps(5)
    x1, label = fk.noise((2, 3, 8, 8)), torch.tensor([2, 0])
    x = x1 * float(scheduler.sigmas[0])
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(scheduler.scale_model_input(x, t), t, class_labels=label).sample
            x = scheduler.step(out, t, x).prev_sample
    again = fk.from_diffusers(tmp_path / "out")
    edm = again.process
    ours = fk.OnProcess(model.denoiser, edm)
    found = fk.sample(ours, edm.start(x1), solver="euler", grid=again.grid(5), label=label)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4 * float(x.abs().max()))
    back = fk.sample(again, edm.start(x1), solver="euler", grid=again.grid(5), **again.model.condition(2, label=["c", "a"]))
    torch.testing.assert_close(back, found, rtol=0, atol=1e-4 * float(x.abs().max()))
    # none is none on both sides
    state = edm.start(x1)
    none = torch.full((2,), -1)
    torch.testing.assert_close(again(state, 0.5), ours(state, 0.5, label=none), rtol=0, atol=1e-4)
    assert again.model.labels == ("a", "b", "c")


def test_the_network_trains_and_is_saved_as_ours_too(tmp_path: Path) -> None:
    from fokker.train.config import load_recipe
    from fokker.train.recipe import train

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {source: 'toy:digits'}\nnet: {kind: unet2d, width: 8, mults: [1, 2], blocks: 1}\nsamples: 64\nbatch: 32\n"
        f"process: VP\nprediction: eps\ncpu: true\nout: {tmp_path / 'run'}\n"
    )
    model = train(load_recipe(recipe), quiet=True)
    loaded = models.load(tmp_path / "run" / "model.safetensors")
    x = fk.noise((2, 1, 8, 8))
    assert torch.equal(loaded.denoiser(x, 0.5), model.denoiser(x, 0.5))
    assert build(loaded.denoiser.net.config).config == loaded.denoiser.net.config
    with quiet():
        folder = to_diffusers(loaded, tmp_path / "out")
    again = fk.from_diffusers(folder)
    assert again.model.shape == (1, 8, 8) and again.net.null_label == 10 and len(again.model.labels) == 10
    cond = {"label": torch.tensor([3, -1])}
    torch.testing.assert_close(again(x, 0.5, **cond), loaded.denoiser(x, 0.5, **cond), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["ddpm", "ldm", "sd1", "dit"])
def test_a_pipeline_goes_back_as_it_came(kind: str, tmp_path: Path) -> None:
    denoiser = adapted(kind)
    with quiet():
        to_diffusers(denoiser, tmp_path / "out")
        again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert type(again).__name__ == type(make(kind)).__name__
    net = again.transformer if kind == "dit" else again.unet
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), denoiser.net.net.state_dict().values()))
    assert fk.from_diffusers(tmp_path / "out").model.labels == denoiser.model.labels


def test_what_has_no_place_in_diffusers_is_refused(tmp_path: Path) -> None:
    other = Model(NetworkDenoiser(UNet(channels=3, width=8, mults=(1, 2), blocks=1, heads=2), fk.VP(), "eps"), (3, 8, 8))
    with pytest.raises(FokkerError, match=r"UNet has no counterpart in diffusers; train with net: \{kind: unet2d\}"):
        to_diffusers(other, tmp_path / "a")
    with pytest.raises(FokkerError, match="Flow is not variance preserving"):
        to_diffusers(trained(fk.Flow(), "eps"), tmp_path / "b")
    with pytest.raises(FokkerError, match="not 'flow'"):
        to_diffusers(trained(fk.Flow(), "flow"), tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_text("")
    with pytest.raises(FokkerError, match="is not empty"):
        to_diffusers(trained(fk.VP(), "eps"), tmp_path / "c")
    with pytest.raises(FokkerError, match=r"use fokker.adapt.to_diffusers"):
        adapted("sd1").model.save(tmp_path / "m.safetensors")


def test_the_betas_of_a_process_give_it_back() -> None:
    for process in (fk.VP(), fk.Cosine()):
        table = fk.process.TableVP(tuple(betas_of(process)))
        t = torch.arange(1, 1001, dtype=torch.float64) / 1000
        torch.testing.assert_close(table.alpha(t), process.alpha(t), rtol=0, atol=1e-9)


# --- ONNX ----------------------------------------------------------------------------------------------------------------


def run_onnx(path: Path, **given: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in given.items() if k in taken})[0])


def close(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4


class Small(torch.nn.Module):
    """A network of few operations."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.table = torch.nn.Linear(65, 64), torch.nn.Embedding(11, 64)

    def forward(self, x: Tensor, told: Tensor, label: Tensor) -> Tensor:
        flat = torch.cat([x.flatten(1), told[:, None]], 1)
        return (torch.tanh(self.mix(flat)) + self.table(label)).reshape(x.shape)


@pytest.mark.parametrize("name", ["small", pytest.param("digits", marks=pytest.mark.slow)])
def test_a_call_and_a_run_as_onnx(name: str, tmp_path: Path) -> None:
    """Guidance around a network: any batch, any time."""
    small = fk.from_torch(alive(Small()), fk.VP(), "v", null={"label": 10})
    denoiser = fk.load("digits").denoiser if name == "digits" else small
    guided = fk.guide.CFG(denoiser, 2.0)
    example = {"label": torch.tensor([3, 5])}
    call = to_onnx(guided, tmp_path / "call.onnx", (1, 8, 8), **example)
    n = 5
    x, label = denoiser.process.start(fk.noise((n, 1, 8, 8), seed=3)), torch.arange(n)
    t = torch.linspace(0.01, 0.9, n, dtype=torch.float64)
    with torch.no_grad():
        close(run_onnx(call, x=x, t=t, label=label), guided(x, t, label=label))
    plan = fk.solve.get("dpmpp-2m").plan(denoiser.process, fk.grids.logsnr(3))
    whole = plan_to_onnx(guided, plan, tmp_path / "run.onnx", (1, 8, 8), **example)
    close(run_onnx(whole, x=x, label=label), fk.sample(guided, x, plan, label=label))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["call.onnx", "run.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddpm", "sd1", "dit", "flux"])
def test_other_people_s_networks_as_onnx(kind: str, tmp_path: Path) -> None:
    denoiser = adapted(kind)
    cond = conditions(kind, denoiser)
    x = denoiser.process.start(fk.noise((2, *denoiser.shape), seed=3))
    plan = fk.solve.get("ddim").plan(denoiser.process, fk.grids.uniform(2))
    whole = plan_to_onnx(denoiser, plan, tmp_path / "run.onnx", denoiser.shape, batch=2, **cond)
    close(run_onnx(whole, x=x, **cond), fk.sample(denoiser, x, plan, **cond))


def test_onnx_refusals(tmp_path: Path) -> None:
    denoiser = fk.load("digits").denoiser
    plan = fk.solve.get("ddpm").plan(denoiser.process, fk.grids.logsnr(2))
    with pytest.raises(FokkerError, match="draws noise"):
        plan_to_onnx(denoiser, plan, tmp_path / "a.onnx", (1, 8, 8))
    with pytest.raises(FokkerError, match="does not end in"):
        to_onnx(denoiser, tmp_path / "a.pt", (1, 8, 8))
    with pytest.raises(FokkerError, match="a tensor of 2 rows"):
        to_onnx(denoiser, tmp_path / "a.onnx", (1, 8, 8), label=torch.tensor([1]))
    class Broken(fk.Denoiser):
        def x0(self, x_t: Tensor, t: Any) -> Tensor:
            return x_t * float(x_t.sum())

    with pytest.raises(FokkerError, match="was not exported"):
        to_onnx(Broken(fk.VP()), tmp_path / "a.onnx", (3,))
    assert not list(tmp_path.iterdir()), json.dumps([str(f) for f in tmp_path.iterdir()])
