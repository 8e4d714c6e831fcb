"""Reading a harvest: every row once, by name; and whatever is damaged or foreign is refused by its name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from safetensors.numpy import load_file, save_file

import grokscope as gs
from grokscope.activations import rows as reading
from grokscope.activations.layout import Place
from grokscope.activations.rows import Rows
from grokscope.sweeps.harvest_part import Chunk, Piece, write
from grokscope.sweeps.harvest_part import Rows as Written

PLACES = [Place("resid_post", 1, 5), Place("expert.act", 1, 3, 2), Place("embed", None, 7)]


def about(shard=(0, 1)):
    return {
        "format": 1, "model": "made", "config": {}, "dtype": "float32", "routed": [1], "slots": 2, "share": 1.0, "seed": 0,
        "shard": list(shard), "places": [[p.site, p.layer, p.width, p.slots] for p in PLACES],
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two parts of 11 and 6 tokens, one of which has a single expert."""
    out = tmp_path_factory.mktemp("a") / "out"
    folder, rng, sizes = out / "00000-of-00001", np.random.default_rng(0), (11, 6)
    folder.mkdir(parents=True)
    for number, n in enumerate(sizes):
        chunk = Chunk((Piece(number, 0, np.arange(n, dtype=np.int32), "ab"[number], "0", np.ones(n, bool)),), number + 1, number + 1, f"{number:016x}")
        rows = Written(chunk, PLACES, [1], 2, "float32")
        for a in rows.arrays.values():
            a[...] = rng.standard_normal(a.shape)
        rows.routing["experts", 1][...] = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)[:, :2]
        rows.routing["gates", 1][...] = 0.5
        rows.routing["experts", 1][3, 1] = -1
        tokens = {"document": [number] * n, "position": [*range(n)], "token_id": [*range(n)], "piece": ["x"] * n, "label": ["ab"[number]] * n}
        write(folder, number, chunk, rows, tokens, {"read": str(number + 1), "documents": str(number + 1), "digest": f"{number:016x}"})
    (folder / "harvest.json").write_text(json.dumps(about()))
    (folder / "done.json").write_text(json.dumps({"parts": 2, "rows": 17, "documents": 2}))
    return out


def test_rows_by_name_and_their_tokens(made):
    acts = gs.open_activations(made)
    assert (len(acts), acts.sites, acts.layers("expert.act"), acts.is_whole) == (17, ["resid_post", "expert.act", "embed"], [1], True)
    stored = np.concatenate([load_file(made / f"00000-of-00001/resid_post/layer_001/0000000{n}.safetensors")["activations"] for n in (0, 1)])
    rows = acts["resid_post", 1]
    np.testing.assert_array_equal(rows[:], stored)
    np.testing.assert_array_equal(rows[[14, 2]], stored[[14, 2]])
    np.testing.assert_array_equal(np.asarray(rows), stored)
    np.testing.assert_array_equal(rows[-1], stored[-1])
    assert acts["blocks.1.hook_resid_post"].shape == (17, 5) and acts["embed"].shape == (17, 7)
    slots = acts["expert.act", 1]
    assert slots.shape == (32, 3) and not ((slots.token == 3) & (slots.slot == 1)).any() and not ((slots.token == 14) & (slots.slot == 1)).any()
    np.testing.assert_array_equal(slots.expert, acts.experts[slots.token, 0, slots.slot])
    assert (slots.of_expert(2).expert == 2).all()
    b = acts.where(acts.tokens["label"] == "b").where(lambda t: t["position"] > 1)
    np.testing.assert_array_equal(b["resid_post", 1][:], stored[13:])
    np.testing.assert_array_equal(b["expert.act", 1][:], slots[slots.token >= 13])
    assert b["expert.act", 1].token.min() == 0 and b["expert.act", 1].to_pandas().index.names == ["token", "slot", "expert"]
    assert rows.to_pandas().index.name == "token" and b.tokens["document"].unique().tolist() == [1]


def test_batches_have_every_row_once_and_come_again(monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 4)
    monkeypatch.setattr(reading, "BLOCKS", 3)
    x = np.arange(53, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    rows = Rows("embed", None, (x[:20], x[20:]), np.arange(53), np.arange(53), width=2)
    epochs = [list(rows.batches(5, seed=3, epochs=2)), list(rows.batches(5, seed=3, epochs=2)), list(rows.batches(5, seed=4))]
    for batches in epochs:
        for values, at in batches:
            np.testing.assert_array_equal(values[:, 0], at)
    numbers = [np.concatenate([at for _, at in b]) for b in epochs]
    assert sorted(numbers[0][:53]) == sorted(numbers[0][53:]) == sorted(numbers[2]) == list(range(53))
    assert (numbers[0] == numbers[1]).all() and (numbers[0][:53] != numbers[0][53:]).any() and (numbers[0][:53] != numbers[2]).any()
    assert [len(at) for _, at in epochs[2]] == [5] * 10 + [3]
    with pytest.raises(ValueError, match="size and epochs of 1 or more"):
        next(rows.batches(0))


def json_as(**change):
    return lambda p: (p / "harvest.json").write_text(json.dumps(about() | change))


def table_as(change):
    def apply(p):
        path = p / "tokens/00000001.parquet"
        table = parquet.read_table(path)
        parquet.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)

    return apply


def arrays_as(change):
    def apply(p):
        path = p / "expert.act/layer_001/00000001.safetensors"
        save_file(change(load_file(path)), path)

    return apply


def cut(name, n=None):
    return lambda p: (p / name).write_bytes((p / name).read_bytes()[:n])


def lying(p):
    path = p / "resid_post/layer_001/00000000.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[11,5]', b'"shape":[5,11]'))


def replaced(table, name, column):
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("resid_post/layer_001/00000001.safetensors", -4), "truncated"),
        (cut("resid_post/layer_001/00000001.safetensors", 5), "truncated"),
        (lying, r"rows of 5 for 11 tokens of resid_post, got activations \[5, 11\]"),
        (lambda p: (p / "embed/00000001.safetensors").unlink(), "got no file"),
        (arrays_as(lambda a: a | {"token": a["token"] + 6}), "wanted tokens of 0 to 5"),
        (arrays_as(lambda a: a | {"slot": -a["slot"] - 1}), "wanted slots of 0 to 1"),
        (arrays_as(lambda a: {"activations": a["activations"]}), "wanted float32 rows of 3"),
        (arrays_as(lambda a: a | {"activations": a["activations"].astype(np.float16)}), "wanted float32 rows of 3"),
        (cut("tokens/00000001.parquet", -30), "wanted Parquet"),
        (lambda p: pd.DataFrame({"text": ["a"]}).to_parquet(p / "tokens/00000001.parquet"), "how far it comes"),
        (table_as(lambda t: t.drop(["piece"])), "wanted a column piece"),
        (table_as(lambda t: replaced(t, "document", pa.array([0.5] * 6))), "wanted document as a harvest writes it, got double"),
        (table_as(lambda t: replaced(t, "label", pa.array([None] * 6, pa.string()))), "got gaps"),
        (table_as(lambda t: replaced(t, "experts_layer_1", pa.array([[1]] * 6, pa.list_(pa.int16(), 1)))), "wanted experts_layer_1"),
        (table_as(lambda t: t.slice(0, 5)), "rows of 5 for 5 tokens"),
        (json_as(format=2), "format 1, got 2"),
        (json_as(places=[["resid_post", 1, -5, 0]]), "wanted places"),
        (json_as(places=[["../../etc", 1, 5, 0]]), "wanted places"),
        (json_as(slots=10**9), "wanted places"),
        (json_as(dtype="pickle"), "wanted a dtype"),
        (json_as(routed="all"), "wanted routed as list"),
        (cut("harvest.json", 20), "wanted JSON"),
        (lambda p: (p / "done.json").write_text('{"parts": 3, "rows": 17}'), "got 2 whole parts"),
        (lambda p: (p / "done.json").write_text("[]"), "got 2 whole parts"),
        (lambda p: p.rename(p.parent / "00000-of-00002"), "folders of all processes"),
        (lambda p: shutil.rmtree(p), "without 00000-of-"),
    ],
)
def test_damage_is_one_clear_line_with_the_file_s_name(made, tmp_path, damage, message):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    damage(out / "00000-of-00001")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        acts = gs.open_activations(out)
        _ = acts.tokens, [acts[p.site, p.layer][:] for p in acts.places]
    assert str(out) in str(told.value) and "\n" not in str(told.value)


def test_what_is_not_there_is_said(made, tmp_path):
    acts = gs.open_activations(made)
    for ask, message in (
        (lambda: acts["moe.in", 1], "harvest it too"), (lambda: acts["resid_post", 0], r"a layer of \[1\]"),
        (lambda: acts.where([True]), "each of 17 tokens"), (lambda: acts.where(np.zeros(17, bool)), "none that holds"),
        (lambda: acts["embed"].of_expert(1), "site with slots"), (lambda: gs.open_activations(tmp_path / "no"), "found none"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ask()
