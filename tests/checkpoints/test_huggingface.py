"""Mixtral from Hugging Face directories: transformers' own numbers, both spellings, shards, and every way to be wrong.

The goldens in tests/goldens/huggingface/ are what transformers 5.23 (torch 2.13, CPU, float32) wrote and computed:
`python -m tests.checkpoints.test_huggingface` makes them anew, in an environment with torch, transformers and this project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import CheckpointError, huggingface, recognise
from grokscope.checkpoints.mapped_safetensors import map_arrays
from grokscope.model.model import Model
from tests.conftest import GOLDENS

FOLDER = GOLDENS / "huggingface"
SAME = {"num_hidden_layers": 2, "max_position_embeddings": 37, "router_jitter_noise": 0.0, "eos_token_id": 2}
CASES = {
    "grouped": {"vocab_size": 31, "hidden_size": 13, "intermediate_size": 11, "num_attention_heads": 6,
                "num_key_value_heads": 2, "head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 2,
                "rope_theta": 1e4, "rms_norm_eps": 1e-5},
    "each_its_own": {"vocab_size": 29, "hidden_size": 17, "intermediate_size": 7, "num_attention_heads": 3,
                     "num_key_value_heads": 3, "head_dim": 14, "num_local_experts": 5, "num_experts_per_tok": 3,
                     "rope_theta": 1e6, "rms_norm_eps": 1e-3, "sliding_window": 37},
    "one_for_all": {"vocab_size": 41, "hidden_size": 19, "intermediate_size": 5, "num_attention_heads": 3,
                    "num_key_value_heads": 1, "head_dim": 14, "num_local_experts": 7, "num_experts_per_tok": 1,
                    "rope_theta": 50.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
}  # fmt: skip
STACKED = "each_its_own"
"""The case that is written as transformers 5 has it in memory."""


def run_theirs(case: str, folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Write a random model of transformers' as save_pretrained does; ids, logits B T V and router logits L B T E."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(**CASES[case], **SAME)
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("eager")  # the grouped one wants widths that are multiples of 4
    for name, weight in model.named_parameters():  # theirs are so small that nothing would show in the logits
        drawn = torch.randn_like(weight)
        weight.data = 1 + 0.3 * drawn if "norm" in name else drawn * weight.shape[-1] ** -0.5
    model.save_pretrained(folder, save_original_format=case != STACKED)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, (3, 23))
    with torch.no_grad():
        out = model(torch.tensor(ids), output_router_logits=True)
    router = np.stack([r.numpy().reshape(*ids.shape, -1) for r in out.router_logits])
    return {"ids": ids.astype(np.int32), "logits": out.logits.numpy(), "router": router}


def make_goldens() -> None:
    for seed, case in enumerate(CASES):
        (FOLDER / case).mkdir(parents=True, exist_ok=True)
        np.savez_compressed(FOLDER / case / "expected.npz", **run_theirs(case, FOLDER / case, seed))


def ours(folder: Path) -> Model:
    config = huggingface.read_config(folder)
    return Model(config, huggingface.load(folder, config), None, "float32", folder.name)


def assert_same(model: Model, expected) -> None:
    trace = model.trace(expected["ids"], ["logits", "router.logits"])
    wanted = {"logits": expected["logits"], "router.logits": expected["router"]}
    for site, values in wanted.items():
        assert np.abs(values).max() > 0.5, "so small that a mistake would hide"
        got = trace[site]
        if site == "router.logits":
            got = got.transpose("layer", ...)
        np.testing.assert_allclose(got, values, rtol=0, atol=1e-5, err_msg=site)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_transformers(case):
    with np.load(FOLDER / case / "expected.npz") as expected:
        assert_same(ours(FOLDER / case), expected)


@pytest.mark.parametrize("case", CASES)
def test_transformers_itself(case, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    expected = run_theirs(case, tmp_path, seed=11)
    assert_same(ours(tmp_path), expected)


def test_the_goldens_are_both_spellings_and_small():
    for case in CASES:
        names = map_arrays(FOLDER / case / "model.safetensors")
        assert any("gate_up_proj" in n for n in names) == (case == STACKED)
        assert sum(p.stat().st_size for p in (FOLDER / case).iterdir()) < 60_000


def test_the_config_of_mixtral_as_published(tmp_path):
    """mistralai/Mixtral-8x7B-v0.1, of transformers 4.36: no head_dim, rope_theta beside the rest."""
    published = {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0",
        "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert huggingface.read_config(tmp_path) == gs.MIXTRAL_8X7B


# What follows damages a copy of a golden.


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER / "grouped", tmp_path / "m"))


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "float64": "F64"}


def write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, a in arrays.items():
        header[name] = {"dtype": KINDS[a.dtype.name], "shape": a.shape, "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values()))


def rewrite(folder: Path, **changed) -> None:
    """Arrays by the ends of their names: None removes one, all else replaces it or is put beside the others."""
    arrays = {n: a.copy() for n, a in map_arrays(folder / "model.safetensors").items()}
    for end, value in changed.items():
        for name in [n for n in arrays if n.endswith(end)] or [end]:
            arrays.pop(name, None)
            if value is not None:
                arrays[name] = value
    write(folder / "model.safetensors", arrays)


def shard(folder: Path, parts: int = 3) -> dict[str, str]:
    """As save_pretrained shards: some arrays a file, and an index."""
    arrays = {n: a.copy() for n, a in map_arrays(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    files = {n: f"model-{i % parts + 1:05d}-of-{parts:05d}.safetensors" for i, n in enumerate(arrays)}
    for file in set(files.values()):
        write(folder / file, {n: arrays[n] for n in arrays if files[n] == file})
    index(folder, files)
    return files


def index(folder: Path, files) -> None:
    value = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


def wrong(folder: Path) -> list[str]:
    """The problems, which `load` raises all of."""
    config = huggingface.read_config(folder)
    found = list(huggingface.problems(folder, config))
    with pytest.raises(CheckpointError) as raised:
        huggingface.load(folder, config)
    assert str(raised.value).splitlines()[1:] == [f"  {line}" for line in found]
    return found


@pytest.mark.parametrize("case", CASES)
def test_shards(case, tmp_path):
    folder = Path(shutil.copytree(FOLDER / case, tmp_path / "m"))
    shard(folder)
    assert recognise(folder) == ("huggingface", folder)
    with np.load(FOLDER / case / "expected.npz") as expected:
        assert_same(ours(folder), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(copy, dtype):
    """The same numbers as from a float32 file with the rounded weights."""
    arrays = {n: a.astype(dtype) for n, a in map_arrays(copy / "model.safetensors").items()}
    write(copy / "model.safetensors", {n: a.astype(np.float32) for n, a in arrays.items()})
    wide = ours(copy)
    write(copy / "half.safetensors", arrays)
    (copy / "half.safetensors").replace(copy / "model.safetensors")
    half = ours(copy)
    assert half.weights.blocks[1].moe.down.dtype == dtype
    ids = np.arange(3, 14)[None]
    np.testing.assert_allclose(half.trace(ids)["logits"], wide.trace(ids)["logits"], rtol=0, atol=1e-5)


def owner(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_made_when_asked_for_and_kept_by_nobody(case):
    config = huggingface.read_config(FOLDER / case)
    weights = huggingface.load(FOLDER / case, config)
    block = weights.blocks[-1]
    mapped = [weights.embed, weights.final_norm, block.attn.q, block.attn.o, block.moe.router, block.attn_norm_in]
    mapped += [block.moe.gate, block.moe.up, block.moe.down] if case == STACKED else []
    assert not any(isinstance(owner(a), np.ndarray) for a in mapped), "copied where a view would do"
    assert not any(a.flags.writeable for a in mapped)
    last = weakref.ref(block.moe.gate)
    del block, mapped
    assert last() is None
    assert len(weights.blocks) == config.num_layers == len(list(weights.blocks))
    with pytest.raises(IndexError):
        weights.blocks[config.num_layers]


def test_problems_are_found_by_headers_alone(copy, monkeypatch):
    def refuses(*_, **__):
        raise AssertionError("payload")

    config = huggingface.read_config(copy)
    monkeypatch.setattr("mmap.mmap", refuses)
    assert list(huggingface.problems(copy, config)) == []


def test_every_name_missing_or_unknown_is_listed(copy):
    extra = {
        "model.layers.0.self_attn.q_proj.bias": np.zeros(60, np.float32),
        "model.layers.2.x": np.zeros(1, np.float32),
    }
    rewrite(copy, **{"layers.1.block_sparse_moe.experts.3.w2.weight": None, "lm_head.weight": None}, **extra)
    assert wrong(copy) == [
        "lm_head.weight: missing",
        "model.layers.1.block_sparse_moe.experts.3.w2.weight: missing",
        "model.layers.0.self_attn.q_proj.bias: not part of this model",
        "model.layers.2.x: not part of this model",
    ]


def test_shapes_and_dtypes_are_named(copy):
    rewrite(
        copy,
        **{
            "layers.0.self_attn.o_proj.weight": np.zeros((60, 13), np.float32),
            "layers.1.block_sparse_moe.experts.4.w1.weight": np.zeros((11, 12), np.float32),
            "model.norm.weight": np.zeros(13, np.int32),
            "model.embed_tokens.weight": np.zeros((31, 13), np.float64),
        },
    )
    assert wrong(copy) == [
        "model.embed_tokens.weight: wanted BF16, F16, F32, got F64",
        "model.norm.weight: wanted BF16, F16, F32, got I32",
        "model.layers.0.self_attn.o_proj.weight: wanted shape (13, 60), got (60, 13)",
        "model.layers.1.block_sparse_moe.experts.4.w1.weight: wanted shape (11, 13), got (11, 12)",
    ]


def test_a_cut_file_and_none_at_all(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    (problem,) = wrong(copy)
    assert problem.startswith("model.safetensors: ")
    assert "truncated" in problem
    file.unlink()
    assert wrong(copy) == ["model.safetensors: missing; download it again"]


def test_missing_and_damaged_shards(copy):
    files = shard(copy)
    first, second, _ = sorted(set(files.values()))
    (copy / first).unlink()
    (copy / second).write_bytes(b"")
    missing, damaged = wrong(copy)
    assert missing == f"{first}: missing; download it again"
    assert damaged.startswith(f"{second}: truncated")


def test_arrays_that_are_not_where_the_index_says_or_twice(copy):
    files = shard(copy)
    first, second, _ = sorted(set(files.values()))
    arrays = map_arrays(copy / first)
    moved, *_ = arrays
    write(copy / second, {n: a.copy() for n, a in map_arrays(copy / second).items()} | {moved: arrays[moved].copy()})
    assert wrong(copy) == [f"{moved}: {second} has a second array of this name"]
    write(copy / second, {n: a.copy() for n, a in map_arrays(copy / second).items() if n != moved})
    write(copy / first, {n: a.copy() for n, a in arrays.items() if n != moved})
    assert wrong(copy) == [f"{moved}: missing"]


@pytest.mark.parametrize(
    "hostile",
    ["../stolen.safetensors", "/stolen.safetensors", "sub/stolen.safetensors", "..\\stolen.safetensors", "C:stolen.safetensors",
     ".safetensors", "stolen.safetensors\n", "stolen.safetensors\0", "config.json", "modeling.py", ""],
)  # fmt: skip
def test_an_index_that_leads_elsewhere_opens_nothing(copy, hostile, monkeypatch):
    files = shard(copy)
    (copy / "sub").mkdir()
    name = next(iter(files))
    for place in (copy.parent, copy / "sub"):
        write(place / "stolen.safetensors", {name: np.zeros((31, 13), np.float32)})
    index(copy, files | {name: hostile})
    opened = []
    read = huggingface.read_header
    monkeypatch.setattr(huggingface, "read_header", lambda path: (opened.append(path), read(path))[1])
    (problem,) = [p for p in wrong(copy) if "refused" in p]
    assert repr(hostile) in problem
    assert {p.name for p in opened} <= set(files.values())


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 10**5, "\xff"]
)
def test_an_index_that_is_none(copy, content):
    shard(copy)
    (copy / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    (problem,) = wrong(copy)
    assert problem.startswith("model.safetensors.index.json: ")


def test_an_index_beside_a_whole_file(copy):
    whole = (copy / "model.safetensors").read_bytes()
    shard(copy)
    (copy / "model.safetensors").write_bytes(whole)
    assert wrong(copy) == [
        "model.safetensors.index.json: wanted it or model.safetensors, got both; remove the one that is stale"
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "qwen3_moe", 'wanted model_type "mixtral".*qwen3_moe'),
        ("model_type", "absent", 'wanted model_type "mixtral".*None'),
        ("hidden_act", "gelu", 'hidden_act: wanted "silu", got .gelu.'),
        ("sliding_window", 36, r"sliding_window: wanted null, or max_position_embeddings \(37\).*got 36"),
        ("sliding_window", "many", "sliding_window: .*many"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "rope_parameters: .*yarn"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling: .*linear"),
        ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "rope_parameters: .*whole head"),
        ("rope_parameters", ["default"], "rope_parameters: .*default"),
        ("rope_parameters", {"rope_type": "default"}, "rope_theta: wanted a positive number, got None"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps: wanted a positive number, got nan"),
        ("rms_norm_eps", 10**400, "rms_norm_eps: wanted a positive number"),
        ("num_local_experts", 1, "num_local_experts: wanted 2 to"),
        ("num_local_experts", 10**9, "num_local_experts: wanted 2 to"),
        ("num_hidden_layers", 10**9, "num_local_experts: wanted 2 to 0"),
        ("num_experts_per_tok", 6, "num_experts_per_tok: wanted 1 to 5, got 6"),
        ("num_key_value_heads", 4, r"num_attention_heads: wanted a multiple of num_key_value_heads \(4\), got 6"),
        ("head_dim", 7, "head_dim: wanted an even number"),
        ("hidden_size", "absent", "hidden_size: wanted a positive whole number, got None"),
        ("vocab_size", 31.0, "vocab_size: wanted a positive whole number, got 31.0"),
        ("tie_word_embeddings", "no", "tie_word_embeddings: wanted true or false"),
        ("quantization_config", {"quant_method": "awq"}, "quantization_config: wanted plain floats.*awq"),
        ("bos_token_id", 31, r"bos_token_id: wanted null or an id below vocab_size \(31\), got 31"),
    ],
)
def test_configs_that_are_refused(copy, field, value, message):
    change(copy, **{field: value})
    with pytest.raises(CheckpointError, match=message):
        huggingface.read_config(copy)


def test_all_that_is_wrong_with_a_config_is_named_at_once(copy):
    change(copy, hidden_act="relu", sliding_window=3, rms_norm_eps=0)
    with pytest.raises(CheckpointError, match=r"(?s)hidden_act.*sliding_window.*rms_norm_eps"):
        huggingface.read_config(copy)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff", b"[" * 10**5])
def test_config_files_that_are_none(copy, content):
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="config.json: wanted a JSON object, got"):
        huggingface.read_config(copy)


def test_fields_that_may_vary(copy):
    before = huggingface.read_config(copy)
    change(copy, sliding_window=37, eos_token_id=[5, 2], pad_token_id=7, rope_parameters="absent", rope_theta=321.0)
    config = huggingface.read_config(copy)
    assert (config.eos_id, config.pad_id, config.rope_base) == (5, 7, 321.0)
    change(copy, head_dim=None, hidden_size=48)
    assert huggingface.read_config(copy).d_head == 8
    assert (before.norm_eps, before.rope_base, before.router.softmax, before.tied_embedding) == (
        1e-5,
        1e4,
        "chosen",
        False,
    )


def test_a_config_of_another_family_is_refused(copy):
    from dataclasses import replace

    config = replace(huggingface.read_config(copy), post_norms=True)
    assert list(huggingface.problems(copy, config)) == [
        "config: wanted a Mixtral's, got one that disagrees about attn_norm_out, moe_norm_out"
    ]


def test_code_beside_the_weights_is_never_imported(copy, monkeypatch):
    mark = copy / "ran"
    (copy / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w')")
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    change(copy, auto_map={"AutoModelForCausalLM": "modeling_mine.Model", "AutoConfig": "modeling_mine.Config"})
    monkeypatch.syspath_prepend(copy)
    ours(copy).trace([[3, 4, 5]])
    assert not mark.exists()
    assert not [m for m in sys.modules if "modeling_mine" in m]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("mistralai/Mixtral-8x7B-v0.1", True), ("a/b_c", True), ("name", False), ("a/b/c", False), ("../x", False), ("/x", False),
     ("./x/y", False), ("a/..", False), ("https://x/y", False), ("a/b\n", False)],
)  # fmt: skip
def test_what_looks_like_a_hub_id(text, is_one):
    assert huggingface.is_hub_id(text) is is_one


def download(hub_id: str, home: Path, **environment: str) -> str:
    """What a fresh process says, for the hub's client reads its environment when it is imported."""
    code = (
        "import sys; from grokscope.checkpoints import CheckpointError, huggingface\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        f"try: print(huggingface.download({hub_id!r}))\n"
        "except CheckpointError as error: print('CheckpointError', error)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"HF_HOME": str(home)} | environment,
    )
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_id_that_cannot_be_reached_is_one_line(tmp_path, environment):
    said = download("owner/name", tmp_path, **environment)
    assert said.startswith(
        "CheckpointError owner/name: wanted a directory here or a model of the Hugging Face hub, got"
    )
    assert "hf download" in said
    assert "\n" not in said


def test_a_model_in_the_hubs_cache_is_found_offline(tmp_path):
    """The cache keeps links to blobs outside the model's directory."""
    cached = tmp_path / "hub" / "models--owner--name"
    snapshot = cached / "snapshots" / ("0" * 40)
    for folder in (snapshot, cached / "blobs", cached / "refs"):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FOLDER / "grouped" / name, cached / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert Path(download("owner/name", tmp_path, HF_HUB_OFFLINE="1")) == snapshot
    with np.load(FOLDER / "grouped" / "expected.npz") as expected:
        assert_same(ours(snapshot), expected)


def test_what_is_fetched(monkeypatch, tmp_path):
    """No code, no pickles, no second copy of the weights: by the hub's own filter."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    listed = [
        "config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.model", "README.md",
        "modeling_x.py", "pytorch_model.bin", "consolidated.00.pt", "consolidated.safetensors", "tokenizer.json", "x.pkl",
    ]  # fmt: skip
    fetched = []

    def snapshot(hub_id, **patterns):
        fetched.extend(filter_repo_objects(listed, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert huggingface.download("owner/name") == tmp_path
    assert fetched == listed[:4]


if __name__ == "__main__":
    make_goldens()
