"""Shards, types, and every damaged file by name."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import CheckpointError, huggingface, recognise
from grokscope.checkpoints.huggingface import files as files_of
from grokscope.checkpoints.mapped_safetensors import map_arrays
from tests.checkpoints.hub import CASES, FOLDER, STACKED, assert_same, ours

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
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 if len(found) == 1 else lines[1:41] == [f"  {line}" for line in found[:40]]
    assert all(line in str(raised.value) for line in found[:40])
    return found


def test_files_that_hold_nothing_are_a_problem(copy):
    write(copy / "model.safetensors", {})
    assert wrong(copy) == ["*.safetensors: wanted arrays, got files that hold none; download them again"]
    assert gs.inspect(copy).problems


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
    read = files_of.read_header
    monkeypatch.setattr(files_of, "read_header", lambda path: (opened.append(path), read(path))[1])
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
