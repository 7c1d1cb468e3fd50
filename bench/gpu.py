"""What a GPU makes of it: the loop, compiled and captured runs, caches, small numbers and training, on networks of real size.

    python bench/gpu.py [--out bench/results/gpu.json]          # one GPU, bf16, about ten minutes
    python bench/gpu.py --tiny                                  # the same steps on small networks, on a CPU too

Two networks with random weights: a UNet of SDXL's size (diffusers' UNet2DConditionModel, 2.6 billion parameters, latents of
128 x 128) and a transformer of DiT-XL/2's size (ours, 0.7 billion, latents of 32 x 32). Their outputs mean nothing; what they
cost is what a trained network costs. Ratios are medians of ratios within a turn, everything in one process. Nothing here has
run on a GPU yet; see bench/results for what has.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fokker as fk
from fokker.checks import provenance
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.loop import pure
from fokker.net import build

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL_SDXL = SDXL | {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (4, 8),
}
DIT = {"kind": "dit", "channels": 4, "width": 1152, "depth": 28, "heads": 16, "patch": 2, "classes": 1000}
SMALL_DIT = DIT | {"width": 64, "depth": 2, "heads": 2}
STEPS = 20


class UNet(nn.Module):
    """diffusers' UNet with its added conditions filled in, as `net(x, c)` with c the time in [0, 1]."""

    def __init__(self, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        with torch.device(device):
            self.unet = UNet2DConditionModel(**config).to(dtype).eval().requires_grad_(False)
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        self.register_buffer("text", torch.zeros(1, 77, config["cross_attention_dim"], device=device, dtype=dtype))
        self.register_buffer("pooled", torch.zeros(1, pooled, device=device, dtype=dtype))
        self.register_buffer("ids", torch.zeros(1, 6, device=device, dtype=dtype))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        n = len(x)
        added = {"text_embeds": self.pooled.expand(n, -1), "time_ids": self.ids.expand(n, -1)}
        answer: Tensor = self.unet(x, 1000 * c, self.text.expand(n, -1, -1), added_cond_kwargs=added, return_dict=False)[0]
        return answer


class Bench:
    """Loops against each other in turns on one device."""

    def __init__(self, device: torch.device, turns: int) -> None:
        self.device, self.turns, self.rows = device, turns, {}
        self.cuda = device.type == "cuda"

    def seconds(self, loop: Callable[[], Any]) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        loop()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def race(self, title: str, floor: str, loops: dict[str, Callable[[], Any]]) -> None:
        """Seconds of each loop and how many times the loop named `floor` it takes."""
        for loop in loops.values():
            self.seconds(loop)
        turns = [{name: self.seconds(loop) for name, loop in loops.items()} for _ in range(self.turns)]
        found = {
            name: {
                "seconds": round(statistics.median(turn[name] for turn in turns), 5),
                f"over {floor}": round(statistics.median(turn[name] / turn[floor] for turn in turns), 4),
            }
            for name in loops
        }
        self.rows[title] = found
        print(f"\n{title}")
        for name, value in found.items():
            print(f"  {name:44}{value['seconds']:10.4f} s{value[f'over {floor}']:9.3f} x {floor}", flush=True)

    def attempt(self, title: str, work: Callable[[], None]) -> None:
        """One part; where it cannot run the reason is kept and the others go on."""
        try:
            work()
        except Exception as problem:
            self.rows[title] = {"not measured": f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"}
            print(f"\n{title}: not measured, {self.rows[title]['not measured']}", flush=True)


def denoiser_of(net: nn.Module, process: fk.Process) -> Denoiser:
    return NetworkDenoiser(net, process, "eps", clock=lambda t: t).eval()


def captured(f: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """A whole run as one CUDA graph."""
    still = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(2):
            f(still)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = f(still)

    def replay() -> Tensor:
        still.copy_(x)
        graph.replay()
        return out

    return replay


def sampling(bench: Bench, title: str, net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, compiled: bool) -> None:
    """A run of `STEPS` steps: the bare network, our loop, one graph, compiled, and diffusers' scheduler."""
    from diffusers import DPMSolverMultistepScheduler

    process = fk.VP()
    denoiser = denoiser_of(net, process)
    x = fk.noise(shape, device=bench.device).to(dtype)
    plan = fk.solve.get("dpmpp-2m").plan(process, fk.grids.logsnr(STEPS))
    times = [torch.full((shape[0],), float(t), device=bench.device) for t in plan.times]
    scheduler = DPMSolverMultistepScheduler()

    @torch.no_grad()
    def bare() -> Tensor:
        return [net(x, t) for t in times][-1]

    @torch.no_grad()
    def theirs() -> Tensor:
        scheduler.set_timesteps(len(times), device=bench.device)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(net(state, (t / 1000).expand(shape[0])), t, state).prev_sample
        return state

    loops: dict[str, Callable[[], Any]] = {
        "bare network calls": bare,
        "fokker": lambda: fk.sample(denoiser, x, plan),
        "diffusers' scheduler": theirs,
    }
    if bench.cuda:
        loops["fokker, one CUDA graph"] = captured(pure(denoiser, plan), x)
    bench.race(f"{title}: {STEPS} steps", "bare network calls", loops)
    if compiled:
        faster = torch.compile(net, mode="max-autotune-no-cudagraphs" if bench.cuda else None)
        quick = denoiser_of(faster, process)
        compiled_loops: dict[str, Callable[[], Any]] = {
            "fokker": loops["fokker"],
            "fokker, compiled network": lambda: fk.sample(quick, x, plan),
        }
        if bench.cuda:
            compiled_loops["fokker, compiled network, one CUDA graph"] = captured(pure(quick, plan), x)
        bench.race(f"{title}: compiled", "fokker", compiled_loops)


def caching(bench: Bench, net: UNet, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """DeepCache and encoder propagation around the UNet: speed, and the end point's distance from the full run."""
    from fokker.cache import DeepCache, EncoderPropagation

    denoiser = denoiser_of(net, fk.VP())
    x = fk.noise(shape, device=bench.device).to(dtype)
    plan = fk.solve.get("dpmpp-2m").plan(denoiser.process, fk.grids.logsnr(STEPS))
    wrapped = {"full": denoiser, "DeepCache": DeepCache(denoiser), "encoder propagation": EncoderPropagation(denoiser)}
    bench.race("UNet: caches", "full", {k: lambda d=d: fk.sample(d, x, plan) for k, d in wrapped.items()})
    truth = fk.sample(denoiser, x, plan)
    for name, d in wrapped.items():
        gap = (fk.sample(d, x, plan) - truth).float().square().mean().sqrt() / truth.float().std()
        bench.rows["UNet: caches"][name]["rms from the full run, of its deviation"] = round(gap.item(), 5)


class Small(nn.Module):
    """A linear layer in 8 bits: per-row scales for the input, per-column ones for the weight, the device's own kernel."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.bias = kind, layer.bias
        most = 127.0 if kind == "int8" else torch.finfo(torch.float8_e4m3fn).max
        scale = layer.weight.detach().float().abs().amax(1, keepdim=True).clamp_min(1e-8) / most
        small = layer.weight.detach().float() / scale
        weight = small.round().to(torch.int8) if kind == "int8" else small.to(torch.float8_e4m3fn)
        self.most = most
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        scale = rows.float().abs().amax(1, keepdim=True).clamp_min(1e-8) / self.most
        if self.kind == "int8":
            out = torch._int_mm((rows.float() / scale).round().to(torch.int8), self.weight.T).float() * scale * self.scale
        else:
            small = (rows.float() / scale).to(torch.float8_e4m3fn)
            out = torch._scaled_mm(small, self.weight.T, scale, self.scale, out_dtype=torch.bfloat16)
        out = out.to(x.dtype)
        return (out if self.bias is None else out + self.bias).unflatten(0, x.shape[:-1])


def small_numbers(bench: Bench, net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Every wide linear layer of the transformer in int8 and in fp8: seconds a call, and the output's relative error."""
    import copy

    x = fk.noise(shape, device=bench.device).to(dtype)
    t = torch.full((shape[0],), 0.5, device=bench.device)
    nets = {str(dtype).removeprefix("torch."): net}
    for kind in ("int8", "fp8") if bench.cuda else ("int8",):
        other = copy.deepcopy(net)
        for module in list(other.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and child.in_features % 16 == child.out_features % 16 == 0:
                    setattr(module, name, Small(child, kind))
        nets[kind] = torch.compile(other) if bench.cuda else other
    if bench.cuda:
        nets["compiled"] = torch.compile(net)
    first = next(iter(nets))
    with torch.no_grad():
        bench.race("transformer: 8 bits", first, {k: lambda n=n: n(x, t) for k, n in nets.items()})
        truth = net(x, t).float()
        for name, n in nets.items():
            gap = (n(x, t).float() - truth).norm() / truth.norm().clamp_min(1e-12)
            bench.rows["transformer: 8 bits"][name]["relative error"] = round(gap.item(), 5)


def training(bench: Bench, config: dict[str, Any], side: int, batch: int, steps: int) -> None:
    """Updates a second of the transformer: our trainer against a loop written by hand for the same work."""
    from fokker.data import Arrays
    from fokker.train import Denoising, Trainer

    x = fk.noise((batch * 4, config["channels"], side, side))
    images = Arrays({"x": x, "label": torch.arange(len(x)) % 1000}, "noise")
    precision = "bf16" if bench.cuda else "no"

    def ours() -> None:
        denoiser = NetworkDenoiser(build(config), fk.EDM(), "edm")
        trainer = Trainer(
            denoiser, images, Denoising(), steps * batch, batch, conditions=("label",), precision=precision,
            cpu=not bench.cuda, quiet=True, log_every=steps * batch,
        )  # fmt: skip
        trainer.run(batch * 2)
        found["ours"] = steps_a_second(lambda: trainer.run(steps * batch), steps - 2)

    def by_hand() -> None:
        net = build(config).to(bench.device).train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
        average = [p.detach().clone() for p in net.parameters()]
        data = {k: v.to(bench.device) for k, v in images.all().items()}

        def update() -> None:
            pick = torch.randint(len(images), (batch,), device=bench.device)
            x, label = data["x"][pick], data["label"][pick]
            sigma = (torch.randn(batch, device=bench.device) * 1.2 - 0.4).exp()
            s = sigma.view(-1, 1, 1, 1)
            noised = x + s * torch.randn_like(x)
            scale = (s**2 + 1).sqrt()
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.cuda):
                answer = net(noised / scale, sigma.log() / 4, label=label)
            loss = F.mse_loss(answer.float(), (x - noised / scale**2) / (s / scale))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            torch._foreach_lerp_(average, list(net.parameters()), 0.001)

        for _ in range(2):
            update()
        found["by hand"] = steps_a_second(lambda: [update() for _ in range(steps - 2)], steps - 2)

    def steps_a_second(work: Callable[[], Any], n: int) -> float:
        return n / bench.seconds(work)

    found: dict[str, float] = {}
    by_hand()
    ours()
    bench.rows["training"] = {**{k: round(v, 3) for k, v in found.items()}, "ratio": round(found["ours"] / found["by hand"], 3)}
    print(f"\ntraining, updates a second at batch {batch}: {bench.rows['training']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling, caching, 8 bits and training on a GPU.")
    parser.add_argument("--tiny", action="store_true", help="small networks, to see that every part runs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cuda = torch.cuda.is_available()
    if not cuda and not options.tiny:
        parser.error("there is no GPU here; --tiny runs the same steps on small networks")
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    bench = Bench(device, options.turns)
    unet_config, dit_config = (SMALL_SDXL, SMALL_DIT) if options.tiny else (SDXL, DIT)
    shape, side = (8, 4, 32, 32), unet_config["sample_size"]

    def on_unet() -> None:
        net, here = UNet(unet_config, device, dtype), (1, 4, side, side)
        bench.attempt("UNet", lambda: sampling(bench, "UNet", net, here, dtype, compiled=cuda))
        bench.attempt("UNet: caches", lambda: caching(bench, net, here, dtype))

    def on_transformer() -> None:
        net = build(dit_config).to(device, dtype).eval().requires_grad_(False)
        bench.attempt("transformer", lambda: sampling(bench, "transformer", net, shape, dtype, compiled=cuda))
        bench.attempt("transformer: 8 bits", lambda: small_numbers(bench, net, shape, dtype))

    # each network is let go before the next one comes
    on_unet()
    on_transformer()
    batch, steps = (8, 6) if options.tiny else (64, 40)
    bench.attempt("training", lambda: training(bench, dit_config, 32, batch, steps))
    name = torch.cuda.get_device_name() if cuda else "cpu"
    results = {"tiny": options.tiny, "dtype": str(dtype), "device": name, **provenance()}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results | bench.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
