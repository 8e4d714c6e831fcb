"""Counters that lie about themselves, and files that are not written over."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from grokscope.counters.counters import RoutingCounters
from grokscope.counters.documents import document
from grokscope.counters.spec import CounterSpec


@pytest.fixture(scope="module")
def counters():
    made = RoutingCounters(CounterSpec(layers=(1, 3), num_experts=5, slots=2, token_ids=True))
    for label in "ab":
        chosen = np.argsort(np.random.default_rng(0).random((23, 2, 5)), axis=-1)[..., :2]
        made.add_document(document(chosen, 5, token_ids=np.arange(23) % 7, key=label), label)
    return made


@pytest.fixture
def arrays(counters, tmp_path):
    counters.save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as file:
        return {name: file[name] for name in file.files}


def refused(path, arrays, message, **about):
    told = json.loads(arrays["about"].tobytes())
    told = {**told, **{k: v for k, v in about.items() if k != "spec"}, "spec": {**told["spec"], **about.get("spec", {})}}
    np.savez_compressed(path, **arrays | {"about": np.frombuffer(json.dumps(told).encode(), np.uint8)})
    with pytest.raises(ValueError, match=message) as caught:
        RoutingCounters.open(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize(("about", "message"), [
    ({"labels": ["a", "a"]}, "labels: wanted texts, each once, got .'a', 'a'"), ({"labels": [1, 2]}, "labels: wanted texts"),
    ({"labels": None}, "labels: wanted texts"), ({"labels": "ab"}, "labels: wanted texts"), ({"labels": ["a"]}, "none of this name"),
    ({"spec": {"layers": "abcdefgh"}}, "layers: wanted"), ({"spec": {"slots": 10**9}}, "slots: wanted"), ({"spec": {"layers": [3, 1]}}, "layers: wanted"),
    ({"spec": {"num_experts": 30_000}}, "wanted at most|wanted counts"), ({"spec": {"num_experts": True}}, "num_experts: wanted"),
    ({"spec": {"router": [1]}}, "router: wanted"), ({"spec": {"lags": list(range(1, 2000))}}, "lags: wanted"), ({"spec": {"model": 3}}, "model: wanted"),
    ({"spec": {"evil\x1b": 1}}, "got others"), ({"grokscope_counters": 99}, "schema 2, got 99"), ({"tables": ["0/load"]}, "tables that were written"),
])  # fmt: skip
def test_what_counters_do_not_say_of_themselves(arrays, tmp_path, about, message):
    refused(tmp_path / "d.npz", arrays, message, **about)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("0/keys", lambda a: a.astype(float), "keys: wanted whole numbers"), ("0/keys", lambda a: a[::-1], "keys: wanted"), ("0/keys", lambda a: -a[::-1], "keys"),
    ("0/keys", lambda a: a + (1 << 60), "keys: wanted token ids"), ("0/counts", lambda a: a[:-1], "keys"), ("0/counts", lambda a: -a - 1, "keys"),
    ("0/load", lambda a: np.zeros(1 << 24, np.int64), "load: wanted counts"), ("0/load", lambda a: a.astype(np.int32), "load: wanted counts"),
    ("0/tokens", lambda a: np.array(3), "tokens: wanted counts"), ("9/load", lambda a: np.zeros(3, np.int64), "none of this name"),
    ("0/x", lambda a: np.zeros(3, np.int64), "none of this name"), ("about", lambda a: a.astype(float), "about"),
])  # fmt: skip
def test_tables_that_no_counting_makes(arrays, tmp_path, name, change, message):
    arrays = dict(arrays)
    arrays[name] = change(arrays.get(name))
    if name == "about":
        np.savez_compressed(tmp_path / "d.npz", **arrays)
        with pytest.raises(ValueError, match="about"):
            RoutingCounters.open(tmp_path / "d.npz")
        return
    refused(tmp_path / "d.npz", arrays, message)


def test_a_table_that_is_gone_is_missed(arrays, tmp_path):
    refused(tmp_path / "d.npz", {k: v for k, v in arrays.items() if k != "1/rank"}, "tables that were written")


def test_a_bomb_is_not_unpacked(arrays, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": (1 << 32,)})
    with zipfile.ZipFile(tmp_path / "d.npz", "a", zipfile.ZIP_DEFLATED) as file, file.open("0/load_first.npy~", "w") as entry:
        entry.write(head.getvalue())
        for _ in range(64):
            entry.write(bytes(1 << 22))
    with pytest.raises(ValueError, match="wanted none of this name"):
        RoutingCounters.open(tmp_path / "d.npz")


def test_a_file_is_written_over_where_that_is_asked_for(counters, tmp_path):
    counters.save(tmp_path / "c.npz")
    before = (tmp_path / "c.npz").read_bytes()
    with pytest.raises(FileExistsError, match=r"c.npz: wanted a new name, got one that is there"):
        (counters + counters).save(tmp_path / "c.npz")
    assert (tmp_path / "c.npz").read_bytes() == before
    (counters + counters).save(tmp_path / "c.npz", overwrite=True)
    assert RoutingCounters.open(tmp_path / "c.npz").tokens == 2 * counters.tokens
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
