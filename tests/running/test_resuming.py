"""A run's folder after a power cut: what is whole goes on, what nothing tells of is done again, what is foreign stays."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from grokscope.running.resuming import OnDisk, identity


@pytest.fixture
def begun(tmp_path):
    """Two layers of one batch are done."""
    store = OnDisk(tmp_path / "r", 1, {"run": 1})
    for layer in (None, 0, 1):
        store.keep(layer, 0, jnp.full((1, 3), 7.0), {"resid_pre": jnp.full((1, 2), 5.0)})
    store.finish()
    store.close()
    return tmp_path / "r"


def first_layer(folder, about=1):
    store = OnDisk(folder, 1, {"run": about})
    store.close()
    return store.first_layer


def test_it_goes_on_after_the_newest_that_is_whole(begun):
    assert first_layer(begun) == 2
    with pytest.raises(ValueError, match="differs in run"):
        first_layer(begun, 2)
    (begun / "kept-00000-001.safetensors").write_bytes(b"")
    assert first_layer(begun) == 0


def test_a_stream_cut_short_is_made_again(begun):
    newest = begun / "stream-00000-002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert first_layer(begun) == 0


@pytest.mark.parametrize("left", [b"", b'{"run"', b"[]"])
def test_without_its_note_nothing_tells_of_which_run_it_is(begun, left):
    (begun / "run.json").write_bytes(left)
    assert first_layer(begun, 2) == 0
    assert [p.name for p in begun.iterdir()] == ["run.json"]


def test_other_files_are_not_touched(begun, tmp_path):
    (begun / "run.json").write_bytes(b"")
    (begun / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"got other files \('thesis.tex'\)"):
        first_layer(begun)
    assert (begun / "stream-00000-002.safetensors").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".run.json.0123456789abcdef.part").touch()
    assert first_layer(tmp_path / "new") == 0


def test_functions_are_told_apart_by_what_they_do():
    def by(number):
        return lambda x: x * number

    class Thing:
        pass

    thing, a = Thing(), np.arange(3.0)
    assert identity(by(2)) == identity(by(2)) != identity(by(3))
    assert identity(lambda x: x + a) == identity(lambda x: x + a)
    assert identity(lambda x: x + a) != identity(lambda x: x - a)
    other = np.arange(3.0) + 1
    assert identity(lambda x, v=a: x + v) != identity(lambda x, v=other: x + v)
    assert identity(lambda x: (x, thing)) != identity(lambda x: (x, thing)), "what cannot be compared is equal to nothing"
    assert identity(len) == identity(len) != identity(max)
