"""Steering: directions and experts as edits, their doubles, dose and response, and JSON of strangers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import grokscope as gs
from tests.checkpoints.families import model as family

ROWS = np.random.default_rng(5).integers(3, 90, (8, 11))
A, B = ROWS[:4], ROWS[4:]


@pytest.fixture(scope="module")
def direction(tiny):
    return gs.steering.difference(tiny, A, B, layer=1)


@pytest.fixture(scope="module")
def contrast(tiny):
    return gs.routing.contrast(tiny.trace(ROWS, ["router.*"]), "a", "b", labels=[*"aaaabbbb"])


def test_a_difference_is_the_means_and_an_edit_adds_it(tiny, direction):
    trace = tiny.trace(ROWS, ["resid_post"], layers=[1])["resid_post", 1].values[:, 1:]
    np.testing.assert_allclose(direction.vector, trace[:4].mean((0, 1)) - trace[4:].mean((0, 1)), atol=1e-5)
    assert -1 <= direction.about["split_half"] <= 1 and direction.about["tokens"] == [40, 40]
    steered = tiny.trace(ROWS, ["resid_post"], layers=[1], edits=direction.edits(-2.5))["resid_post", 1].values[:, 1:]
    np.testing.assert_allclose(steered - trace, np.broadcast_to(-2.5 * direction.vector, trace.shape), atol=1e-4)
    double = direction.control(np.random.default_rng(0))
    assert double.norm == pytest.approx(direction.norm, rel=1e-5) and abs(double.vector @ direction.vector) < 0.6 * direction.norm**2
    texts = [t[:5].tolist() for t in ROWS[:2]] + [ROWS[2].tolist()]
    unequal = gs.steering.difference(tiny, texts, B, layer=1)
    parts = np.concatenate([tiny.trace([t], ["resid_post"], layers=[1])["resid_post", 1].values[0, 1:] for t in texts])
    np.testing.assert_allclose(unequal.vector, parts.mean(0) - trace[4:].mean((0, 1)), atol=1e-4, err_msg="padding counts for nothing")


def test_experts_of_a_contrast(tiny, contrast):
    steer = gs.steering.experts(contrast, top=2)
    value = contrast["value"]
    of = [float(value.sel(layer=at, expert=e)) for at, e in zip(steer.layers, steer.numbers, strict=True)]
    assert steer.weights == (1, 1, -1, -1) and of[0] == float(value.max()) and of[2] == float(value.min()) and of[0] >= of[1] > of[3]
    one = gs.steering.experts(contrast, top=1, both=False)
    (layer,), (e,) = one.layers, one.numbers
    plain = tiny.trace(ROWS, ["router.*"])
    steered = tiny.trace(ROWS, ["router.*"], edits=one.edits(50.0))
    assert (steered["router.experts", layer].values == e).any(-1).all(), "pushed so hard it is always chosen"
    away = tiny.trace(ROWS, ["router.*"], edits=one.edits(-50.0))
    assert not (away["router.experts", layer].values == e).any() and (plain["router.experts", layer].values == e).any()
    doubles = [steer.control(np.random.default_rng(n)) for n in range(20)]
    for double in doubles:
        assert double.layers == steer.layers and double.weights == steer.weights
        assert len(set(zip(double.layers, double.numbers, strict=True))) == 4
        own = set(zip(steer.layers, steer.numbers, strict=True))
        assert not own & set(zip(double.layers, double.numbers, strict=True))
    apart = [abs(steer.load[d.layers[0], d.numbers[0]] - steer.load[steer.layers[0], steer.numbers[0]]) for d in doubles]
    others = sorted(abs(v - steer.load[steer.layers[0], steer.numbers[0]]) for v in steer.load[steer.layers[0]])
    assert max(apart) <= others[-1] and len({d.numbers for d in doubles}) > 1


@pytest.mark.parametrize("which", ["tiny", "granitemoe/hub"])
def test_dose_and_response(which, tiny):
    """What `dose` says is what `effect` says of the same edits; nothing at strength 0; more at more."""
    m = tiny if which == "tiny" else family(which)
    layer = m.config.moe_layers[-1]
    steer = gs.steering.difference(m, A, B, layer=layer)
    out = gs.steering.dose(m, steer, A, B, [0.0, 0.5, 3.0], draws=2)
    assert dict(out["value"].sizes) == {"strength": 3, "texts": 2} and out.attrs["null"] == "random"
    np.testing.assert_allclose(out["value"].sel(strength=0), 0, atol=1e-6)
    alone = gs.experiments.effect(m, B, steer.edits(3.0))
    assert float(out["value"].sel(strength=3, texts="other")) == pytest.approx(float(alone["value"]), abs=1e-6)
    assert float(out["ci_low"].sel(strength=3, texts="other")) == pytest.approx(float(alone["ci_low"]), abs=1e-6)
    assert (out["kl"].diff("strength") > 0).all() and (out["null_kl"].diff("strength") > 0).all() and (out["null_sd"][1:] > 0).all()


def test_experts_have_a_dose_and_are_applied_in_generation(tiny, contrast):
    steer = gs.steering.experts(contrast, top=1)
    out = gs.steering.dose(tiny, steer, A, B, 4.0, draws=2)
    assert out["kl"].min() > 0 and out.attrs["null"] == "random experts of the same load"
    made = tiny.generate(ROWS[:1], 4, edits=steer.edits(50.0), capture=["router.*"])
    assert (made.trace["router.experts", steer.layers[0]].values == steer.numbers[0]).any(-1).all()


def test_json_there_and_back(direction, contrast, tmp_path):
    steer = gs.steering.experts(contrast, top=2)
    for n, one in enumerate((direction, steer)):
        gs.steering.save(one, tmp_path / f"{n}.json")
        back = gs.steering.load(tmp_path / f"{n}.json")
        assert repr(back) == repr(one) and back.about == one.about and repr(back.edits(2.0)) == repr(one.edits(2.0))
        with pytest.raises(FileExistsError):
            gs.steering.save(one, tmp_path / f"{n}.json")
    np.testing.assert_array_equal(gs.steering.load(tmp_path / "0.json").vector, direction.vector)
    bad = gs.steering.Direction("resid_post", 1, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="wanted finite numbers"):
        gs.steering.save(bad, tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()


D = {"format": "grokscope.steering/1", "kind": "direction", "site": "resid_post", "layer": 1, "vector": [0.5, 1]}
E = {"format": "grokscope.steering/1", "kind": "experts", "layers": [1], "numbers": [2], "weights": [1], "of_layers": [0, 1], "load": [[0.1] * 3] * 2}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (D | {"format": "other"}, "wanted grokscope.steering/1"),
        ([1], "wanted grokscope.steering/1"),
        (D | {"kind": "function"}, "of a direction or of experts"),
        (D | {"vector": [1, "2"]}, "finite numbers"),
        (D | {"vector": [1, True]}, "finite numbers"),
        (D | {"vector": [1e31]}, "finite numbers"),
        (D | {"vector": []}, "finite numbers"),
        (D | {"site": "attn.pattern"}, "a site of width d_model"),
        (D | {"layer": -1}, "and its layer"),
        (D | {"layer": None}, "and its layer"),
        (E | {"layers": [5]}, "and its layer's load"),
        (E | {"numbers": [3]}, "and its layer's load"),
        (E | {"weights": [1, 2]}, "layer, number and weight"),
        (E | {"load": [[0.1], [0.1, 0.2]]}, "load as a list of numbers for each layer"),
        (E | {"load": "x"}, "load as a list"),
        (E | {"numbers": [10**9]}, "numbers as whole numbers"),
        ('{"vector": NaN}', "wanted grokscope.steering"),
        (json.dumps(D).replace("0.5", "NaN"), "finite numbers"),
        (json.dumps(D).replace("0.5", "1" + "0" * 400), "finite numbers"),
        ("{", "wanted JSON"),
    ],
)
def test_a_foreign_file_is_one_clear_line(tmp_path, said, message):
    (tmp_path / "s.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ValueError, match=message) as told:
        gs.steering.load(tmp_path / "s.json")
    assert str(tmp_path) in str(told.value) and "\n" not in str(told.value)


def test_bad_input_is_one_clear_line(tiny, direction, contrast):
    for ask, message in (
        (lambda: gs.steering.difference(tiny, A, B, site="attn.z", layer=1), "batch token d_model"),
        (lambda: gs.steering.difference(tiny, A, B), "layer: wanted one of"),
        (lambda: gs.steering.difference(tiny, A, B, layer=9), "layer: wanted one of"),
        (lambda: gs.steering.difference(tiny, A, B, site="final", layer=1), "leave it out"),
        (lambda: gs.steering.difference(tiny, A[:, :1], B, layer=1), "two tokens or more"),
        (lambda: gs.steering.experts(A), r"wanted gs.routing.contrast"),
        (lambda: gs.steering.experts(contrast, by="share"), "with share"),
        (lambda: gs.steering.experts(contrast, top=99), "top: wanted 1 to 7"),
        (lambda: direction.edits("much"), "finite number"),
        (lambda: direction.edits(float("inf")), "finite number"),
        (lambda: gs.steering.dose(tiny, direction.vector, A, B), "wanted a Direction or Experts"),
        (lambda: gs.steering.dose(tiny, direction, A, B, []), "each once"),
        (lambda: gs.steering.dose(tiny, direction, A, B, [1, 1.0]), "each once"),
        (lambda: gs.steering.dose(tiny, direction, A, B, draws=1), "2 or more"),
        (lambda: gs.steering.dose(family("granitemoe/hub"), direction, A, B), "value: wanted"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            ask()
