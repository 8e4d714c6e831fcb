"""Run by test_sharding.py in processes of their own, which have several CPU devices: python -m tests.on_devices WHAT FOLDER ...

Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
WHAT, FOLDER, *REST = sys.argv[1:]
DEVICES = 8 if WHAT != "two" else 4
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import numpy as np  # noqa: E402

import grokscope as gs  # noqa: E402
from tests.sharded_run import IDS, SITES  # noqa: E402


def save(trace, path: Path) -> None:
    np.savez(path, **{site: trace[site].values for site in trace.sites})


def layouts() -> dict:
    """The numbers of each mesh, and what one device holds of a block's program."""
    from grokscope.transformer.forward import run_block

    found = {}
    for name in REST:
        mesh = gs.mesh(**{k: int(v) for k, v in (part.split("=") for part in name.split(","))})
        model = gs.load(FOLDER, dtype="float32", mesh=mesh)
        trace = model.trace(IDS, SITES, edits=[gs.edits.BanExperts([1], layers=[1])])
        save(trace, Path(FOLDER).parent / f"{name}.npz")
        block = model.weights.blocks[0]
        from grokscope.transformer.attention import Sequence
        from grokscope.transformer.tap import Selection

        x = model.on_device(np.zeros((4, 11, model.config.d_model), np.float32))
        at = model.on_device(np.tile(np.arange(11), (4, 1)))
        seq = Sequence(at, model.on_device(np.ones((4, 11), np.int32)), mesh=model.mesh)
        made = run_block.lower(block, x, seq, ((), Selection()), config=model.config, sites=()).compile()
        shape = block.moe.gate.shape
        matrices = [a for a in jax.tree.leaves((block.moe.gate, block.moe.up, block.moe.down))]
        found[name] = {
            "whole stacks": len(re.findall(rf"\[{shape[0]},({shape[1]},{shape[2]}|{shape[2]},{shape[1]})\]", made.as_text())),
            "whole experts": len(re.findall(rf"\[(?:1,)?({shape[1]},{shape[2]}|{shape[2]},{shape[1]})\]", made.as_text())),
            "experts": sum(a.nbytes for a in matrices),
            "on one device": sum(a.addressable_shards[0].data.nbytes for a in matrices),
        }
    return found


def numbers() -> dict:
    """The numbers of one mesh, with nothing edited, of several models in FOLDER."""
    mesh = gs.mesh(**{k: int(v) for k, v in (part.split("=") for part in REST[0].split(","))})
    for name in REST[1:]:
        save(gs.load(f"{FOLDER}/{name}", dtype="float32", mesh=mesh).trace(IDS, SITES), Path(FOLDER) / f"{name}.npz")
    return {}


def two() -> dict:
    """One of two processes with four devices each; says how many bytes of the blocks it has read."""
    number, port = int(REST[0]), REST[1]
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
    from grokscope.devices import sharding

    read, put = [], jax.make_array_from_callback

    def counted(shape, placed, part):
        def seen(index):
            array = part(index)
            read.append(array.nbytes)
            return array

        return put(shape, placed, seen)

    sharding.jax.make_array_from_callback = counted
    model = gs.load(FOLDER, dtype="float32", mesh=gs.mesh(model=8))
    mine = sum(read)
    trace = model.trace(IDS, SITES)
    if number == 0:
        save(trace, Path(FOLDER).parent / "two.npz")
    whole = sum(a.nbytes for a in jax.tree.leaves(model.weights))
    return {"process": jax.process_count(), "devices": jax.device_count(), "read": mine, "whole": whole}


if __name__ == "__main__":
    print(json.dumps({"layouts": layouts, "numbers": numbers, "two": two}[WHAT]()))
