"""Recordings made by others: each format written by hand here, read back, replayed; and files that mean harm."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.recordings.routed_experts import read_routed_experts
from grokscope.recordings.router_logits import read_router_logits
from grokscope.trace.trace import Trace
from grokscope.transformer.router import route
from tests.conftest import TINY, make, shared

RULE = TINY.router


@pytest.fixture(scope="module")
def traced(tiny, ids) -> Trace:
    return tiny.trace(ids)


@pytest.fixture(scope="module")
def texts(traced) -> list[np.ndarray]:
    """Three texts [11 tokens, 3 layers, 2]."""
    return list(traced["router.experts"].transpose("batch", "token", "layer", "slot").values)


def npy(array: np.ndarray) -> bytes:
    """A .npy file by its description: magic, version, a padded dict, the numbers."""
    kind = {"i": "i", "u": "u", "f": "f"}[array.dtype.kind]
    order = "|" if array.dtype.itemsize == 1 else "<"
    head = f"{{'descr': '{order}{kind}{array.dtype.itemsize}', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    head = head.ljust((10 + len(head)) // 64 * 64 + 53) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + array.tobytes()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bare(array: np.ndarray) -> str:
    """As SGLang: int32, flat, no shape."""
    return b64(struct.pack(f"<{array.size}i", *array.ravel().tolist()))


class Pt:
    """What torch.save writes, by hand: protocol 2 opcodes and a zip that is not compressed."""

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []
        self.seen: dict[str, int] = {}

    def text(self, s: str) -> bytes:
        if s in self.seen:
            return b"h" + bytes([self.seen[s]])
        self.seen[s] = len(self.seen)
        return b"X" + struct.pack("<I", len(s)) + s.encode() + b"q" + bytes([self.seen[s]])

    def value(self, x) -> bytes:
        if isinstance(x, dict):
            return b"}(" + b"".join(self.text(k) + self.value(v) for k, v in x.items()) + b"u"
        if isinstance(x, list):
            return b"](" + b"".join(map(self.value, x)) + b"e"
        if isinstance(x, tuple):
            return b"(" + b"".join(map(self.value, x)) + b"t"
        if isinstance(x, np.ndarray):
            return self.tensor(x)
        if x is None or isinstance(x, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[x]
        return b"J" + struct.pack("<i", x) if isinstance(x, int) else self.text(x)

    def tensor(self, x: np.ndarray, shape=None, strides=None, offset=0) -> bytes:
        name = {"int32": "IntStorage", "int64": "LongStorage", "float32": "FloatStorage"}[x.dtype.name]
        self.storages.append(x)
        shape = x.shape if shape is None else shape
        strides = tuple(s // x.itemsize for s in x.strides) if strides is None else strides
        storage = b"(" + self.text("storage") + b"ctorch\n" + name.encode() + b"\n"
        storage += self.text(str(len(self.storages) - 1)) + self.text("cpu") + self.value(x.size) + b"tQ"
        sizes = b"".join(b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in s) + b"t" for s in (shape, strides))
        hooks = b"\x89ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + self.value(offset) + sizes + hooks + b"tR"

    def file(self, path: Path, body: bytes, compress: int = zipfile.ZIP_STORED, order: bytes = b"little") -> Path:
        with zipfile.ZipFile(path, "w", compress) as z:
            z.writestr("rec/data.pkl", b"\x80\x02" + body + b".")
            z.writestr("rec/byteorder", order)
            for i, storage in enumerate(self.storages):
                z.writestr(f"rec/data/{i}", storage.tobytes())
            z.writestr("rec/version", "3\n")
        return path


def recorder(path: Path, records: list[dict], logical: np.ndarray | None = None) -> Path:
    pt = Pt()
    return pt.file(path, pt.value({"records": records, "last_physical_to_logical_map": logical}))


def one_pass(experts: np.ndarray, ids, positions, lengths) -> dict:
    """One record; experts [tokens, layers, k] as the recorder keeps them, [layers, tokens, 8]."""
    wide = np.full((experts.shape[1], len(experts), 8), -1, np.int32)
    wide[:, :, : experts.shape[2]] = np.moveaxis(experts, 1, 0)
    return {
        "forward_pass_id": 1, "rank": 0, "gatherer_key": "primary", "input_ids": list(map(int, ids)),
        "positions": list(positions), "extend_seq_lens": lengths, "forward_mode": 1 if lengths else 2,
        "topk_ids_of_layer": wide, "misc_objects": [], "global_physical_count": np.zeros((3, 5), np.int32),
    }  # fmt: skip


def put(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def written(how: str, texts: list[np.ndarray], ids: np.ndarray, at: Path):
    """(what read_routed_experts is given, its other arguments) of the same texts in each format."""
    every, lengths = np.concatenate(texts), [len(t) for t in texts]
    cut = {"sequence_lengths": lengths}
    flat = [(b, t, n, a) for b, x in enumerate(texts) for (t, n, a) in np.ndindex(x.shape)]
    match how:
        case "array":
            return every.astype(np.int16), cut
        case "uint8":
            return every.astype(np.uint8), cut
        case "arrays":
            return texts, {}
        case "4-D":
            return np.stack(texts), {}
        case "npy":
            return put(at / "r.npy", npy(every.astype(np.int16))), cut
        case "npz":
            with zipfile.ZipFile(at / "r.npz", "w", zipfile.ZIP_DEFLATED) as z:
                z.writestr("experts.npy", npy(every.astype(np.int32)))
                z.writestr("sequence_lengths.npy", npy(np.array(lengths)))
            return str(at / "r.npz"), {}
        case "nested lists":
            return put(at / "r.json", json.dumps([t.tolist() for t in texts])), {}
        case "our JSON":
            node = {"experts": every.tolist(), **cut, "num_experts": 5, "token_ids": ids.ravel().tolist()}
            return put(at / "r.json", json.dumps(node)), {}
        case "vLLM 0.21":
            lines = [
                {"prompt_routed_experts": t[:4].tolist(), "choices": [{"routed_experts": t[4:].tolist()}]} for t in texts
            ]
            return put(at / "r.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"), {}
        case "vLLM 0.22":
            choices = [
                {"routed_experts": b64(npy(t.astype(np.uint8))), "token_ids": [*map(int, i), 7]}
                for t, i in zip(texts, ids, strict=True)
            ]
            return put(at / "r.json", json.dumps({"choices": choices})), {}
        case "vLLM base64":
            return [b64(npy(t.astype(np.uint8))) for t in texts], {}
        case "SGLang base64":
            return bare(every), {**cut, "layers": [0, 1, 2], "router": RULE}
        case "SGLang JSON":
            answers = [{"text": "x", "meta_info": {"routed_experts": bare(t)}} for t in texts]
            answers[1] = {"choices": [{"sgl_ext": answers[1]["meta_info"]}]}
            answers[2] = {"meta_info": {"routed_experts": b64(texts[2].astype("<u2").tobytes()), "routed_experts_dtype": "uint16"}}
            return put(at / "r.json", json.dumps(answers)), {"layers": range(3), "router": RULE}
        case "envelope":
            return [{"data": b64(t.astype("u1").tobytes()), "shape": t.shape and [*t.shape], "dtype": "uint8"} for t in texts], {}
        case "SGLang recorder":
            records = [one_pass(every, ids.ravel(), [t for n in lengths for t in range(n)], lengths)]
            return recorder(at / "r.pt", records, np.arange(15).reshape(3, 5) % 5), {}
        case "moe-trace PR":
            rows = [f"{n},{e}\n" for n in range(3) for e in every[:, n].ravel()]
            return put(at / "r.csv", "".join(rows)), {**cut, "router": RULE}
        case "moe-trace rows":
            rows = [f"{t - 40},{n},{','.join(map(str, every[t, n]))}\n" for t in range(len(every)) for n in range(3)]
            return put(at / "r.csv", "".join(rows)), cut
        case "CSV":
            rows = [f"{b},decode,{a},{n},{t},{texts[b][t, n, a]}\n" for b, t, n, a in reversed(flat)]
            return put(at / "r.csv", "prompt,phase,rank,layer,token,expert\n" + "".join(reversed(rows[: 66 * 3]))), {}
    raise AssertionError(how)


FORMATS = [
    "array", "uint8", "arrays", "4-D", "npy", "npz", "nested lists", "our JSON", "vLLM 0.21", "vLLM 0.22", "vLLM base64",
    "SGLang base64", "SGLang JSON", "envelope", "SGLang recorder", "moe-trace PR", "moe-trace rows", "CSV",
]  # fmt: skip


@pytest.mark.parametrize("how", FORMATS)
def test_every_format_is_read_as_written(how, texts, ids, tmp_path):
    source, others = written(how, texts, ids, tmp_path)
    trace = read_routed_experts(source, **{"num_experts": 5, **others})
    assert isinstance(trace, Trace) and trace.sites == ["router.experts"]
    array = trace["router.experts"].transpose("batch", "token", "layer", "slot")
    np.testing.assert_array_equal(array, np.stack(texts))
    assert array.dtype == np.int32 and trace.config.router.num_experts == 5
    assert list(trace.data["length"].values) == [11, 11, 11] and list(trace.data["layer"].values) == [0, 1, 2]
    known = how in ("our JSON", "vLLM 0.22", "SGLang recorder")
    np.testing.assert_array_equal(trace.data["token_id"], ids if known else -1)
    assert trace.pieces[0][1] == (f"[{ids[0, 1]}]" if known else "[1]")
    said = trace.provenance["recording"]["unknown"]
    assert ("router.softmax" in said) == ("router" not in others) and "slot order" in said and "model" in said


@pytest.fixture(scope="module")
def other():
    return make(seed=1)


@pytest.mark.parametrize("how", ["array", "SGLang base64", "SGLang recorder", "CSV"])
def test_another_model_replays_it(how, other, texts, ids, tmp_path):
    source, others = written(how, texts, ids, tmp_path)
    recording = read_routed_experts(source, **others)
    assert (other.trace(ids)["router.experts"].values != recording["router.experts"].values).any()
    replayed = other.trace(ids, edits=[gs.edits.Replay(recording)])
    np.testing.assert_array_equal(replayed["router.experts"], recording["router.experts"])


def test_replay_where_less_was_recorded(other, texts, ids):
    """Servers record one token less than the text; -1 and layers left out are the model's own choice."""
    part = [t[:10, [0, 2]].copy() for t in texts]
    part[1][3:5] = -1
    recording = read_routed_experts(part, layers=[0, 2], router=RULE)
    first = gs.edits.Replay(recording)
    replayed = other.trace(ids, edits=[first])["router.experts"].transpose("batch", "token", "layer", "slot").values
    known = np.stack(part) >= 0
    np.testing.assert_array_equal(replayed[:, :10, [0, 2]][known], np.stack(part)[known])
    own = other.trace(ids)["router.experts"].transpose("batch", "token", "layer", "slot").values
    np.testing.assert_array_equal(replayed[:, 10, 0], own[:, 10, 0])
    assert (replayed[:, :10, 0] != own[:, :10, 0]).any()


def test_a_recording_is_saved_and_shown(texts, tmp_path):
    recording = read_routed_experts(texts, gates=[np.ones(t.shape) for t in texts])
    recording.save(tmp_path / "r.zarr")
    again = gs.open_trace(tmp_path / "r.zarr")
    assert again.data.equals(recording.data) and again.config == recording.config and again.pieces == recording.pieces
    assert "recording" in repr(again) and "router.experts" in again._repr_html_()


def test_slots_are_sorted_by_gate_and_equal_ones_stay():
    experts = [[[3, 1, 2], [0, 4, -1], [2, 0, 1]]]
    gates = [[[0.1, 0.7, 0.2], [0.5, 0.9, np.nan], [0.3, 0.3, 0.3]]]
    trace = read_routed_experts(experts, gates)
    assert trace["router.experts"].values[:, 0, 0].tolist() == [[1, 2, 3], [4, 0, -1], [2, 0, 1]]
    np.testing.assert_allclose(trace["router.gates"].values[:, 0, 0], [[0.7, 0.2, 0.1], [0.9, 0.5, 0], [0.3] * 3])
    assert "slot order" not in trace.provenance["recording"]["unknown"]


def test_dense_layers_are_left_out(texts):
    every = np.insert(np.concatenate(texts), 0, 0, axis=1)
    trace = read_routed_experts(every)
    assert list(trace.data["layer"].values) == [1, 2, 3] and trace.provenance["recording"]["dense_layers"] == [0]
    assert trace.config.num_layers == 4
    assert trace["router.experts", -1].equals(trace["router.experts", 3])
    assert list(read_routed_experts(every[..., :1], num_experts=5).data["layer"].values) == [0, 1, 2, 3]


def test_the_recorder_puts_requests_together(tmp_path):
    """Two prompts, decoding, a third prompt in two chunks while the first has ended; physical experts."""
    rng = np.random.default_rng(0)
    whole = [np.stack([rng.permutation(6)[:3] for _ in range(n * 2)]).reshape(n, 2, 3) for n in (4, 5, 5)]
    physical = np.array([[5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5, 5]])
    where = np.argsort(physical[:, :6], axis=1)
    a, b, c = (np.stack([where[n][t[:, n]] for n in range(2)], axis=1) for t in whole)
    passes = [
        one_pass(np.concatenate([a[:3], b[:2]]), [10, 11, 12, 20, 21], [0, 1, 2, 0, 1], [3, 2]),
        one_pass(np.stack([a[3], b[2]]), [13, 22], [3, 2], None),
        one_pass(c[:2], [30, 31], [0, 1], [2]),
        one_pass(b[3:4], [23], [3], None),
        one_pass(c[2:4], [32, 33], [2, 3], [2]),
        one_pass(np.stack([b[4], c[4]]), [24, 34], [4, 4], None),
    ]
    trace = read_routed_experts(recorder(tmp_path / "r.pt", passes, physical))
    got = trace["router.experts"].transpose("batch", "token", "layer", "slot").values
    lengths = trace.data["length"].values.tolist()
    assert trace.data["token_id"].values[0].tolist() == [10, 11, 12, 13, -1] and lengths == [4, 5, 5]
    assert trace.config.router.num_experts == 6 and trace.provenance["recording"]["passes"] == 6
    np.testing.assert_array_equal(got[0, :4], whole[0])
    # At last b and c stand at the same position: the order in which they ran decides, and nobody else could have been meant.
    np.testing.assert_array_equal(got[1:], whole[1:])
    assert trace.data["token_id"].values[1:].tolist() == [[20, 21, 22, 23, 24], [30, 31, 32, 33, 34]]
    assert trace.provenance["recording"]["uncertain_joins"] == 0


def test_the_recorder_says_where_two_could_have_gone_on(tmp_path):
    one = np.array([[[0, 1], [1, 2]]])
    passes = [one_pass(np.repeat(one, 2, 0), [5, 6], [0, 0], [1, 1]), one_pass(one, [7], [1], None)]
    trace = read_routed_experts(recorder(tmp_path / "r.pt", passes))
    assert trace.provenance["recording"]["uncertain_joins"] == 1 and trace.data["length"].values.tolist() == [2, 1]


# The rule


@pytest.mark.parametrize("rule", [
    RULE, RouterConfig(num_experts=5, top_k=3, softmax="chosen"), RouterConfig(num_experts=5, top_k=2, logit_cap=2.0),
    RouterConfig(num_experts=5, top_k=1, renormalize=True),
])  # fmt: skip
def test_the_rule_is_the_models(rule):
    logits = 4 * np.random.default_rng(1).standard_normal((2, 7, 5)).astype(np.float32)
    logits[0, 0] = 1.5
    logits[0, 1, [1, 3]] = logits[0, 1].max() + 1
    logits[1, 2, :4] = -np.inf
    tap = _Keep()
    experts, gates = route(jnp.eye(5), jnp.asarray(np.where(np.isinf(logits), -1e30, logits)), rule, tap)
    trace = read_router_logits([np.where(np.isinf(logits), np.float32(-1e30), logits).reshape(14, 5)], rule, np.ones((2, 7)))
    np.testing.assert_array_equal(trace["router.experts"][0], experts)
    np.testing.assert_allclose(trace["router.gates"][0], gates, rtol=1e-6, atol=1e-7)
    for site, value in tap.kept.items():
        np.testing.assert_allclose(trace[site][0], value, rtol=1e-6, atol=1e-7)
    closed = read_router_logits([logits], rule)["router.experts"].values[0, 1, 2]
    assert closed.tolist() == ([4, -1, -1] if rule.logit_cap is None else [4, 0])[: rule.top_k]


class _Keep:
    """A tap that edits nothing."""

    def __init__(self):
        self.kept = {}

    def __call__(self, site, x, **_):
        if site in ("router.logits", "router.probs"):
            self.kept[site] = x
        return x


def test_router_logits_of_a_padded_batch(traced, ids):
    logits = traced["router.logits"].values
    mask = np.ones((3, 11), int)
    mask[0, :4] = mask[2, 9:] = 0
    rows = logits.copy()
    rows[:, mask == 0] = np.nan
    trace = read_router_logits([None, *rows.reshape(3, 33, 5)], RULE, mask, token_ids=ids)
    assert list(trace.data["layer"].values) == [1, 2, 3] and trace.data["length"].values.tolist() == [7, 11, 9]
    assert trace.sites == ["router.logits", "router.probs", "router.experts", "router.gates"]
    for site in trace.sites:
        full = traced[site].values
        np.testing.assert_allclose(trace[site].values[:, 0, :7], full[:, 0, 4:], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(trace[site].values[:, 2, :9], full[:, 2, :9], rtol=1e-5, atol=1e-6)
    assert trace.data["token_id"].values[0, :7].tolist() == ids[0, 4:].tolist()
    assert np.isnan(trace["router.gates"].values[:, 0, 7:]).all() and (trace["router.experts"].values[:, 0, 7:] == -1).all()


# Laws


@st.composite
def routing(draw):
    k, e = draw(st.integers(1, 3)), draw(st.integers(3, 300))
    layers, lengths = draw(st.integers(1, 3)), draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    every = np.stack([rng.permutation(e)[:k] for _ in range(sum(lengths) * layers)]).reshape(-1, layers, k)
    every[rng.random(every.shape) < draw(st.sampled_from([0, 0.3]))] = -1
    every[0, :, 0] = np.maximum(every[0, :, 0], draw(st.just(e - 1)))
    return every, lengths, e


@settings(max_examples=40, deadline=None)
@given(routing(), st.sampled_from(["npy", "JSON", "bare"]))
def test_reading_what_was_written(tmp_path_factory, drawn, how):
    every, lengths, e = drawn
    twice = np.sort(every, axis=-1)
    if ((twice[..., 1:] == twice[..., :-1]) & (twice[..., 1:] >= 0)).any():
        with pytest.raises(ValueError, match="twice"):
            read_routed_experts(every, sequence_lengths=lengths)
        return
    router = RouterConfig(num_experts=e, top_k=every.shape[2])
    path = tmp_path_factory.mktemp("r")
    source = {
        "npy": lambda: put(path / "r.npy", npy(every)),
        "JSON": lambda: put(path / "r.json", json.dumps(every.tolist())),
        "bare": lambda: bare(every),
    }[how]()
    trace = read_routed_experts(source, sequence_lengths=lengths, layers=range(every.shape[1]), router=router)
    back = trace["router.experts"].transpose("batch", "token", "layer", "slot").values
    np.testing.assert_array_equal(np.concatenate([t[:n] for t, n in zip(back, lengths, strict=True)]), every)
    assert trace.data["length"].values.tolist() == lengths


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 7))
def test_damaged_files_are_refused_or_read(tmp_path_factory, junk, which):
    """Any bytes at all, and good files with some bytes changed: an answer or a ValueError, nothing else."""
    at = tmp_path_factory.mktemp("d")
    good = recorder(at / "r.pt", [one_pass(np.array([[[0, 1]], [[1, 2]]]), [3, 4], [0, 1], [2])]).read_bytes()
    place = int.from_bytes(junk[:2], "little") % len(good)
    broken = good[:place] + junk + good[place + len(junk) :]
    name = ["a.pt", "a.npy", "a.npz", "a.json", "a.jsonl", "a.csv", "b.pt", "c.pt"][which]
    data = {"b.pt": broken, "c.pt": good[:place]}.get(name, junk)
    for source in (put(at / name, data), b64(junk)):
        try:
            read_routed_experts(source)
        except ValueError as error:
            assert str(error)


# Harm


def evil(path: Path, protocol: int, marker: Path) -> Path:
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    with zipfile.ZipFile(path, "w") as z:
        z.writestr("rec/data.pkl", pickle.dumps({"records": [Run()]}, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_would_run_something_is_refused(protocol, tmp_path):
    with pytest.raises(ValueError, match="refused"):
        read_routed_experts(evil(tmp_path / "r.pt", protocol, tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("what", "message"), [
    ("expanded", "wanted at most .* bytes of numbers"), ("beyond", "copy the file again"), ("missing", "found none"),
    ("compressed", "not compressed"), ("big-endian", "little-endian"), ("two", "one data.pkl"), ("no zip", "truncated or foreign"),
    ("stat", "counts of mode stat.*per_token"), ("counts", "per_pass keeps counts"), ("function", "import builtins.eval"),
])  # fmt: skip
def test_torch_files_that_are_not_as_they_should_be(what, message, tmp_path):
    pt, path, numbers = Pt(), tmp_path / "r.pt", np.arange(48, dtype=np.int32).reshape(3, 2, 8)
    record = one_pass(np.zeros((2, 3, 1)), [1, 2], [0, 1], [2])
    del record["topk_ids_of_layer"], record["global_physical_count"]
    shape, strides = ((1 << 20, 1 << 20, 8), (0, 0, 1)) if what == "expanded" else ((3, 2, 8), (16, 8, 2 if what == "beyond" else 1))
    body = b"}(" + pt.text("records") + b"](" + pt.value(record)[:-1] + pt.text("topk_ids_of_layer")
    body += pt.tensor(numbers, shape, strides) + b"ueu"
    if what == "missing":
        pt.storages.clear()
    if what in ("stat", "counts", "function"):
        pt = Pt()
        body = {
            "stat": lambda: pt.value({"rank": 0, "logical_count": np.ones((1, 3, 5), np.int32)}),
            "counts": lambda: pt.value({"records": [{"global_physical_count": np.ones((3, 5), np.int32)}]}),
            "function": lambda: b"cbuiltins\neval\n(X\x01\x00\x00\x001tR",
        }[what]()
    pt.file(path, body, zipfile.ZIP_DEFLATED if what == "compressed" else 0, b"big" if what == "big-endian" else b"little")
    if what == "two":
        with zipfile.ZipFile(path, "a") as z:
            z.writestr("other/data.pkl", b"")
    if what == "no zip":
        put(path, path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=message):
        read_routed_experts(path)


def test_pickles_that_would_take_forever(tmp_path):
    """Marks without end, and a tuple of itself doubled thirty times as a key."""
    doubled = b")" + b"q\x00h\x00\x86" * 26
    for body in (b"(" * 200_000 + b"t" * 200_000, b"}" + doubled + b"Ns", b"\x85" * 9, b")" + b"\x85" * 300_000):
        started = time.monotonic()
        with pytest.raises(ValueError):
            read_routed_experts(Pt().file(tmp_path / "r.pt", body))
        assert time.monotonic() - started < 3


def zipped(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)
    return path


def test_files_that_lie_about_their_size(tmp_path, monkeypatch):
    lying = b"\x93NUMPY\x01\x00" + struct.pack("<H", 76) + b"{'descr':'<i4','fortran_order':False,'shape':(99999999999,9,9)}".ljust(75) + b"\n1234"
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for data, message in [(lying, "copy the file again"), (objects.getvalue(), "plain numbers"), (b"x" + lying, "np.save"), (b"\x93NUMPY\x01\x00\x0a\x00{'a': (1,\n", "np.save")]:
        for source in (put(tmp_path / "r.npy", data), zipped(tmp_path / "r.npz", "experts.npy", data)):
            with pytest.raises(ValueError, match=message):
                read_routed_experts(source)
    cut = (tmp_path / "r.npz").read_bytes()
    with pytest.raises(ValueError, match="truncated or foreign"):
        read_routed_experts(put(tmp_path / "r.npz", cut[40:]))
    monkeypatch.setattr("grokscope.recordings.anything.LIMIT", 1 << 20)
    bomb = zipped(tmp_path / "b.npz", "experts.npy", npy(np.zeros((1 << 19, 1, 1), np.int32)))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match="wanted at most 1,048,576 bytes"):
        read_routed_experts(bomb)


GOOD = np.array([[[0, 1], [2, 3]], [[4, 0], [1, 2]], [[3, 2], [0, 4]]])


@pytest.mark.parametrize(("source", "others", "message"), [
    ("no such file.npy", {}, "no such file"), ("%%%%", {}, "wanted base64 or the name of a file"),
    (bare(GOOD), {}, "wanted a shape.*give layers="), (bare(GOOD), {"layers": [0, 1, 2, 3, 4], "router": RULE}, "no multiple"),
    ("AAAA", {}, "whole numbers of 4 bytes"), ({"error": "busy"}, {}, "--enable-return-routed-experts"), ([], {}, "wanted"),
    ([[[0, 1], [2]]], {}, "make it even"), ([[["a", "b"]]], {}, "wanted an array of numbers"), ({"data": "AA==", "shape": "x"}, {}, "shape of whole"),
    (GOOD[0], {}, r"\[tokens, layers, slots\]"), (GOOD + 0.5, {}, "whole numbers, got float64"), (GOOD[:0], {}, "at least one each"),
    (GOOD, {"num_experts": 4}, "wanted ids 0 to 3, got 4"), (GOOD - 2, {}, "from 0, -1 if unset, got -2"), (GOOD * 99999, {}, "below 65,536"),
    (GOOD // 3, {}, "expert 0 twice in text 0, token 0, layer 0 .2 such"),
    (GOOD, {"sequence_lengths": [1, 1]}, "add up to the 3 tokens, got 2 that add up to 2"), (GOOD, {"sequence_lengths": [3, 0]}, "1 and more"),
    (GOOD, {"layers": [0]}, "the numbers of 2 layers"), (GOOD, {"layers": [1, 0]}, "in order"), (GOOD, {"layers": [0.5, 1]}, "whole numbers"),
    (GOOD, {"router": RouterConfig(num_experts=5, top_k=3)}, "router's 3 slots, got 2"), (GOOD, {"num_experts": 0}, "1 or more"),
    (GOOD, {"router": RULE, "num_experts": 8}, "router's 5, got 8"), (GOOD, {"gates": GOOD * np.nan}, "got nan in text 0, token 0, layer 0"),
    (GOOD, {"gates": np.ones((3, 2, 3))}, "wanted the experts'"), (GOOD, {"gates": 0.5}, "for each of the 3 tokens, got none"), (GOOD, {"gates": np.ones((2, 2, 2))}, "for each of the 3 tokens, got 2"),
    ([GOOD, GOOD[:, :1]], {}, "same layers and slots"), (np.zeros((3, 2, 2), int), {}, "zeros alone"),
])  # fmt: skip
def test_what_is_wrong_is_said(source, others, message):
    error = FileNotFoundError if message == "no such file" else ValueError
    with pytest.raises(error, match=message) as caught:
        read_routed_experts(source, **others)
    assert "wanted" in str(caught.value) and ("got" in str(caught.value) or "found" in str(caught.value))


@pytest.mark.parametrize(("text", "others", "message"), [
    ("0,1\n0,2\n", {}, "give router="), ("0,1\n0,2\n0,3\n", {"router": RULE}, "2 experts for each token"), ("0,0,1\n0,1,2\n1,0,1\n", {}, "cut off"),
    ("token,expert\n0,1\n", {}, "got no layer"), ("token,layer,expert\n0,0,\n", {}, "whole numbers"), ("", {}, "something else"), ("a,b\n", {}, "at least one row"),
    ("token,layer,rank,expert\n0,0,0,1\n0,0,0,2\n", {}, "some twice"), ("token,layer,rank,expert\n999999999,0,0,1\n", {}, "without gaps"),
    ("token,layer,rank,expert\n0,0,999999999999,1\n", {}, "without gaps"), ("token,layer,expert,gate\n0,0,1,x\n", {}, "got nan"),
])  # fmt: skip
def test_csv_that_is_wrong(text, others, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_routed_experts(put(tmp_path / "r.csv", text), **others)


def test_csv_of_whole_rankings_is_refused(tmp_path):
    """What the tool of the pull request writes of a prompt: rows of an argsort of all experts, read as if they were chosen."""
    rng = np.random.default_rng(0)
    rankings = [np.concatenate([rng.permutation(16) for _ in range(8)]) for _ in range(2)]
    rows = "".join(f"{n},{e}\n" for n, ranked in enumerate(rankings) for e in ranked[: 8 * 4])
    with pytest.raises(ValueError, match="rankings of all 16"):
        read_routed_experts(put(tmp_path / "r.csv", rows), router=RouterConfig(num_experts=16, top_k=4))


@pytest.mark.parametrize(("logits", "others", "message"), [
    ([], {}, "got none"), ([np.zeros((4, 7))], {}, "check router.num_experts"), ([np.full((4, 5), np.nan)], {}, "got NaN"),
    ([np.zeros((4, 5)), np.zeros((3, 5))], {}, "same shape in all layers"), ([np.zeros((4, 5))], {"attention_mask": np.ones((2, 3))}, "mask of this run"),
    ([np.full((20, 5), 0.2)], {}, "got probabilities"), ([np.zeros((4, 5))], {"attention_mask": [[1, 1], [0, 0]]}, "text without"),
    ([np.zeros((2, 2, 5))], {"token_ids": [[1, 2, 3, 4]]}, "mask of this run"), ([np.zeros((4, 5))], {"token_ids": [[1, 2], [3, 0.5]]}, "whole numbers"),
])  # fmt: skip
def test_logits_that_are_wrong(logits, others, message):
    with pytest.raises(ValueError, match=message):
        read_router_logits(logits, RULE, **others)


# Other people's data and tools


def test_real_routing_has_the_known_repeats():
    trace = read_routed_experts(shared("data/routing/deepseek_v2_lite_law.npz"), num_experts=64)
    assert dict(trace.data.sizes) == {"layer": 26, "batch": 33, "token": 580, "slot": 6} and int(trace.data["length"].sum()) == 8327
    assert list(trace.data["layer"].values) == list(range(1, 27))
    inside = np.arange(1, 580) < trace.data["length"].values[:, None]
    for layer, first, any_of in [(1, 0.057, 0.520), (7, 0.166, 0.706), (13, 0.241, 0.848), (20, 0.175, 0.812), (26, 0.155, 0.704)]:
        e = trace["router.experts", layer].values
        assert round(float((e[:, 1:, 0] == e[:, :-1, 0])[inside].mean()), 3) == first
        assert round(float((e[:, 1:, :, None] == e[:, :-1, None]).any((2, 3))[inside].mean()), 3) == any_of
    paths = {tuple(p) for b, n in enumerate(trace.data["length"].values) for p in trace["router.experts"].values[:, b, :n, 0].T}
    assert len(paths) == 7473
    gates = trace["router.gates"].values
    assert (np.diff(gates[:, 0, :211], axis=-1) <= 0).all()


def test_torch_writes_and_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    ours = recorder(tmp_path / "ours.pt", [one_pass(GOOD, [7, 8, 9], [0, 1, 2], [3])])
    tree = torch.load(ours, weights_only=True)
    torch.save(tree, tmp_path / "theirs.pt")
    assert read_routed_experts(ours)["router.experts"].equals(read_routed_experts(tmp_path / "theirs.pt")["router.experts"])


def test_layers_without_experts_are_dense_and_partly_recorded_tokens_count_nowhere(traced, texts):
    every = texts[0].copy()  # T L A
    every[:, 0] = -1
    every[:2] = -1
    dense = read_routed_experts(every, num_experts=5)
    assert dense.data["layer"].values.tolist() == [1, 2] and dense.provenance["recording"]["dense_layers"] == [0]
    zeros = texts[0].copy()
    zeros[:, 0] = 0
    zeros[:3] = -1
    assert read_routed_experts(zeros, num_experts=5).data["layer"].values.tolist() == [1, 2]
    partly = texts[0].copy()
    partly[4:7, 1] = -1
    made = read_routed_experts(partly, num_experts=5)
    assert made.provenance["recording"]["partly_unset"] == 3
    np.testing.assert_array_equal(made["router.experts"].isel(batch=0).transpose("token", "layer", "slot"), partly)
    whole = read_routed_experts(np.delete(texts[0], [4, 5, 6], axis=0), num_experts=5)
    np.testing.assert_array_equal(gs.routing.expert_load(made)["value"], gs.routing.expert_load(whole)["value"])


def test_recordings_of_one_model_add_up_whatever_file_they_came_in(texts, tmp_path):
    np.save(tmp_path / "a.npy", texts[0])
    one, two = (gs.RoutingCounters.from_trace(read_routed_experts(x, num_experts=5)) for x in (texts[0], tmp_path / "a.npy"))
    assert (one + two).tokens == 2 * one.tokens
    assert one.spec.router["softmax"] is None, "nobody said"
    known = read_routed_experts(texts[0], router=RouterConfig(num_experts=5, top_k=2))
    with pytest.raises(ValueError, match="router"):
        one + gs.RoutingCounters.from_trace(known)
    named = [gs.RoutingCounters.from_trace(read_routed_experts(texts[0], num_experts=5, model=m)) for m in ("x", "y")]
    with pytest.raises(ValueError, match="model: 'x' and 'y'"):
        named[0] + named[1]


def test_a_run_agrees_with_itself_also_where_slots_are_empty(texts):
    some = texts[0].copy()
    some[::3, 1, 1] = -1
    one = read_routed_experts(some, num_experts=5)
    made = gs.routing.routing_agreement(one, one)
    np.testing.assert_allclose(made["value"], 1)
    assert (made["null_mean"] < 0.9).all()
