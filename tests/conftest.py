"""What the tests share: where the reference's data lie, a small model whose sizes are different primes, the embedded model.

Sizes that differ let no transposition hide. Compiled programs lie in a cache of the checkout's own, which the processes that
tests start share; each file's are let go at its end.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

import grokscope as gs
from grokscope.config import ModelConfig, RouterConfig
from grokscope.model.model import Model
from grokscope.running import decoding
from grokscope.sweeps import sweep
from grokscope.transformer import programs
from grokscope.transformer.weights import ModelWeights, random_weights

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
GOLDENS = ROOT / "tests" / "goldens"

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # beside the sources, that is; a hundred processes would compile all anew
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False
sys.modules.setdefault("rfc3987_syntax", None)  # a grammar that jsonschema makes for 3 s when a notebook is read, and never asks

QUICK = {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": 1}
AS_XLA_DOES: dict[str, int | bool] = {"xla_backend_optimization_level": 3, "xla_cpu_parallel_codegen_split_count": 32}
"""What makes compiling quick, and what XLA does by itself."""
if jax.__version_info__ < (0, 12):  # later there are emitters alone, and XLA ends a process that asks for what it does not know
    QUICK["xla_cpu_use_fusion_emitters"], AS_XLA_DOES["xla_cpu_use_fusion_emitters"] = 0, True
if not Path("/dev/nvidia0").exists():  # JAX reads it at the first program; what tests start takes it over
    os.environ["XLA_FLAGS"] = " ".join([*(f"--{name}={n}" for name, n in QUICK.items()), os.environ.get("XLA_FLAGS", "")]).strip()

os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "programs")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def in_a_hurry() -> dict[str, str]:
    """The environment of a process that compiles much and computes little, as training a toy does: LLVM's level 0."""
    return {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()}


TINY = ModelConfig(
    vocab_size=97, d_model=40, num_layers=3, num_heads=6, num_kv_heads=2, d_head=14, d_expert=24, max_tokens=67,
    router=RouterConfig(num_experts=5, top_k=2), attention_scale=14**-0.5, embed_scale=40**0.5, logit_scale=0.577,
    eos_id=2,
)  # fmt: skip

LIVE = 300
"""Programs that a file of tests may have at a time: with the product's 96 the largest files make theirs again and again."""

LONG = ("test_notebooks.py", "test_lab.py", "test_kill.py", "test_training.py", "test_sweep.py", "test_true_shapes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long go first: at the end no worker is left alone with one."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not look through it again and again (5 % of the time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def make(config: ModelConfig = TINY, seed: int = 0, dtype: str = "float32") -> Model:
    """A model with random weights, norms and routers too, so that nothing is one by chance."""
    return Model(config, varied(config, seed), None, dtype, "tiny")


@cache
def varied(config: ModelConfig, seed: int) -> ModelWeights:
    """Its weights, which models of several files share."""
    weights = random_weights(config, seed)
    rng = np.random.default_rng(seed)

    def vary(path: tuple, leaf: jax.Array) -> jax.Array:
        return (
            leaf * (1 + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32)) if "norm" in path[-1].name else leaf
        )

    return jax.tree_util.tree_map_with_path(vary, weights)


@pytest.fixture(scope="module", autouse=True)
def few_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those of one file at a time, on a CPU compiled in a hurry: LLVM's level 0, or for files that say COMPUTES_MUCH its level 1,
    as all that tests start; for those that say AS_USERS_HAVE_IT as XLA does it by itself.
    """
    if jax.default_backend() == "cpu":
        whole = getattr(request.module, "AS_USERS_HAVE_IT", False)
        some = getattr(request.module, "COMPUTES_MUCH", False)
        programs.COMPILER |= AS_XLA_DOES if whole else {} if some else {"xla_backend_optimization_level": 0}
    limit, programs.LIMIT = programs.LIMIT, LIVE
    yield
    programs.LIMIT = limit
    programs.COMPILER.clear()
    programs.let_go()
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def one_block_a_program() -> None:
    """Compiling is most of the suite: blocks that are alike are compiled once, not in groups (`test_generation` has those)."""
    decoding.GROUP["other"] = 1


@pytest.fixture(scope="session", autouse=True)
def small_calls() -> None:
    """Several for the few texts of a test, so that there is something to add up; in a call of users most would be padding."""
    sweep.CALL = 293


@pytest.fixture(scope="session")
def tiny() -> Model:
    return make()


@pytest.fixture(scope="session")
def ids() -> np.ndarray:
    """B 3, T 11."""
    return np.random.default_rng(7).integers(3, 97, (3, 11))


@pytest.fixture(scope="session")
def pocket() -> Model:
    return gs.load(dtype="float32")


def shared(path: str) -> Path:
    """A file of the reference data beside the checkout; the test is skipped where it is not there."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{found} is not here: the reference data lie beside a developer's checkout")
    return found
