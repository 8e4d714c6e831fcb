"""One layer's experts on a GPU: our forms beside torch's grouped_mm and the floor, milliseconds. Random weights.

    python -m tests.bench.experts_gpu [--shapes S,M,Q,G,O] [--tokens 1,8,256,1024,8192] [--sweep]

S is OLMoE's shape, M Mixtral-8x7B's, Q Qwen3-30B-A3B's, O gpt-oss-20b's, G Grok-1's. The floor is the larger of the arithmetic
at 700 TFLOP/s and the chosen experts read once at 4 TB/s. --sweep tries tiles. torch, if there, runs in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from typing import Any

SHAPES = {"S": (2048, 1024, 64, 8), "M": (4096, 14336, 8, 2), "Q": (2048, 768, 128, 8), "O": (2880, 2880, 32, 4), "G": (6144, 32768, 8, 2)}
FORMS = {"S": ("bf16", "int8"), "M": ("bf16", "int8"), "Q": ("bf16",), "O": ("mxfp4", "bf16"), "G": ("int8", "hopper int8")}


def median(run: Any, wait: Any, repeats: int = 9) -> float:
    """Milliseconds; several calls in a row, so that a call's own start is not what is measured where it can be hidden."""
    for _ in range(2):
        wait(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(4):
            out = run()
        wait(out)
        times.append((time.perf_counter() - start) / 4)
    return 1e3 * sorted(times)[len(times) // 2]


def torch_side(shapes: list[str], tokens: list[int]) -> None:
    """Prints what torch takes, as JSON."""
    import torch

    found = {}
    for name in shapes:
        d, f, e, a = SHAPES[name]
        if name == "G":
            continue
        up = torch.randn(e, 2 * f, d, device="cuda", dtype=torch.bfloat16) * d**-0.5
        down = torch.randn(e, d, f, device="cuda", dtype=torch.bfloat16) * f**-0.5
        for t in tokens:
            x = torch.randn(t, d, device="cuda", dtype=torch.bfloat16)
            chosen = torch.rand(t, e, device="cuda").topk(a, -1).indices

            def layer(x: Any = x, chosen: Any = chosen, up: Any = up, down: Any = down, a: int = a, e: int = e) -> Any:
                flat = chosen.reshape(-1)
                order = flat.argsort()
                ends = torch.bincount(flat, minlength=e).cumsum(0).to(torch.int32)
                gate, rest = torch.nn.functional.grouped_mm(x[order // a], up.transpose(1, 2), offs=ends).chunk(2, -1)
                out = torch.nn.functional.grouped_mm(torch.nn.functional.silu(gate) * rest, down.transpose(1, 2), offs=ends)
                back = torch.empty_like(out)
                back[order] = out
                return back

            with torch.no_grad():
                found[f"{name} {t}"] = median(layer, lambda _: torch.cuda.synchronize())
        del up, down
    print("TORCH " + json.dumps(found))


def weights_of(form: str, shape: tuple[int, ...]) -> Any:
    """gate, up, down in that form, and the same in bfloat16 where it is small enough to look at."""
    import jax
    import jax.numpy as jnp

    from grokscope.transformer import forms
    from grokscope.transformer.kernels import hopper

    d, f, e, _ = shape

    def one(key: Any, rows: int, out: int) -> Any:
        if form == "bf16":
            return (jax.random.normal(key, (e, rows, out), jnp.bfloat16) * rows**-0.5).astype(jnp.bfloat16)
        if form == "mxfp4":
            codes = jax.random.bits(key, (e, out, rows // 2), jnp.uint8)
            return forms.Mxfp4(codes, jnp.full((e, out, rows // 32), 121, jnp.uint8))
        values = jax.random.bits(key, (e, rows, out), jnp.uint8).astype(jnp.int8)
        groups = 8 if (rows, form) == (f, "hopper int8") or (rows == f and f == 32768) else 1
        scales = jnp.full((e, groups, out), rows**-0.5 / 74, jnp.bfloat16)
        if form == "hopper int8":
            return forms.OutputFirst(jax.jit(hopper.outputs_first)(values), scales)
        return forms.Scaled(values, scales, 1, 1)

    keys = jax.random.split(jax.random.key(0), 3)
    return one(keys[0], d, f), one(keys[1], d, f), one(keys[2], f, d)


def main() -> None:
    """Print a line for each shape, form and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="S,M,Q,O,G")
    parser.add_argument("--tokens", default="1,8,256,1024,8192")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shapes, tokens = asked.shapes.split(","), [int(t) for t in asked.tokens.split(",")]
    if asked.torch:
        torch_side(shapes, tokens)
        return
    command = [sys.executable, "-m", "tests.bench.experts_gpu", "--torch", "--shapes", asked.shapes, "--tokens", asked.tokens]
    told = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    theirs = next((json.loads(line[6:]) for line in told.stdout.splitlines() if line.startswith("TORCH ")), {})
    for name in shapes:
        for form in FORMS[name]:
            measure(name, form, tokens, theirs, asked.sweep)


def measure(name: str, form: str, tokens: list[int], theirs: dict[str, float], sweep: bool) -> None:
    """The lines of one shape and form."""
    import jax
    import jax.numpy as jnp

    from grokscope.block_config import BlockConfig
    from grokscope.router_config import RouterConfig
    from grokscope.transformer.weights import MoEWeights

    d, f, e, a = shape = SHAPES[name]
    gate, up, down = weights_of(form, shape)
    w = MoEWeights(router=None, gate=gate, up=up, down=down)
    config = BlockConfig(d_model=d, d_expert=f, num_heads=1, num_kv_heads=1, d_head=64, attention_scale=1.0, router=RouterConfig(num_experts=e, top_k=a), activation="silu")
    other = {t: theirs.get(f"{name} {t}", float("nan")) for t in tokens}
    for t in tokens:
        x = jax.random.normal(jax.random.key(t), (1, t, d), jnp.bfloat16)
        chosen = jax.lax.top_k(jax.random.uniform(jax.random.key(1), (1, t, e)), a)[1].astype(jnp.int32)
        used, bits = e * (1 - (1 - a / e) ** t), {"bf16": 16, "mxfp4": 4.25}.get(form, 8)
        floor = 1e3 * max(6 * t * a * d * f / 700e12, 3 * bits / 8 * used * d * f / 4.0e12)
        found = line(w, x, chosen, config)
        if sweep and form != "hopper int8":
            found += "\n" + tiles(layer(config), (w, x, chosen), t * a, e)
        print(f"{name} {form:<11} {t:5} tokens: floor {floor:6.3f} torch {other[t]:7.3f} ours {found}", flush=True)


def layer(config: Any) -> Any:
    """A layer's experts as a function of their weights, the tokens and the choice."""
    import jax.numpy as jnp

    from grokscope.transformer.experts import apply_experts
    from grokscope.transformer.tap import Tap

    return lambda w, x, chosen: apply_experts(w, x, chosen, jnp.ones(x.shape[:2], bool), config, Tap())


def line(w: Any, x: Any, chosen: Any, config: Any) -> str:
    """What it takes, what sorting takes of it, and how far one token's answer is from the right one."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from grokscope.transformer.forms import OutputFirst, plain
    from grokscope.transformer.kernels import grouped

    run = jax.jit(layer(config))
    took = median(lambda: run(w, x, chosen), jax.block_until_ready)
    plan = jax.jit(lambda chosen: grouped.plan_rows(chosen.reshape(-1), config.router.num_experts))
    planning = median(lambda: plan(chosen), jax.block_until_ready)
    row = min(x.shape[1] - 1, 7)
    mine = np.asarray(chosen[0, row])

    def matrix(m: Any) -> Any:
        m = m.as_scaled() if isinstance(m, OutputFirst) else m
        return plain(jax.tree.map(lambda v: v[mine], m), jnp.float32)

    with jax.default_matmul_precision("highest"):
        v = x[0, row].astype(jnp.float32)
        h = jax.nn.silu(jnp.einsum("d,adf->af", v, matrix(w.gate))) * jnp.einsum("d,adf->af", v, matrix(w.up))
        right = np.asarray(jnp.einsum("af,afd->ad", h, matrix(w.down)))
    off = np.linalg.norm(np.asarray(run(w, x, chosen)[0, row], np.float32) - right) / np.linalg.norm(right)
    return f"{took:7.3f} (plan {planning:6.3f}) off {off:.4f}"


def tiles(layer: Any, args: tuple[Any, ...], rows: int, num_experts: int) -> str:
    """The fastest tiles for each size of block."""
    import jax

    from grokscope.transformer.kernels import grouped

    own, own_size, found = grouped.tile_of, grouped.block_size, []
    fit = own_size(rows, num_experts) if rows > grouped.FEW else 16
    sizes = {fit, fit // 2, fit * 2} & {16, 32, 64, 128} if rows > grouped.FEW else {16}
    for size, outputs, depth, warps, stages in itertools.product(sizes, (64, 128, 256), (64, 128), (4, 8), (3, 4)):
        if (size + 2 * outputs) * depth * 2 * stages > 230_000 or size * outputs > 128 * 128:
            continue
        tile = grouped.Tile(outputs, depth, warps, stages)
        grouped.tile_of, grouped.block_size = (lambda *_, tile=tile: tile), (lambda *_, size=size: size)
        try:
            fresh = jax.jit(lambda *a: layer(*a))
            found.append((median(lambda fresh=fresh: fresh(*args), jax.block_until_ready, 3), size, tile))
        except Exception as error:
            print("   ", size, tile, str(error)[:100])
    grouped.tile_of, grouped.block_size = own, own_size
    best = sorted(found, key=lambda f: f[0])[:4]
    return "\n".join(f"    {took:7.3f} ms: blocks of {size}, {tile}" for took, size, tile in best)


if __name__ == "__main__":
    main()
