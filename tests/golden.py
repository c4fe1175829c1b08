"""What comes out the same on every processor: digests and numbers of a small experiment, and of its parts without Ray.

python -m tests.golden RUN_FOLDER > tests/golden.json      after a change that is meant to change them
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path

SMALL = {
    "name": "small",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 30, "batch_size": 32, "lr": 5e-3, "max_length": 64}},
    "methods": [
        {"name": "npo", "beta": 1.0,
         "train": {"steps": 4, "eval_samples": 4, "eval_every": 2, "eval_prompts": 3}},
        {"name": "rule", "base": {"name": "npo"}, "rounds": 2, "samples": 8, "steps": 2, "threshold": 0.2,
         "metric": "rouge_l_recall", "tolerance": 0.0, "control": True, "train": {"steps": 4}},
    ],
    "sampling": {"n": 16, "max_new_tokens": 12},
    "leak": {"k": [1, 4, 16]},
}  # fmt: skip
GOLDEN = Path(__file__).with_suffix(".json")
# Of numbers: the logarithm of a log-probability is MKL's, means are numpy's, their last bits the processor's own.
TOLERANCE = 1e-9  # relative


def found(results, store):
    """By name of the model: digests of its weights and of the tokens drawn from it, and numbers that follow."""
    return {
        model.name: {
            "weights": weights(store / model.stages["model"]),
            "tokens": {
                name: tokens(store / folder) for name, folder in model.stages.items() if name.startswith("generations ")
            },
            "greedy": model.greedy,
            "utility": model.utility,
            "leak": {f"{curve.group} {curve.metric}": curve.leak for curve in model.curves},
            "floor": {curve.group: curve.floor for curve in model.curves if curve.floor is not None},
            "rounds": [[each.leak_at_m, each.leaking_samples, each.pool] for each in model.rounds],
        }
        for model in results.models
    }


def differences(name, given):
    """The golden values of that name, by their paths, that are otherwise here."""
    wanted, given = leaves(json.loads(GOLDEN.read_text())[name]), leaves(given)
    return {
        path: (wanted.get(path), given.get(path))
        for path in wanted.keys() | given.keys()
        if not _same(wanted.get(path), given.get(path))
    }


def leaves(tree, path=""):
    """The numbers and texts of a tree of JSON by their paths."""
    if isinstance(tree, dict | list | tuple):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {leaf: value for key, part in parts for leaf, value in leaves(part, f"{path}/{key}").items()}
    return {path: tree}


def _same(wanted, given):
    numbers = isinstance(wanted, int | float) and isinstance(given, int | float)
    return math.isclose(wanted, given, rel_tol=TOLERANCE) if numbers else wanted == given


def weights(folder):
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    return digest(b"".join(tensors[name].tobytes() for name in sorted(tensors)))


def tokens(folder):
    from engine.cluster.units import read_units

    return digest(json.dumps(read_units(folder, ["token_ids"])["token_ids"].to_pylist()).encode())


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    import os
    import subprocess

    from engine.cluster.numerics import PORTABLE
    from engine.reporting.results import read_results

    run = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.parts", folder]
        parts = subprocess.run(command, env=os.environ | PORTABLE, stdout=subprocess.PIPE, check=True).stdout
    golden = {
        "experiment": found(read_results(run), run.parents[1]),
        "parts": json.loads(parts.splitlines()[-1]),
    }
    print(json.dumps(golden, indent=1, sort_keys=True))
