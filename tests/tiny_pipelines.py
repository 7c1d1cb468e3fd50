"""Pipelines of diffusers of every kind, tiny and with random weights, built from configurations: nothing is downloaded."""

import functools
import string
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

WORDS = ["red", "blue", "cat", "dog", "circle"]


def alive(net: nn.Module, seed: int = 0) -> Any:
    """Weights from a seed, so that nothing is zero and no call saturates."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            spread = 0.1 if p.ndim < 2 else 1.0 / max(1, p[0].numel()) ** 0.5
            p.copy_(
                torch.randn(p.shape, generator=generator) * spread + (1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0)
            )
    return net.eval()


@functools.cache
def clip_tokenizer() -> Any:
    letters = list(string.ascii_lowercase)
    vocab = letters + [c + "</w>" for c in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocab.append(parts[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: k for k, token in enumerate(dict.fromkeys(vocab))}
    return transformers.CLIPTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), model_max_length=16)


@functools.cache
def t5_tokenizer() -> Any:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0)]
    vocab += [("▁" + w, -1.0) for w in WORDS] + [(c, -3.0) for c in "▁" + string.ascii_lowercase]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=16)


def clip(width: int = 16, seed: int = 1, projection: int | None = None) -> Any:
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return alive(kind(config), seed)


def t5(width: int = 16, seed: int = 2) -> Any:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return alive(transformers.T5EncoderModel(config), seed)


def kl(channels: int = 4, seed: int = 3, **options: Any) -> Any:
    return alive(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=16,
            **options,
        ),
        seed,
    )


def unet2d(seed: int = 4, **options: Any) -> Any:
    given = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return alive(diffusers.UNet2DModel(**{**given, **options}), seed)


def unet2d_condition(seed: int = 5, **options: Any) -> Any:
    given = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    return alive(diffusers.UNet2DConditionModel(**{**given, **options}), seed)


SCALED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def ddpm() -> Any:
    return diffusers.DDIMPipeline(unet2d(), diffusers.DDIMScheduler(clip_sample=False))


def ldm() -> Any:
    vae = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=4,
    )
    scheduler = diffusers.DDIMScheduler(**{**SCALED, "steps_offset": 0}, set_alpha_to_one=False)
    return diffusers.LDMPipeline(alive(vae, 6), unet2d(7), scheduler)


def sd1(**options: Any) -> Any:
    scheduler = diffusers.DDIMScheduler(**SCALED, set_alpha_to_one=False)
    return diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet2d_condition(**options),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2() -> Any:
    pipeline = sd1(attention_head_dim=(2, 4), use_linear_projection=True)
    pipeline.scheduler = diffusers.DDIMScheduler(
        **SCALED, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return pipeline


def lcm() -> Any:
    """A network that is told its guidance scale, as distilled ones are, in the loop of its teacher."""
    return sd1(time_cond_proj_dim=8)


def sdxl() -> Any:
    unet = unet2d_condition(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(scaling_factor=0.13025),
        text_encoder=clip(seed=8),
        text_encoder_2=clip(seed=9, projection=12),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**{k: v for k, v in SCALED.items() if k != "clip_sample"}),
        add_watermarker=False,
    )


def dit() -> Any:
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    labels = {k: f"kind {k}" for k in range(1000)}
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer=alive(net, 10), vae=kl(), scheduler=scheduler, id2label=labels)


def pixart(**options: Any) -> Any:
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=16,
        norm_num_groups=4,
        **options,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=kl(), transformer=alive(net, 11), scheduler=scheduler
    )


def sd3(shift: float = 3.0) -> Any:
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=alive(net, 12),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=kl(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(width=16, seed=13, projection=12),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(width=16, seed=14, projection=12),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(width=32),
        tokenizer_3=t5_tokenizer(),
    )


def flux(guidance: bool = True) -> Any:
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=alive(net, 15),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0
        ),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def schnell() -> Any:
    return flux(guidance=False)


KINDS = {f.__name__: f for f in (ddpm, ldm, sd1, sd2, sdxl, lcm, dit, pixart, sd3, flux, schnell)}
TEXT = ("sd1", "sd2", "sdxl", "lcm", "pixart", "sd3", "flux", "schnell")


@functools.cache
def make(kind: str) -> Any:
    """The pipeline of a kind, made once."""
    pipeline = KINDS[kind]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
