"""Checkpoints that lie: pickles that never end, headers that ask for gigabytes, configs of anything."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import CheckpointError, native, recognise
from grokscope.checkpoints.inspecting import inspect
from grokscope.checkpoints.mapped_safetensors import read_header
from grokscope.checkpoints.pickled_array import read_arrays
from grokscope.config import BlockConfig, ModelConfig, RopeConfig, RouterConfig
from tests.conftest import ROOT, TINY, make

LAUGHS = b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(40))
"""A pair of the pair before it, forty times: 2**40 to whoever looks into it."""
DEEP = b")" + b"\x85" * 9000
NAME = b"\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93"


ONE = b"K\x01K\x01\x86\x94"
DTYPE = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02i1\x89\x88\x87R"


def array(shape: bytes, dtype: bytes = DTYPE) -> bytes:
    """A pickled array of one byte, its shape and dtype as given; h\x28 stands for 2**40 ones."""
    return b"\x80\x04" + NAME + b"(" + ONE + LAUGHS + b"tR(K\x01" + shape + dtype + b"\x89C\x01xtb."


PICKLES = {
    "laughs as a name": (b"\x80\x04" + ONE + LAUGHS + b"\x8c\x01x\x93.", "asks to import what has no name"),
    "more depths": (b"\x80\x04)" + b"\x85" * 300_000, "a pickle of more than 10,000 steps"),
    "depths as a name": (b"\x80\x04" + DEEP + b"\x8c\x01x\x93.", "asks to import what has no name"),
    "laughs as a key": (b"\x80\x04}(" + ONE + LAUGHS + b"u.", "wanted names as keys"),
    "depths as a key": (b"\x80\x04}(" + DEEP + b"Nu.", "wanted names as keys"),
    "laughs as a shape": (array(b"h\x28"), "wanted a shape of up to 8 whole numbers, got tuple"),
    "laughs in a shape": (array(b"h\x28\x85"), "wanted a shape of up to 8 whole numbers, got tuple"),
    "laughs as a dtype": (array(b")", b"\x8c\x05numpy\x8c\x05dtype\x93h\x28\x85R"), "wanted a little-endian"),
    "laughs as an order": (array(b")", DTYPE + b"h\x28h\x28\x86b"), "wanted a little-endian"),
    "depths as a state": (b"\x80\x04\x8c\x08__main__\x8c\x13QuantizedWeight8bit\x93)\x81" + DEEP + b"b.", "wanted an array"),
    "depths as an array": (b"\x80\x04" + DEEP + b".", "wanted an array as NumPy pickles it, got tuple"),
    "marks": (b"\x80\x04" + b"(" * 4900 + b"t" * 4900 + b".", "wanted an array"),
    "a dict in itself": (b"\x80\x04}\x94(\x8c\x01ah\x00u.", "wanted an array"),
    "steps without end": (b"\x80\x04" + b"N" * 20_000, "a pickle of more than"),
    "a long text": (b"\x80\x04X" + struct.pack("<I", 1 << 25) + bytes(1 << 25) + b".", "a text of 33,554,432 bytes"),
    "numbers that are none": (array(b"J\xff\xff\xff\xff\x85"), "got -1"),
    "two things": (b"\x80\x04NN.", "more than one thing"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_would_take_for_ever(tmp_path, name):
    path, (data, message) = tmp_path / "tensor00000_000", PICKLES[name]
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"tensor00000_000: .*{message}") as caught:
        read_arrays(path)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_what_these_are_made_of_is_read_where_it_is_right(tmp_path):
    (tmp_path / "t").write_bytes(array(b"K\x01\x85"))
    np.testing.assert_array_equal(read_arrays(tmp_path / "t")["array"], np.array([ord("x")], np.int8))


def test_names_of_a_pickle_cannot_write_to_a_terminal(tmp_path):
    (tmp_path / "t").write_bytes(b"\x80\x04\x8c\x05\x1b[2Jo\x8c\x06\xe2\x80\xaesys\x93.")
    with pytest.raises(CheckpointError, match=r"import \\x1b\[2Jo\.\\u202esys") as caught:
        read_arrays(tmp_path / "t")
    assert str(caught.value).isprintable()


def safetensors(path, header):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"abcd")


@pytest.mark.parametrize("entry", [
    {"shape": [3_000_000_000, "x"]}, {"shape": [10**12, [1]]}, {"shape": [True]}, {"shape": [1] * 65}, {"shape": [0, 10**30]},
    {"shape": "4"}, {"shape": None}, {"shape": [-4]}, {"shape": [4.0]}, {"data_offsets": [0, float("inf")]}, {"data_offsets": [0, 10**400]},
    {"data_offsets": [0, 4, 4]}, {"data_offsets": ["0", 4]}, {"dtype": ["I8"]}, {"dtype": "Q3"}, {"dtype": None}, {"data_offsets": [-4, 0]},
    {"data_offsets": [4, 8]},
])  # fmt: skip
def test_headers_that_no_writer_makes(tmp_path, entry):
    safetensors(tmp_path / "a.safetensors", {"w\x1b[2J": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]} | entry})
    with pytest.raises(CheckpointError, match=r"a.safetensors: w\\u\{1b\}\[2J: (wanted|truncated)") as caught:
        read_header(tmp_path / "a.safetensors")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("header", ["[" * 90_000, '{"a": 1}', "[]", "7", '{"a": {}, "a": {}}', '{"a": ' * 90_000])
def test_headers_that_are_none(tmp_path, header):
    safetensors(tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match="a.safetensors: "):
        read_header(tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m"
    native.save(path, TINY, make().weights, [ROOT / "grokscope" / "data" / "pocket" / "tokenizer.model"])
    return path


@pytest.fixture
def copy(saved, tmp_path):
    import shutil

    return shutil.copytree(saved, tmp_path / "m")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_all_that_has_a_digest_is_compared_with_it(copy, name):
    data = (copy / name).read_bytes()
    for changed in (data.replace(b"0", b"1", 1), data[:-1], data[:9] + b"x" + data[10:], b""):
        (copy / name).write_bytes(changed)
        with pytest.raises(CheckpointError, match=name):
            gs.load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "tokenizer.json"])
def test_a_file_that_is_read_must_be_known_by_its_digest(copy, name):
    sums = json.loads((copy / "checksums.json").read_text())
    sums.pop(name, None)
    (copy / "checksums.json").write_text(json.dumps(sums))
    (copy / name).touch()
    with pytest.raises(CheckpointError, match=f"{name}: checksums.json does not know it"):
        gs.load(copy)
    assert any(name in problem for problem in gs.inspect(copy).problems)


@pytest.mark.parametrize("text", [
    "", "[", "[" * 90_000, "{}", "[]", "7", '{"format": "grokscope"}', '{"format": "grokscope", "model": null}',
    '{"format": "grokscope", "model": [1]}', '{"format": "grokscope", "version": "1", "model": {}}', '{"format": "grokscope", "model": {"router": 3}}',
])  # fmt: skip
def test_configs_that_are_none(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(copy)):
        gs.load(copy)


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
@pytest.mark.parametrize("name", ["config.json", "checksums.json", "layer-001.safetensors"])
def test_what_is_no_file_is_not_waited_for(copy, kind, name):
    (copy / name).unlink()
    {"pipe": os.mkfifo, "zero": lambda p: os.symlink("/dev/zero", p), "folder": os.mkdir}[kind](copy / name)
    with pytest.raises((CheckpointError, OSError), match="wanted"):
        kind, folder = recognise(copy)
        native.load(folder, native.read_config(folder))


@pytest.mark.parametrize(("field", "value"), [
    ("num_layers", 10**9), ("num_layers", 0), ("d_model", 1 << 40), ("d_model", True), ("d_model", 40.0), ("norm_eps", "<b>"), ("norm_eps", float("nan")),
    ("attention_scale", "<script>"), ("attention_scale", float("inf")), ("attention_cap", -1), ("pad_id", "0"), ("pad_id", 97), ("eos_id", [1, "2"]),
    ("bos_id", -1), ("tied_embedding", "yes"), ("tied_embedding", 1), ("activation", "<img>"), ("activation", ["gelu"]), ("dense_layers", [0.5]),
    ("dense_layers", "012"), ("rope", {"base": 1}), ("router", None), ("window", 0), ("embed_scale", [1]), ("max_tokens", "67"), ("logit_scale", None),
])  # fmt: skip
def test_every_field_is_what_its_annotation_says(field, value):
    with pytest.raises(ValueError, match=f"{field}: wanted ") as caught:
        dataclasses.replace(TINY, **{field: value})
    assert "<script" not in str(caught.value) or "'" in str(caught.value)


@pytest.mark.parametrize("kind", [ModelConfig, BlockConfig, RouterConfig, RopeConfig])
def test_no_field_of_any_config_takes_markup_or_no_number(kind):
    good = {ModelConfig: TINY, BlockConfig: TINY.block(0), RouterConfig: TINY.router, RopeConfig: TINY.rope}[kind]
    for field in dataclasses.fields(kind):
        for wrong in ("<img src=x onerror=alert(1)>", float("nan"), float("inf"), {"a": 1}, [["x"]], 10**40, -(10**40), object()):
            with pytest.raises(ValueError, match=f"{field.name}: wanted"):
                dataclasses.replace(good, **{field.name: wrong})


def test_numbers_of_numpy_and_lists_are_taken_as_plain_ones():
    made = dataclasses.replace(TINY, d_expert=np.int32(24), norm_eps=np.float32(0.5), eos_id=[1, 2], dense_layers=[np.int64(1)])
    assert (type(made.d_expert), type(made.norm_eps), made.eos_id, made.dense_layers) == (int, float, (1, 2), (1,))
    assert ModelConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("values", [
    {"num_layers": 10**9}, {"emb_size": "x"}, {"widening_factor": float("inf")}, {"num_experts": [1]}, {"num_experts": 10**12}, {"key_size": None},
])  # fmt: skip
def test_the_references_own_fields_are_checked_too(tmp_path, values):
    good = {"vocab_size": 16, "sequence_len": 16, "emb_size": 8, "key_size": 4, "num_q_heads": 2, "num_kv_heads": 2, "num_layers": 1, "widening_factor": 2}
    (tmp_path / "tensor00000_000").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(good | values))
    with pytest.raises(CheckpointError, match="config.json: wanted a model's config"):
        inspect(tmp_path)


def test_the_command_says_it_in_one_line_and_little_memory(tmp_path):
    good = {"vocab_size": 16, "sequence_len": 16, "emb_size": 8, "key_size": 4, "num_q_heads": 2, "num_kv_heads": 2, "num_layers": 1, "widening_factor": 2}
    (tmp_path / "tensor00000_000").write_bytes(PICKLES["laughs as a shape"][0])
    (tmp_path / "config.json").write_text(json.dumps(good))
    peak = "import atexit, sys; atexit.register(lambda: print(open('/proc/self/status').read())); sys.argv[0] = 'grokscope'; "
    command = [sys.executable, "-c", peak + "from grokscope.cli.main import main; main()", "trace", "x", "--model", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "wanted a shape of up to 8 whole numbers" in done.stderr
    assert int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) < 1 << 20  # getrusage would tell the parent's too


@pytest.mark.parametrize(("second", "more"), [([2, 6], b""), ([5, 9], b"x"), ([4, 8], b"efghi")], ids=["overlap", "gap", "more"])
def test_arrays_lie_one_after_the_other(tmp_path, second, more):
    entry = {"dtype": "I8", "shape": [4]}
    safetensors(tmp_path / "a.safetensors", {"a": entry | {"data_offsets": [0, 4]}, "b": entry | {"data_offsets": second}})
    with open(tmp_path / "a.safetensors", "ab") as file:
        file.write(b"efgh"[: second[1] - 4] + more)
    with pytest.raises(CheckpointError, match=r"wanted (the next array at byte|[\d,]+ bytes).*one after the other"):
        read_header(tmp_path / "a.safetensors")
