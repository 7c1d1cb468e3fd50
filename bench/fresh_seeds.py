"""The checks of all systems that work, on seeds that no verdict was made with.

    python bench/fresh_seeds.py [--seeds 30..32] [--ids deis,bdia] [--out bench/results/fresh_seeds.json]

A status rests on seeds 0 to 2. What fails on others says how near a bound lies to what the method does, and how much chance
was in the verdict. Systems are added to the file as they finish; a check that has not changed since is not run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from fokker import catalogue, checks
from fokker.checks import Report, provenance
from fokker.cli import spec


def missed(report: Report) -> list[dict[str, Any]]:
    """The criteria that did not hold, seed by seed, and what was raised."""
    found: list[dict[str, Any]] = []
    for run in report.runs:
        if run.outcome is None:
            found.append({"seed": run.seed, "raised": run.error})
            continue
        rows = [c for c in run.outcome.criteria if not c.holds]
        found += [{"seed": run.seed, "row": c.name, "value": c.value, "op": c.op, "bound": c.bound} for c in rows]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks of systems that work, on other seeds.")
    parser.add_argument("--seeds", default="30..32")
    parser.add_argument("--ids", default="")
    parser.add_argument("--out", type=Path, default=Path("bench/results/fresh_seeds.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = spec.seeds(options.seeds)
    working = [r.id for r in catalogue.records(systems_only=True) if catalogue.status(r.id) == "works"]
    ids = options.ids.split(",") if options.ids else working
    known: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"systems": {}}
    for k in ids:
        if known["systems"].get(k, {}).get("check") == checks.digest(k):
            continue
        report = checks.reproduce(k, seeds=seeds)
        known["systems"][k] = {"seeds": seeds, "check": report.source, "missed": missed(report)}
        print(f"{k}: {report.seconds:.0f} s, {known['systems'][k]['missed'] or 'every row holds'}", flush=True)
        known |= {"rerun": f"python bench/fresh_seeds.py --seeds {options.seeds}", **provenance()}
        options.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
