"""A driver that stays: it runs the command lines that come on its stdin, so that imports and Ray's start are paid once.

Each order is a JSON line: argv, out and err (files), environment (changes), code (file, written when it has ended).
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import ray

from engine.cli import main
from engine.cluster import ray_cluster
from engine.stages import score
from engine.store.files import write_atomic

STARTS = 5
score.FEW_TEXTS = 0  # workers score as they do where there are many texts: one of them is to be killed

for attempt in range(STARTS):  # Ray itself waits 30 s for its node, which a busy machine may exceed
    try:
        ray_cluster.connect(distributed_training=True)
        break
    except Exception:
        ray.shutdown()
        if attempt == STARTS - 1:
            raise

for line in sys.stdin:
    order = json.loads(line)
    os.environ.update(order["environment"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(order["out"]).open("w"))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(Path(order["err"]).open("w"))))
        code = main(order["argv"])
    write_atomic(Path(order["code"]), str(code))
