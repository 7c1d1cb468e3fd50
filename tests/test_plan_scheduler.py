"""A plan inside a pipeline of diffusers gives what fokker's own loop gives."""

import json

import pytest
import torch

import fokker as fk
from fokker import solve
from fokker.errors import FokkerError
from fokker.plan import Plan, Row

diffusers = pytest.importorskip("diffusers")

from fokker.adapt.scheduler import PlanScheduler  # noqa: E402


def random_unet(**options):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, **options,
    )  # fmt: skip
    return net.eval()


def run_pipeline(pipe, steps, seed=3, n=2):
    """What the pipeline has before it clips to pictures."""
    seen, step = [], pipe.scheduler.step

    def look(*args, **kwargs):
        seen.append(step(*args, **kwargs))
        return seen[-1]

    pipe.scheduler.step = look
    pipe.set_progress_bar_config(disable=True)
    pipe(batch_size=n, num_inference_steps=steps, output_type="np", generator=torch.Generator().manual_seed(seed))
    return seen[-1].prev_sample


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc", "heun", "dpm-3", "ipndm", "edict"])
def test_a_pipeline_gives_what_the_loop_gives(name, prediction):
    pipe = diffusers.DDPMPipeline(random_unet(), diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False))
    denoiser = fk.from_diffusers(pipe)
    plan = solve.get(name).budget(7, denoiser.process, lambda n: fk.grids.karras(n, end=0.02))
    pipe.scheduler = PlanScheduler.of(plan, pipe.scheduler)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    close(run_pipeline(pipe, plan.nfe), fk.sample(denoiser, noise, plan))


def loop(pipe_scheduler, net, x1, generator=None):
    """The loop of every pipeline that honours init_noise_sigma and scale_model_input."""
    pipe_scheduler.set_timesteps(len(pipe_scheduler))
    x = x1 * pipe_scheduler.init_noise_sigma
    with torch.no_grad():
        for t in pipe_scheduler.timesteps:
            out = net(pipe_scheduler.scale_model_input(x, t), t).sample
            x = pipe_scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
    return x


SCHEDULERS = [
    diffusers.DDIMScheduler(prediction_type="epsilon"),
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.EDMEulerScheduler(),
    diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
]


@pytest.mark.parametrize("own", SCHEDULERS)
def test_a_tuned_plan_that_starts_late_on_every_kind_of_network(own):
    net = random_unet()
    denoiser = fk.from_diffusers(net, scheduler=own)
    plan = fk.tune(denoiser, nfe=4, shape=(3, 8, 8), n=16, steps=1, seconds=600)
    scheduler = PlanScheduler.of(plan, own)
    x1 = fk.noise((2, 3, 8, 8), seed=1)
    expected = fk.sample(denoiser, denoiser.process.start(x1), plan)
    close(loop(scheduler, net, x1), expected)
    # a second run owes nothing to the first
    close(loop(scheduler, net, x1), expected)


def test_saved_and_loaded(tmp_path):
    own = diffusers.DDIMScheduler()
    denoiser = fk.from_diffusers(random_unet(), scheduler=own)
    plan = solve.get("unipc").plan(denoiser.process, fk.grids.logsnr(5))
    PlanScheduler.of(plan, own, seed=4).save_pretrained(tmp_path)
    loaded = PlanScheduler.from_pretrained(tmp_path)
    assert json.loads(loaded.plan.json()) == json.loads(plan.json())
    assert loaded.config.seed == 4 and loaded.config.clock == "row" and loaded.config.prediction == "eps"
    x1, net = fk.noise((1, 3, 8, 8)), random_unet()
    torch.testing.assert_close(loop(loaded, net, x1), loop(PlanScheduler.of(plan, own), net, x1), rtol=0, atol=0)


def test_noise_is_keyed_or_the_generator_s():
    own, net = diffusers.DDIMScheduler(), random_unet()
    denoiser = fk.from_diffusers(net, scheduler=own)
    plan = solve.get("ddpm").plan(denoiser.process, fk.grids.logsnr(4, end=0.02))
    x1 = fk.noise((2, 3, 8, 8))
    keyed = loop(PlanScheduler.of(plan, own, seed=9), net, x1)
    start = denoiser.process.start(x1)
    close(keyed, fk.sample(denoiser, start, plan, seed=9))
    drawn = [loop(PlanScheduler.of(plan, own), net, x1, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], keyed)


def test_what_it_refuses():
    own = diffusers.DDIMScheduler()
    process = fk.from_diffusers(random_unet(), scheduler=own).process
    plan = solve.get("ddim").plan(process, fk.grids.logsnr(3))
    with pytest.raises(FokkerError, match="num_inference_steps=5"):
        PlanScheduler.of(plan, own).set_timesteps(5)
    with pytest.raises(FokkerError, match="laid out for"):
        PlanScheduler.of(solve.get("ddim").plan(fk.VP(), fk.grids.logsnr(3)), own)
    with pytest.raises(FokkerError, match="clock"):
        PlanScheduler(json.loads(plan.json()), clock="rows")
    # a start of half the size in a pipeline that knows nothing of it
    half = Plan((Row(()), Row(((("x", 0), 0.5),), 0.8), Row(((("x", 1), 0.5), (("D", 1), 0.5)))), process, (2,), end=0.02)
    pipe = diffusers.DDPMPipeline(random_unet(), PlanScheduler.of(half, own))
    with pytest.raises(FokkerError, match="init_noise_sigma"):
        run_pipeline(pipe, 1)
    done = PlanScheduler.of(plan, own)
    loop(done, random_unet(), fk.noise((1, 3, 8, 8)))
    with pytest.raises(FokkerError, match="set_timesteps"):
        done.step(torch.zeros(1, 3, 8, 8), 0, torch.zeros(1, 3, 8, 8))


def test_a_guided_pipeline_with_words():
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    own = diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=own, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    words, nothing, latents = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 4, 8, 8)

    def guided(x, t):
        told = torch.full((2,), t * 1000 - 1)
        with torch.no_grad():
            eps, free = (unet(x, told, encoder_hidden_states=c).sample for c in (words, nothing))
        return free + 4.0 * (eps - free)

    denoiser = fk.as_denoiser(guided, fk.from_diffusers(unet, scheduler=own).process, "eps")
    plan = solve.get("dpmpp-3m").plan(denoiser.process, fk.grids.karras(5, end=0.01))
    pipe.scheduler = PlanScheduler.of(plan, own)
    out = pipe(
        prompt_embeds=words, negative_prompt_embeds=nothing, latents=latents, guidance_scale=4.0, num_inference_steps=plan.nfe,
        output_type="latent",
    ).images  # fmt: skip
    expected = fk.sample(denoiser, denoiser.process.start(latents), plan)
    close(out, expected)
