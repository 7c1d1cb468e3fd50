"""One process and several on this machine: seconds of the same sampling and the same training, and a model for more.

    python bench/scaling.py [--processes 1,2] [--out bench/results/scaling.json]

Every process has one thread. The model, which is a model and no measurement: an update of N processes takes

    T(N) = compute(batch / N) + 2 (N - 1) / N * bytes / bandwidth + latency * log2(N),

a ring all-reduce of float32 gradients after the computation (overlap would hide part of it); sampling has no traffic but the
samples themselves, so that T(N) = parts / N rounded up to whole parts.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import fokker as fk
from fokker.checks import provenance

ROOT = Path(fk.__file__).parents[1]
RECIPE = {
    "data": "toy:digits",
    "net": {"preset": "digits"},
    "process": {"process": "EDM", "sigma_min": 0.02, "sigma_max": 80},
    "samples": 12_800,
    "batch": 128,
    "log": {"every": 1280},
    "checkpoint": {"every": 12_800, "keep": 1},
    "cpu": True,
}
MACHINES = ((8, 25e9, "8 GPUs in one machine, 25 GB/s each way"), (64, 12.5e9, "64 GPUs, 100 Gbit/s a GPU"))
LATENCY = 2e-5


def launched(processes: int, *words: str) -> float:
    """Seconds of a command on so many processes, start-up included."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    begin = time.perf_counter()
    subprocess.run([sys.executable, *launch, "-m", *words], env=environment, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - begin


def sampling(processes: int, folder: Path) -> dict[str, Any]:
    """1,024 digits of 18 evaluations in parts of 64, and the file they make."""
    out = folder / f"{processes}.safetensors"
    whole = launched(processes, "fokker", "sample", "--model", "digits", "-n", "1024", "--batch", "64", "--out", str(out))
    return {"seconds": round(whole, 2), "file": out.read_bytes()}


def training(processes: int, folder: Path) -> dict[str, Any]:
    """100 updates of the digits recipe: seconds an update after the first tenth, and the last loss."""
    path, out = folder / f"{processes}.yaml", folder / f"run{processes}"
    path.write_text(yaml.safe_dump(RECIPE | {"out": str(out)}))
    launched(processes, "fokker.train", str(path))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    updates = (lines[-1]["samples"] - lines[0]["samples"]) / RECIPE["batch"]
    return {"seconds an update": round((lines[-1]["seconds"] - lines[0]["seconds"]) / updates, 4), "loss": lines[-1]["loss"]}


def modelled(parameters: float, compute: float) -> list[dict[str, Any]]:
    """The model's seconds an update and efficiency for a network with this computation on one device."""
    rows = []
    for n, bandwidth, words in MACHINES:
        traffic = 2 * (n - 1) / n * 4 * parameters / bandwidth + LATENCY * math.log2(n)
        together = compute / n + traffic
        rows.append({"machine": words, "seconds": round(together, 4), "efficiency": round(compute / n / together, 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="One process and several, measured; more, modelled.")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    numbers = [int(n) for n in options.processes.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        made = {n: sampling(n, Path(scratch)) for n in numbers}
        trained = {n: training(n, Path(scratch)) for n in numbers}
    files = {value.pop("file") for value in made.values()}
    results: dict[str, Any] = {
        **provenance(),
        "sampling": made,
        "same file from all": len(files) == 1,
        "training": trained,
        "model, a 0.7 billion parameter network, 1 s an update on one device": modelled(0.7e9, 1.0),
    }
    print(json.dumps(results, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
