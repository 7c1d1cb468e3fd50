"""Pipelines of diffusers, tiny and random, give through fokker what they give by themselves; refusals are one sentence."""

import dataclasses
import functools
import inspect
import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import KINDS, TEXT, make, unet2d, unet2d_condition
from torch import Tensor

import fokker as fk
from fokker import model as models
from fokker.adapt import Pretrained
from fokker.adapt.folder import quiet
from fokker.adapt.schedule import read_schedule
from fokker.cli import job
from fokker.errors import FokkerError
from fokker.probing import probe
from fokker.process import TableVP

PROMPTS = ["red cat", "blue dog"]
GUIDED = ("sd1", "sd2", "sdxl", "dit", "pixart", "sd3")


@functools.cache
def adapted(kind: str) -> Pretrained:
    return fk.from_diffusers(make(kind), size=(16, 16) if kind in ("flux", "schnell") else None)


def conditions(kind: str, denoiser: Pretrained, n: int = 2) -> dict[str, Tensor]:
    words = {"prompt": (PROMPTS * n)[:n]} if kind in TEXT else {"label": ([3, 5] * n)[:n]} if kind == "dit" else {}
    return denoiser.model.condition(n, **words)


def theirs(kind: str, scheduler: Any, steps: int, x: Tensor) -> Tensor:
    """The latents that the pipeline itself ends with; it starts from x."""
    pipeline = make(kind)
    own, pipeline.scheduler = pipeline.scheduler, scheduler
    generator = torch.Generator().manual_seed(0)
    try:
        if kind in TEXT:
            given: dict[str, Any] = {"latents": x, "guidance_scale": 4.0, "output_type": "latent", "num_inference_steps": steps}
            if "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters:
                given["use_resolution_binning"] = False
            if kind in ("flux", "schnell"):
                given["latents"] = pipeline._pack_latents(x, *x.shape)
            out = pipeline(PROMPTS, height=16, width=16, **given).images
            return pipeline._unpack_latents(out, 16, 16, 2) if kind in ("flux", "schnell") else out
    finally:
        pipeline.scheduler = own
    # the others take no latents: their loop, with their network and their scheduler
    net = pipeline.transformer if kind == "dit" else pipeline.unet
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            if kind == "dit":
                label = torch.tensor([3, 5, 1000, 1000])
                out = net(torch.cat([x, x]), t.expand(4), class_labels=label).sample[:, :4]
                out = out[2:] + 4.0 * (out[:2] - out[2:])
            else:
                out = net(x, t).sample
            x = scheduler.step(out, t, x, generator=generator).prev_sample if "DDIM" in type(scheduler).__name__ else (
                scheduler.step(out, t, x).prev_sample
            )
    return x


def ours(kind: str, scheduler: Any, steps: int, x: Tensor, solver: str) -> Tensor:
    denoiser = fk.from_diffusers(make(kind), scheduler=scheduler, size=(16, 16) if kind in ("flux", "schnell") else None)
    cond = conditions(kind, denoiser)
    if "guidance" in (denoiser.conditions or ()):
        cond |= denoiser.model.condition(2, guidance=4.0)
    chosen = fk.guide.CFG(denoiser, 4.0) if kind in GUIDED else denoiser
    return fk.sample(chosen, x, solver=solver, grid=denoiser.grid(steps), **cond)


def schedulers(kind: str) -> list[tuple[str, Any, int]]:
    """Solvers of fokker with the schedulers that mean the same."""
    config = make(kind).scheduler.config
    if kind in ("sd3", "flux", "schnell"):
        return [("euler", diffusers.FlowMatchEulerDiscreteScheduler.from_config(config), 6)]
    spacing = "trailing" if kind == "sd2" else "leading"
    table = diffusers.DDIMScheduler.from_config(config, clip_sample=False, timestep_spacing=spacing)
    found: list[tuple[str, Any, int]] = [("ddim", table, 5)]
    if kind != "sd2":  # its table ends without signal, where DPM-Solver++ is not defined; theirs begins a little below
        found.append(("dpmpp-2m", diffusers.DPMSolverMultistepScheduler.from_config(config), 6))
    if kind == "sdxl":
        found.append(("euler", diffusers.EulerDiscreteScheduler.from_config(config, timestep_spacing="leading"), 6))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_equals_the_pipeline_s_own(kind: str) -> None:
    x = fk.noise((2, *adapted(kind).shape), seed=5)
    for solver, scheduler, steps in schedulers(kind):
        wanted = theirs(kind, scheduler, steps, x)
        off = float((ours(kind, scheduler, steps, x, solver) - wanted).abs().max() / wanted.abs().max())
        assert float(wanted.std()) > 0.1
        assert off < 1e-4, f"{kind}, {solver}: {off:.1e}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_the_pipeline(kind: str, tmp_path: Path) -> None:
    pipeline = make(kind)
    with quiet():
        pipeline.save_pretrained(tmp_path / kind)
    size = (16, 16) if kind in ("flux", "schnell") else None
    loaded, given = fk.from_diffusers(tmp_path / kind, size=size), adapted(kind)
    x = fk.noise((2, *given.shape), seed=3)
    words = {"prompt": "red cat"} if kind in TEXT else {"label": 7} if kind == "dit" else {}
    # fused kernels round by how the weights lie in memory
    found, wanted = (d(x, 0.4, **d.model.condition(2, **words)) for d in (loaded, given))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert torch.equal(loaded.codec.decode(x), given.codec.decode(x))
    assert loaded.model.shape == given.model.shape and loaded.process.config == given.process.config
    assert loaded.model.decode(x).shape == (2, *given.model.shape[1:], 3)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_a_job_on_a_folder_is_itself_again(kind: str, tmp_path: Path) -> None:
    """From how much fits into memory to the batch that the record names, nothing of the first run changes the second."""
    with quiet():
        make(kind).save_pretrained(tmp_path / kind)
    size = (16, 16) if kind == "flux" else None
    wrap = () if kind == "flux" else ("cfg:3",)
    asked = job.Job(str(tmp_path / kind), seeds=(0, 1), steps=2, guidance=wrap, conditions={"prompt": "red cat"}, size=size)
    first = job.run(asked)
    assert first.job.batch == 1 and float(first.x0.std()) > 0.1
    assert torch.equal(job.run(first.job).x0, first.x0)
    alone = job.run(dataclasses.replace(first.job, seeds=(1,)))
    assert torch.equal(alone.x0, first.x0[1:]) and (alone.model.decode(alone.x0) == first.model.decode(first.x0[1:])).all()


def test_the_usage_that_is_promised(tmp_path: Path) -> None:
    with quiet():
        make("sd1").save_pretrained(tmp_path / "pipeline")
    denoiser = fk.from_diffusers(str(tmp_path / "pipeline"))
    x1 = denoiser.process.start(fk.noise((2, *denoiser.shape), seed=0))
    plain = fk.sample(denoiser, x1, solver="dpmpp-2m", nfe=4)
    model = fk.load(tmp_path / "pipeline")
    empty = fk.sample(model.denoiser, x1, solver="dpmpp-2m", nfe=4, **model.condition(2, prompt=""))
    assert torch.equal(plain, empty)  # no prompt is the empty prompt
    named = fk.sample(denoiser, x1, solver="dpmpp-2m", nfe=4, **model.condition(2, prompt=PROMPTS))
    assert not torch.allclose(plain, named, rtol=1e-2)
    assert fk.sample(denoiser, x1, solver="dpmpp-2m", nfe=4, **denoiser.conditioner(PROMPTS)).equal(named)


def test_the_command_line_samples_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fokker.cli.app import app

    with quiet():
        make("sd1").save_pretrained(tmp_path / "pipeline")
    monkeypatch.chdir(tmp_path)
    asked = ["sample", "--model", "pipeline", "--prompt", "red cat", "-n", "2", "--steps", "2", "--device", "cpu"]
    for out in ("a.png", "b.safetensors"):
        done = CliRunner().invoke(app, [*asked, "--guidance", "cfg:2", "--out", out], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    again = CliRunner().invoke(app, ["rerun", "a.png", "--json"], catch_exceptions=False)
    assert again.exit_code == 0 and '"identical": true' in again.output
    (tmp_path / "pipeline" / "note.json").write_text("{}")
    record = json.loads(CliRunner().invoke(app, ["rerun", "a.png", "--show"]).output)
    assert record["model_sha256"] != models.digest(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "note.json").unlink()
    assert record["model_sha256"] == models.digest(tmp_path / "pipeline")


# --- schedules -----------------------------------------------------------------------------------------------------------


SPREAD = 0.7
LAW = fk.laws.lowrank(dim=48, components=3, rank=4, seed=0)


class Exact(fk.Denoiser):
    """The law's denoiser, on images."""

    def x0(self, x_t: Tensor, t: Any) -> Tensor:
        return LAW.denoiser(self.process)(x_t.flatten(1).double(), t).reshape(x_t.shape).to(x_t.dtype)


class Oracle(diffusers.UNet2DModel):
    """A U-Net by its class that knows the law: it predicts what its scheduler says, at the clock that it is told."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Any = None) -> Any:
        schedule, told = self.schedule, float(timestep[0].double())
        process, exact = schedule.process, Exact(schedule.process)
        if schedule.prediction == "edm":
            sigma = math.exp(4 * told)
            size = (sigma**2 + SPREAD**2) ** 0.5
            x_0 = exact(sample * size, sigma / process.sigma_max)
            out = schedule.sign * (x_0 - SPREAD**2 / size * sample) / (sigma * SPREAD / size)
        else:
            if isinstance(process, fk.VE):
                t = math.log(told / process.sigma_min) / math.log(process.sigma_max / process.sigma_min)
            else:
                t = told / 1000 if isinstance(process, fk.Flow) else (told + 1) / len(process.betas)
            x0 = schedule.prediction == "x0"
            out = exact(sample, t) if x0 else exact.predict(schedule.prediction, sample, t)
        return SimpleNamespace(sample=out)


def oracle(scheduler: Any, **options: Any) -> Pretrained:
    net = Oracle(**{**dict(unet2d().config), "sample_size": 4})
    net.schedule = read_schedule(scheduler)
    return fk.from_diffusers(net, scheduler=scheduler, **options)


SCHEDULERS = {
    "eps": lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "v": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "x0": lambda: diffusers.DDIMScheduler(prediction_type="sample", num_train_timesteps=400, beta_end=0.05),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "score": lambda: diffusers.ScoreSdeVeScheduler(sigma_max=50.0),
    "edm": lambda: diffusers.EDMEulerScheduler(sigma_data=SPREAD),
    "edm, v": lambda: diffusers.EDMDPMSolverMultistepScheduler(sigma_data=SPREAD, prediction_type="v_prediction"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_network_that_knows_a_law_is_the_law_s_denoiser(name: str) -> None:
    denoiser = oracle(SCHEDULERS[name]())
    process = denoiser.process
    x_0 = LAW.sample(4, seed=1).reshape(4, 3, 4, 4).float()
    for t in (0.9, 0.5, 0.1, 0.05):
        x = process.add_noise(x_0, fk.noise((4, 3, 4, 4), seed=2), t)
        # what is divided by alpha (or, of EDM, comes back through c_out) multiplies the network's rounding
        gain = max(1.0, float(process.sigma(t) / process.alpha(t)))
        torch.testing.assert_close(denoiser(x, t), Exact(process)(x, t), rtol=0, atol=2e-6 * gain)
    assert denoiser.prediction == name.split(",")[0]


@pytest.mark.parametrize("name", ["eps", "v", "x0", "flow"])
def test_a_wrong_prediction_type_is_found(name: str) -> None:
    denoiser = oracle(SCHEDULERS[name]())
    data = LAW.sample(256, seed=3).reshape(256, 3, 4, 4).float()
    wrong = "v" if name == "eps" else "eps"
    for declared in (name, wrong):
        found = probe(denoiser.call, denoiser.process, data, declared=declared)
        assert found.best == name and found.agrees == (declared == name), found
    assert oracle(SCHEDULERS[name](), prediction=wrong).prediction == wrong


def test_the_grid_is_the_scheduler_s_where_it_is_consistent_and_right_where_it_is_not() -> None:
    def grid(scheduler: Any, steps: int, **options: Any) -> list[float]:
        return [round(t, 6) for t in read_schedule(scheduler).grid(steps, **options).values.tolist()]

    leading = diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False)
    assert grid(leading, 5) == [0.802, 0.602, 0.402, 0.202, 0.002, 0.001]
    assert grid(diffusers.PNDMScheduler(skip_prk_steps=True), 4) == [0.751, 0.501, 0.251, 0.001]
    # diffusers' own DDIM step goes 999 -> 799 -> ... on rows it never stops at (their issue 12633)
    assert grid(diffusers.DDIMScheduler(timestep_spacing="linspace"), 5) == [1.0, 0.75, 0.501, 0.251, 0.001, 0.0]
    shifted = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert grid(shifted, 4, spread=True) == [1.0, 0.9, 0.75, 0.5, 0.0]
    moving = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    few, many = (grid(moving, 4, spread=True, tokens=n) for n in (256, 4096))
    assert few[1] == pytest.approx(1 / (1 + math.exp(-0.5) / 3), abs=1e-6)
    assert many[1] == pytest.approx(1 / (1 + math.exp(-1.15) / 3), abs=1e-6)
    geometric = grid(diffusers.ScoreSdeVeScheduler(), 4)
    assert geometric == pytest.approx([1.0, 0.666670, 0.333340, 0.00001], abs=2e-6)
    karras = grid(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), 5)
    assert karras[-1] == 0.0 and all(a > b for a, b in pairwise(karras))


def test_betas_and_zero_terminal_snr() -> None:
    schedule = read_schedule(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert isinstance(schedule.process, TableVP) and float(schedule.process.alpha(1.0)) == 0.0
    table = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    process = read_schedule(table).process
    rows = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(process.alpha(rows) ** 2, table.alphas_cumprod.double(), rtol=1e-5, atol=0)
    with pytest.raises(FokkerError, match="zero terminal SNR"):
        read_schedule(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))


# --- refusals ------------------------------------------------------------------------------------------------------------


def test_what_is_not_supported_is_refused() -> None:
    with pytest.raises(FokkerError, match="unknown scheduler 'CMStochasticIterativeScheduler'"):
        fk.from_diffusers(unet2d(), scheduler=diffusers.CMStochasticIterativeScheduler())
    with pytest.raises(FokkerError, match="comes without a scheduler"):
        fk.from_diffusers(unet2d())
    with pytest.raises(FokkerError, match=r"AutoencoderTiny is not supported; UNet2DModel.*fk.from_torch"):
        fk.from_diffusers(diffusers.AutoencoderTiny(), scheduler=diffusers.DDIMScheduler())
    with pytest.raises(FokkerError, match="addition_embed_type='text'"):
        fk.from_diffusers(unet2d_condition(addition_embed_type="text"), scheduler=diffusers.DDIMScheduler())
    with pytest.raises(FokkerError, match="give the folder that diffusers saved, or hf:some/where to fetch it"):
        fk.from_diffusers("some/where")
    with pytest.raises(FokkerError, match="unknown prediction 'epsilon'"):
        fk.from_diffusers(unet2d(), scheduler=diffusers.DDIMScheduler(), prediction="epsilon")
    with pytest.raises(FokkerError, match="multiples of 2"):
        fk.from_diffusers(make("sd1"), size=(15, 16))
    sd1 = adapted("sd1")
    with pytest.raises(FokkerError, match="unknown option or condition 'label'"):
        fk.sample(sd1, fk.noise((2, *sd1.shape)), nfe=2, label=torch.zeros(2, dtype=torch.int64))
    bare = fk.from_diffusers(make("sd1").unet, scheduler=make("sd1").scheduler)
    with pytest.raises(FokkerError, match="UNet2DConditionModel needs tokens="):
        bare(fk.noise((2, *bare.shape)), 0.5)
    with pytest.raises(FokkerError, match="the text encoder is not here"):
        fk.guide.CFG(bare, 2.0)(fk.noise((2, *bare.shape)), 0.5, tokens=torch.zeros(2, 16, 16))
    labelled = fk.from_diffusers(unet2d(num_class_embeds=3), scheduler=diffusers.DDIMScheduler())
    with pytest.raises(FokkerError, match="no class for none"):
        fk.guide.CFG(labelled, 2.0)(fk.noise((2, 3, 8, 8)), 0.5, label=torch.zeros(2, dtype=torch.int64))


def test_weights_must_all_find_their_place(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with quiet():
        make("ddpm").save_pretrained(tmp_path / "p")
    file = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    count, name = len(weights), sorted(weights)[3]
    for fault in ("missing", "unexpected", "shape", "pickle"):
        changed = dict(weights)
        if fault == "missing":
            del changed[name]
        elif fault == "unexpected":
            changed["extra.weight"] = torch.zeros(2)
        elif fault == "shape":
            changed[name] = torch.zeros(3)
        save_file(changed, file, metadata={"format": "pt"})
        said = {
            "missing": rf"matches {count - 1} of {count} weights of UNet2DModel \(missing: {name}\)",
            "unexpected": rf"matches {count} of {count} weights of UNet2DModel \(unexpected: extra.weight\)",
            "shape": "does not load as UNet2DModel|mismatched",
            "pickle": "no weights as safetensors; pickled ones are not read",
        }[fault]
        if fault == "pickle":
            file.rename(file.with_suffix(".bin"))
        with pytest.raises(FokkerError, match=said) as error:
            fk.from_diffusers(tmp_path / "p")
        assert "\n" not in str(error.value)


def test_parts_of_an_index_are_only_those_that_are_known(tmp_path: Path) -> None:
    with quiet():
        make("ddpm").save_pretrained(tmp_path / "p")
    index = tmp_path / "p" / "model_index.json"
    plain = json.loads(index.read_text())
    for role, entry, said in (
        ("controlnet", ["diffusers", "ControlNetModel"], "has a controlnet .ControlNetModel., which is not supported"),
        ("unet", ["my_code", "MyUNet"], "unknown class of unet 'MyUNet'"),
        ("unet", ["my_code", "UNet2DModel"], "unknown class of unet"),
    ):
        index.write_text(json.dumps({**plain, role: entry}))
        with pytest.raises(FokkerError, match=said):
            fk.from_diffusers(tmp_path / "p")
    index.write_text("{")
    with pytest.raises(FokkerError, match="not readable JSON"):
        fk.from_diffusers(tmp_path / "p")


def test_a_hub_id_says_what_it_fetches_and_fetches_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    with quiet():
        make("sd1").save_pretrained(tmp_path / "repo")
    index = tmp_path / "repo" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "safety_checker": ["stable_diffusion", "Checker"]}))
    MiB = 2**20
    sizes = {str(f.relative_to(tmp_path / "repo")): MiB for f in (tmp_path / "repo").rglob("*") if f.is_file()}
    wanted = set(sizes)
    sizes |= {"v1-5.safetensors": 4000 * MiB, "unet/diffusion_pytorch_model.bin": MiB, "safety_checker/model.safetensors": MiB}
    sizes |= {"unet/diffusion_pytorch_model.fp16.safetensors": MiB, "unet/diffusion_flax_model.msgpack": MiB}
    fetched: list[str] = []

    class Api:
        def model_info(self, name: str, files_metadata: bool) -> Any:
            files = [type("File", (), {"rfilename": f, "size": n}) for f, n in sizes.items()]
            return type("Info", (), {"siblings": files})

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        fetched.extend(allow_patterns)
        return str(tmp_path / "repo")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(tmp_path / "repo" / file))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    denoiser = fk.from_diffusers("hf:some/model")
    assert set(fetched) == wanted and len(fetched) == len(wanted)
    assert capsys.readouterr().err == f"some/model from the Hugging Face hub: {len(wanted)} files, {len(wanted)} MiB\n"
    assert denoiser.conditioner is not None


def test_weights_as_older_versions_wrote_them(tmp_path: Path) -> None:
    """Positions among CLIP's weights, T5's table twice, attention of autoencoders by other names, DiT by its first class."""
    from safetensors.torch import load_file, save_file

    def rewrite(file: Path, change: Any) -> None:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    def clip_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        old = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in weights.items()}
        return old | {"text_model.embeddings.position_ids": torch.arange(16)[None]}

    def vae_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        pairs = {"to_out.0": "proj_attn", "to_q": "query", "to_k": "key", "to_v": "value"}
        renamed = {}
        for name, value in weights.items():
            for new, old in pairs.items():
                name = name.replace(new, old) if "attentions" in name else name
            renamed[name] = value
        assert renamed.keys() != weights.keys()
        return renamed

    with quiet():
        make("sd3").save_pretrained(tmp_path / "sd3")
        make("dit").save_pretrained(tmp_path / "dit")
    for role in ("text_encoder", "text_encoder_2"):
        rewrite(tmp_path / "sd3" / role / "model.safetensors", clip_names)
    t5 = tmp_path / "sd3" / "text_encoder_3" / "model.safetensors"
    rewrite(t5, lambda w: w | {"encoder.embed_tokens.weight": w["shared.weight"].clone()})
    rewrite(tmp_path / "sd3" / "vae" / "diffusion_pytorch_model.safetensors", vae_names)
    for file in (tmp_path / "dit" / "transformer" / "config.json", tmp_path / "dit" / "model_index.json"):
        file.write_text(file.read_text().replace('"DiTTransformer2DModel"', '"Transformer2DModel"'))
    for kind, words in (("sd3", {"prompt": "red"}), ("dit", {"label": 3})):
        loaded, given = fk.from_diffusers(tmp_path / kind), adapted(kind)
        x = fk.noise((1, *given.shape))
        found, wanted = (d(x, 0.5, **d.model.condition(1, **words)) for d in (loaded, given))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        assert torch.equal(loaded.codec.decode(x), given.codec.decode(x))


def test_number_formats_and_parts_that_are_left_out(tmp_path: Path) -> None:
    with quiet():
        make("sd1").save_pretrained(tmp_path / "p")
    bare, narrow = fk.from_diffusers(tmp_path / "p", text=False), fk.from_diffusers(tmp_path / "p", dtype="bfloat16")
    assert bare.conditioner is None and narrow.net.dtype == torch.bfloat16 == next(narrow.codec.parameters()).dtype
    x, cond = fk.noise((2, *bare.shape)), conditions("sd1", adapted("sd1"))
    wanted = adapted("sd1")(x, 0.5, **cond)
    assert torch.equal(bare(x, 0.5, **cond), wanted)
    found = narrow(x, 0.5, **conditions("sd1", narrow))
    assert found.dtype == torch.float32 and float((found - wanted).abs().mean() / wanted.abs().mean()) < 0.05
    with pytest.raises(FokkerError, match="takes no prompt, or was loaded with text=False"):
        bare.model.condition(2, prompt="red")
    with pytest.raises(FokkerError, match="3 rows of tokens are given for 2 samples"):
        narrow.model.condition(2, prompt=["red"] * 3)
