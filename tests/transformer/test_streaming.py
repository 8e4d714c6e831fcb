"""Weights that are brought layer by layer: the same numbers, two layers at a time, and nothing lost on the way."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import CheckpointError, native
from grokscope.running import running
from grokscope.transformer.quantize import quantize
from grokscope.transformer.stream import Streamed
from tests.conftest import TINY, make

EVERYTHING = ["*"]
EDITS = [
    gs.edits.BanExperts([1], layers=[1]),
    gs.edits.Add("resid_mid", 0.5, layers=[0], tokens=[2, -1]),
    gs.edits.Scale("attn.pattern", 0.5, layers=[2], heads=[3]),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    native.save(folder, TINY, quantize(make().weights))
    return folder


@pytest.fixture(scope="module")
def both(saved):
    return [gs.load(saved, dtype="float32", weights=kind) for kind in ("resident", "streamed")]


def same(a, b):
    assert a.sites == b.sites
    for site in a.sites:
        np.testing.assert_array_equal(a[site].values, b[site].values, err_msg=site)


@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
def test_streamed_weights_give_the_same_bits(both, ids, edits):
    resident, streamed = both
    assert streamed.is_streamed
    assert not resident.is_streamed
    same(resident.trace(ids, EVERYTHING, edits=edits), streamed.trace(ids, EVERYTHING, edits=edits))


def test_generation_streams_too_and_says_how_slowly(both, ids, capsys):
    made = [m.generate(ids[:1, :5], 4, capture=["router.*"]) for m in both]
    assert made[0].tokens == made[1].tokens
    same(made[0].trace, made[1].trace)
    said = capsys.readouterr().err
    assert "each token reads all" in said
    assert said.index("each token reads all") == said.rindex("each token reads all"), "the resident one says nothing"


@pytest.mark.parametrize("edits", [(), EDITS, [gs.edits.Add("resid_pre", np.arange(5)[:, None, None] / 7, layers=[1])]])
def test_prompts_in_several_calls_are_the_same_run(both, edits, monkeypatch):
    """5 texts of up to 11 tokens in calls of two; an edit whose value has a row a text is cut with them."""
    rng = np.random.default_rng(3)
    texts = [rng.integers(3, 97, n).tolist() for n in (11, 7, 3, 11, 5)]
    whole = both[0].trace(texts, EVERYTHING, edits=edits)
    monkeypatch.setattr(running, "TOKENS_IN_A_CALL", 32)
    for model in both:
        parts = model.trace(texts, EVERYTHING, edits=edits)
        for site in whole.sites:
            np.testing.assert_allclose(parts[site], whole[site], rtol=2e-5, atol=2e-5, err_msg=site)


def test_layers_are_read_once_for_all_calls(monkeypatch):
    model = make()
    monkeypatch.setattr(running, "TOKENS_IN_A_CALL", 16)
    reads = []

    def read(layer):
        reads.append(layer)
        return model.weights.blocks[layer]

    streamed = replace(model, weights=replace(model.weights, blocks=Streamed(range(TINY.num_layers), read)))
    ids = np.random.default_rng(5).integers(3, 97, (7, 11))
    got = streamed.trace(ids, ["logits"])
    assert reads == list(range(TINY.num_layers))
    np.testing.assert_array_equal(got["logits"], model.trace(ids, ["logits"])["logits"])


class Held:
    """A block that counts how many of its kind there are."""

    there: ClassVar[set[int]] = set()
    most = 0

    def __init__(self, layer):
        self.layer = layer
        Held.there.add(layer)
        Held.most = max(Held.most, len(Held.there))

    def __del__(self):
        Held.there.discard(self.layer)


@pytest.mark.parametrize("on_device", [False, True])
def test_never_more_than_two_layers_where_they_are_used(on_device):
    Held.most = 0
    Held.there.clear()
    # On a device only what was sent is counted, not the copies on the host.
    stream = Streamed(range(9), lambda layer: layer, Held) if on_device else Streamed(range(9), Held)
    seen = []
    blocks = iter(stream)
    for _ in range(9):
        w = next(blocks)
        seen.append(w.layer)
        del w
    assert seen == list(range(9))
    assert Held.most <= 2


def test_slices_and_single_layers():
    stream = Streamed(range(9), lambda n: n, lambda n: n + 0.5, lambda n: n * 10)
    assert list(stream) == [5.0, 15.0, 25.0, 35.0, 45.0, 55.0, 65.0, 75.0, 85.0]
    assert list(stream[7:]) == [75.0, 85.0]
    assert stream[3] == 35.0
    assert len(stream[4:]) == 5


def test_an_abandoned_loop_leaves_no_thread():
    before = threading.active_count()
    for _ in Streamed(range(50), lambda n: n):
        break
    gc.collect()
    assert threading.active_count() == before


class TestARunThatWasCutOff:
    """Resumed at the last finished layer and batch, with the numbers of a run in one go."""

    @pytest.fixture
    def calls_of_two(self, monkeypatch):
        monkeypatch.setattr(running, "TOKENS_IN_A_CALL", 32)

    @pytest.mark.parametrize("fails_at", [0, 1, 2])
    def test_a_read_error(self, tmp_path, fails_at, calls_of_two):
        model = make()
        ids = np.random.default_rng(5).integers(3, 97, (5, 11))
        reads = []

        def read(layer, broken=True):
            reads.append(layer)
            if broken and layer == fails_at:
                raise OSError("the disk went away")
            return model.weights.blocks[layer]

        def streamed(reader):
            return replace(model, weights=replace(model.weights, blocks=Streamed(range(TINY.num_layers), reader)))

        work = tmp_path / "work"
        with pytest.raises(OSError, match="the disk went away"):
            streamed(read).trace(ids, EVERYTHING, edits=EDITS, resume=work)
        reads.clear()
        got = streamed(lambda layer: read(layer, broken=False)).trace(ids, EVERYTHING, edits=EDITS, resume=work)
        assert reads == list(range(fails_at, TINY.num_layers)), "finished layers are not read again"
        same(model.trace(ids, EVERYTHING, edits=EDITS), got)

    def test_in_the_middle_of_a_layer(self, tmp_path, calls_of_two, monkeypatch):
        model = make()
        ids = np.random.default_rng(5).integers(3, 97, (5, 11))
        from grokscope.transformer import forward

        real, runs = forward.run_block, []

        def cut_off(*args, **kwargs):
            runs.append(1)
            if len(runs) == 5:  # layer 1, the second of three calls
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(forward, "run_block", cut_off)
        with pytest.raises(KeyboardInterrupt):
            model.trace(ids, EVERYTHING, resume=tmp_path / "work")
        got = model.trace(ids, EVERYTHING, resume=tmp_path / "work")
        assert len(runs) == 5 + 5, "nine calls in all, four of them were safe"
        same(model.trace(ids, EVERYTHING), got)

    def test_a_full_disk_is_an_error_and_no_partial_file_is_taken_for_whole(self, tmp_path, calls_of_two, monkeypatch):
        model = make()
        ids = np.random.default_rng(5).integers(3, 97, (5, 11))
        from grokscope.running import resuming

        real, saves = resuming.whole_file, []

        @contextmanager
        def full(path, **how):
            saves.append(path)
            with real(path, **how) as file:
                if len(saves) == 8:
                    file.write(b"half a fi")
                    raise OSError(28, "No space left on device", str(path))
                yield file

        monkeypatch.setattr(resuming, "whole_file", full)
        with pytest.raises(OSError, match="No space left"):
            model.trace(ids, EVERYTHING, resume=tmp_path / "work")
        same(model.trace(ids, EVERYTHING), model.trace(ids, EVERYTHING, resume=tmp_path / "work"))

    def test_a_second_process_is_kept_out(self, tmp_path):
        from grokscope.running.resuming import claim

        for what in ("run", "sweep"):
            with claim(tmp_path / what, what, {"a": 1}), pytest.raises(OSError, match="another process is at work"):
                claim(tmp_path / what, what, {"a": 1})
            claim(tmp_path / what, what, {"a": 1}).close()

    def test_another_run_is_refused(self, tmp_path, tiny, ids):
        tiny.trace(ids, ["logits"], resume=tmp_path / "work")
        tiny.trace(ids, ["logits"], resume=tmp_path / "work")
        with pytest.raises(ValueError, match="differs in ids"):
            tiny.trace(ids - 1, ["logits"], resume=tmp_path / "work")
        with pytest.raises(ValueError, match="differs in edits"):
            tiny.trace(ids, ["logits"], edits=EDITS, resume=tmp_path / "work")
        with pytest.raises(ValueError, match="got Map"):
            tiny.trace(ids, ["logits"], edits=[gs.edits.Map("resid_mid", lambda x: 2 * x)], resume=tmp_path / "map")
        with pytest.raises(ValueError, match="differs in .*weights"):
            make(seed=1).trace(ids, ["logits"], resume=tmp_path / "work")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("")
        with pytest.raises(FileExistsError, match="other files"):
            tiny.trace(ids, ["logits"], resume=tmp_path / "other")


class TestWhatIsReadIsChecked:
    def test_a_file_of_somebody_else_beside_them_is_none_of_ours(self, saved, tmp_path, ids):
        import shutil

        shutil.copytree(saved, tmp_path / "m")
        model = gs.load(tmp_path / "m", dtype="float32", weights="streamed")
        (tmp_path / "m" / "notes.txt").write_text("mine")
        model.trace(ids, ["logits"])

    def test_a_file_that_changes_under_a_run(self, saved, tmp_path, ids):
        import shutil

        shutil.copytree(saved, tmp_path / "m")
        model = gs.load(tmp_path / "m", dtype="float32", weights="streamed")
        model.trace(ids, ["logits"])
        layer = tmp_path / "m" / "layer-002.safetensors"
        content = bytearray(layer.read_bytes())
        content[-3] ^= 1
        layer.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"layer-002\.safetensors changed since"):
            model.trace(ids, ["logits"])

    def test_checksums_are_compared_when_a_layer_is_first_read(self, saved, tmp_path, ids):
        import shutil

        shutil.copytree(saved, tmp_path / "m")
        layer = tmp_path / "m" / "layer-002.safetensors"
        content = bytearray(layer.read_bytes())
        content[-3] ^= 1
        layer.write_bytes(content)
        model = gs.load(tmp_path / "m", dtype="float32", weights="streamed")
        with pytest.raises(CheckpointError, match=r"layer-002\.safetensors"):
            model.trace(ids, ["logits"])
        with pytest.raises(CheckpointError, match=r"layer-002\.safetensors"):
            gs.load(tmp_path / "m", dtype="float32", weights="resident")


def test_a_full_device_says_what_would_fit(tiny, ids, monkeypatch):
    import jax

    from grokscope.transformer import forward

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes.")

    monkeypatch.setattr(forward, "run_block", full)
    with pytest.raises(MemoryError, match=r"3 x 11 tokens .* is full\. What would fit: about 5 tokens, weights=\"streamed\""):
        tiny.trace(ids, ["logits"])


def test_layers_stay_pinned_where_there_is_room(monkeypatch):
    from grokscope.devices import placement

    place = placement.Placement(lambda b: b, lambda b: b, lambda b: b, lambda _, a: a, pin=lambda b: b)
    read = []

    def block(layer):
        read.append(layer)
        return layer

    for size, times in ((10**9, 1), (10**12, 2)):
        read.clear()
        reader = place.reader(block, size)
        assert [reader(3), reader(3)] == [3, 3]
        assert len(read) == times


@pytest.mark.parametrize("part", [2**26, 1009])
def test_in_parts_and_by_way_of_pinned_memory_as_on_a_gpu(saved, ids, monkeypatch, part):
    """The steps of a GPU on this machine's device, which has such a memory too: those of weights that stay, of streamed ones."""
    from grokscope.devices import placement, sending
    from grokscope.model import loading

    def as_on_a_gpu(config, dtype, mesh=None):
        def outer(_, array):
            return placement._outer_for_gpu(array, dtype)

        return placement.Placement(
            lambda b: b, sending.sent, lambda b: placement._for_hopper(sending.as_used(b)), outer, pin=sending.pinned
        )

    monkeypatch.setattr(sending, "PART", part)
    monkeypatch.setattr(loading, "placement", as_on_a_gpu)
    made = [gs.load(saved, dtype="float32", weights=kind).trace(ids, EVERYTHING) for kind in ("resident", "streamed")]
    same(*made)
