"""Every format is read as written, and replayed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import grokscope as gs
from grokscope.recordings.routed_experts import read_routed_experts
from grokscope.trace.trace import Trace
from tests.recordings.made import RULE, b64, bare, npy, one_pass, put, recorder


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
    assert ("router.score" in said) == ("router" not in others) and "slot order" in said and "model" in said


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
