"""Figures: what they draw is what the dataset holds, its null with it; every answer can be drawn; no text is taken for markup."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import grokscope as gs
from grokscope import plots
from grokscope.analysis.measure import answer

TEXTS = ["The quick brown fox jumps over", "def f(x):\n    return x + 1", "Le renard brun saute", "for i in range(10): pass"]
LABELS = ["prose", "code", "prose", "code"]
HOSTILE = ["<script>alert(1)</script>", "$x^2$", "</s>", "a\u202eevil", "%{x}&lt;"]
SHOWN = ["&lt;script&gt;alert(1)&lt;/script&gt;", "&#36;x^2&#36;", "&lt;/s&gt;", "a\\u{202e}evil", "&#37;{x}&amp;lt;"]
LAYERS, EXPERTS, NAMES = 7, 5, 3


def made(dims="LE", null=True, spread=True, interval=True, seed=0, **attrs) -> xr.Dataset:
    """An answer as the analyses give: sizes are different primes."""
    sizes = {"L": ("layer", LAYERS), "E": ("expert", EXPERTS), "N": ("label", NAMES)}
    names, shape = zip(*(sizes[d] for d in dims), strict=True)
    rng = np.random.default_rng(seed)
    value = rng.random(shape)
    coords = {"layer": np.arange(LAYERS) * 2, "expert": np.arange(EXPERTS), "label": HOSTILE[:NAMES]}
    return answer(
        names, value, {n: coords[n] for n in names},
        null_mean=rng.random(shape) if null else None, null_sd=(0.1 + rng.random(shape)) / 4 if null and spread else None,
        ci=(value - 0.25, value + 0.5) if interval else None, attrs=attrs,
    )  # fmt: skip


def by_name(fig, name):
    (found,) = [t for t in fig.data if t.name == name and t.showlegend is not False]
    return found


def closed(xs, ys):
    """The polygons of a filled trace: its points between the gaps."""
    cut = np.flatnonzero(np.isnan(np.asarray(xs, float)))
    pairs = np.stack([np.asarray(xs, float), np.asarray(ys, float)], 1)
    return [p[~np.isnan(p[:, 0])] for p in np.split(pairs, cut) if not np.isnan(p).all()]


# Lines


def test_a_line_its_null_and_its_interval_are_the_datasets():
    data = made("L", unit="bits").assign_attrs(null="shuffled")
    fig = plots.lines(data, name="information")
    line, null = by_name(fig, "information (bits)"), by_name(fig, "null (shuffled) ± 2 sd")
    np.testing.assert_allclose(line.x, data.layer)
    np.testing.assert_allclose(line.y, data.value)
    np.testing.assert_allclose(line.error_y.array, 0.5)
    np.testing.assert_allclose(line.error_y.arrayminus, 0.25)
    (band,) = closed(null.x, null.y)
    low, high = (data.null_mean + s * 2 * data.null_sd for s in (-1, 1))
    np.testing.assert_allclose(band, np.stack([np.r_[data.layer, data.layer[::-1]], np.r_[high, low[::-1]]], 1))
    assert fig.layout.yaxis.title.text == "information (bits)" and fig.layout.xaxis.title.text == "layer"
    assert fig.layout.title.subtitle.text is None


def test_a_null_that_lines_share_is_drawn_once_and_others_each():
    data = made("LE")
    assert sum(t.fill == "toself" for t in plots.lines(data).data) == EXPERTS
    shared = data.assign({n: data[n].isel(expert=0).broadcast_like(data.value) for n in ("null_mean", "null_sd")})
    fig = plots.lines(shared)
    assert sum(t.fill == "toself" for t in fig.data) == 1
    np.testing.assert_allclose(by_name(fig, "expert 3").y, data.value.sel(expert=3))
    same_mean = data.assign(null_mean=data.null_mean * 0 + 0.5)
    assert sum(t.fill == "toself" for t in plots.lines(same_mean).data) == EXPERTS


def test_a_gap_in_the_null_is_a_gap_in_the_band():
    data = made("L")
    data["null_mean"][3] = np.nan
    assert [len(p) for p in closed(*(by_name(plots.lines(data), "null ± 2 sd")[k] for k in "xy"))] == [6, 6]
    for alone in (made("L").isel(layer=[2]), made("LE").isel(layer=[2])):  # one layer's null has a width, so that it is seen
        for null in [t for t in plots.lines(alone).data if t.fill == "toself"]:
            (box,) = closed(null.x, null.y)
            assert box[:, 0].min() < 4 < box[:, 0].max()
    assert plots.lines(data.assign(null_mean=data.null_mean * np.nan)).data


def test_what_is_lacking_is_said():
    assert "no null" in plots.lines(made("L", null=False)).layout.title.subtitle.text
    assert "no interval" in plots.lines(made("L", interval=False)).layout.title.subtitle.text
    data = made("L")
    data["value"][2] = np.inf
    fig = plots.lines(data)
    assert "1 not finite" in fig.layout.title.subtitle.text and "Infinity" not in fig.to_json()
    fig = plots.lines(made("L", spread=False))
    assert by_name(fig, "null").line.dash == "dot"


def test_other_variables_have_their_own_null_or_none():
    data = made("L").assign(cv=("layer", np.arange(LAYERS) / 3), kl=("layer", np.ones(LAYERS)), null_kl=("layer", np.zeros(LAYERS)))
    data = data.assign(d_nll=data.value)
    assert len(plots.lines(data, "cv").data) == 1
    np.testing.assert_allclose(by_name(plots.lines(data, "kl"), "null").y[:LAYERS], 0)
    assert len(plots.lines(data, "d_nll").data) == len(plots.lines(data).data) == 3  # value by another name
    np.testing.assert_allclose(plots.lines(data, "z").data[0].y[:LAYERS], 2)
    excess = plots.lines(data, "excess")
    np.testing.assert_allclose(by_name(excess, "value − null").y, data.value - data.null_mean)
    np.testing.assert_allclose(by_name(excess, "value − null").error_y.array, 0.5, atol=1e-12)


# Bars


def test_bars_and_their_null_boxes():
    data = made("LE")
    fig = plots.bars(data, layer=6)
    here = data.sel(layer=6)
    bar, null = by_name(fig, "value"), by_name(fig, "null ± 2 sd")
    np.testing.assert_allclose(bar.y, here.value)
    for n, box in enumerate(closed(null.x, null.y)):
        assert box[:, 0].min() < n < box[:, 0].max() and box[:, 0].max() - box[:, 0].min() < 1
        bounds = float(here.null_mean[n] - 2 * here.null_sd[n]), float(here.null_mean[n] + 2 * here.null_sd[n])
        np.testing.assert_allclose([box[:, 1].min(), box[:, 1].max()], bounds)
    assert n == EXPERTS - 1 and list(fig.layout.xaxis.ticktext) == list("01234")


def test_groups_of_bars_stand_side_by_side_each_on_its_null():
    data = made("NLE")
    fig = plots.bars(data, layer=0)
    groups = [t for t in fig.data if t.type == "bar"]
    assert [t.name for t in groups] == [f"label {s}" for s in SHOWN[:NAMES]]
    edges = sorted((x - t.width / 2, x + t.width / 2) for t in groups for x in t.x)
    assert all(a[1] < b[0] for a, b in pairwise(edges))
    null = by_name(fig, "null ± 2 sd")
    assert len(closed(null.x, null.y)) == NAMES * EXPERTS
    np.testing.assert_allclose(groups[2].y, data.value[2, 0])


# Ranking


def test_a_ranking_holds_what_is_furthest_from_its_null_in_order():
    data = made("NLE")
    data["value"][1, 2, 3] = np.nan
    fig = plots.ranking(data, top=11)
    away = (data.value - data.null_mean).values
    best = sorted(((abs(v), v, i) for i, v in np.ndenumerate(away) if np.isfinite(v)), reverse=True)[:11]
    order = [i for _, _, i in sorted(best, key=lambda b: b[1])]
    points = by_name(fig, "value")
    np.testing.assert_allclose(points.x, [data.value.values[i] for i in order])
    assert list(fig.layout.yaxis.ticktext) == [f"label {SHOWN[a]}, layer {2 * b}, expert {c}" for a, b, c in order]
    null = by_name(fig, "null ± 2 sd")
    middles = [p[:, 0].mean() for p in (b[:4] for b in closed(null.x, null.y))]
    np.testing.assert_allclose(middles, [data.null_mean.values[i] for i in order])
    assert "11 of 105 shown" in fig.layout.title.subtitle.text


# Heatmap


def test_a_heatmap_is_centred_on_its_null_and_dots_lie_within_it():
    data = made("LE")
    fig = plots.heatmap(data, name="share")
    cells, dots = fig.data
    np.testing.assert_allclose(cells.z, data.value - data.null_mean, rtol=1e-5, atol=1e-6)
    assert cells.zmin == -cells.zmax == -float(abs(data.value - data.null_mean).max())
    assert cells.colorbar.title.text == "share − null" and list(cells.y) == [str(2 * n) for n in range(LAYERS)]
    found = gs.routing.adjust(data).p_adjusted
    within = {(str(int(a)), str(b)) for a in data.layer.values for b in range(EXPERTS) if found.sel(layer=a, expert=b) >= 0.05}
    assert "adjusted p" in dots.name
    assert set(zip(dots.y, dots.x, strict=True)) == within and 0 < len(within) < LAYERS * EXPERTS
    np.testing.assert_allclose(cells.customdata[..., 1], data.null_mean, rtol=1e-5)
    even = data.assign(null_mean=data.null_mean * 0 + 0.25)
    cells = plots.heatmap(even, "value").data[0]
    assert (cells.zmin + cells.zmax) / 2 == pytest.approx(0.25)
    assert plots.heatmap(data, "value").data[0].zmin is None


def test_an_experts_pair_with_itself_is_blank_and_infinite_cells_are_at_the_end():
    z = np.arange(25.0).reshape(5, 5)
    z[0, 1] = -np.inf
    pairs = xr.Dataset({"value": (("expert", "expert_other"), z)}, {"expert": range(5), "expert_other": range(5)})
    fig = plots.heatmap(pairs)
    assert np.isnan(np.diag(fig.data[0].z)).all() and np.isnan(fig.data[0].z).sum() == 5 and fig.data[0].z[0, 1] == 2
    assert "1 beyond" in fig.layout.title.subtitle.text and "blank" not in fig.layout.title.subtitle.text


# Flow


def test_flow_draws_the_links_above_the_null_and_no_others():
    experts, rng = 5, np.random.default_rng(3)
    count = rng.integers(1, 9, (3, experts, experts)).astype(float)
    value = count / count.sum(-1, keepdims=True)
    null = np.full(value.shape, 1 / experts)
    z = np.zeros(value.shape)
    wanted = [(0, 1, 4), (1, 4, 0), (2, 0, 2)]
    for link in wanted:
        value[link], z[link] = 0.9, 5
    value[0, 0, 0], z[0, 0, 0] = 0.01, -5
    dims = ("layer", "expert", "expert_next")
    parts = {"value": value, "null_mean": null, "null_sd": null, "z": z, "count": count}
    data = xr.Dataset(
        {k: (dims, v) for k, v in parts.items()},
        {"layer": [4, 6, 8], "expert": range(5), "expert_next": range(5)}, {"null": "product", "distance": 1},
    )  # fmt: skip
    fig = plots.flow(data)
    ends = {
        (round(p[0, 0]), round(p[0, 1]), round(p[-1, 1]))
        for t in fig.data if t.mode == "lines" for p in closed(t.x, t.y)
    }  # fmt: skip
    assert ends == set(wanted)
    assert list(fig.layout.xaxis.ticktext) == ["4", "6", "8", "10"]
    share = next(t for t in fig.data if t.mode != "lines").customdata.reshape(4, experts)
    np.testing.assert_allclose(share[:3], count.sum(2) / count.sum((1, 2))[:, None], rtol=1e-5)
    np.testing.assert_allclose(share[3], count[2].sum(0) / count[2].sum(), rtol=1e-5)
    assert fig.layout.title.subtitle.text == "3 of 75 links have z &gt; 3 against the null (product)"
    assert sum(t.mode == "lines" for t in plots.flow(data, z=9).data) == 0
    assert len([p for t in plots.flow(data, top=2).data if t.mode == "lines" for p in closed(t.x, t.y)]) == 2


def test_columns_of_uneven_layers_beyond_the_last_have_no_invented_number():
    count = np.ones((2, 3, 3))
    parts = dict.fromkeys(("value", "null_mean", "z", "count"), (("layer", "expert", "expert_next"), count))
    fig = plots.flow(xr.Dataset(parts, {"layer": [0, 5], "expert": range(3), "expert_next": range(3)}, {"distance": 2}))
    assert list(fig.layout.xaxis.ticktext) == ["0", "5", "10", "15"]
    data = xr.Dataset({k: (d, np.ones((3, 2, 2))) for k, (d, _) in parts.items()}, {"layer": [0, 5, 6]})
    assert list(plots.flow(data).layout.xaxis.ticktext) == ["0", "5", "6", "later"]


# Every answer of the package


@pytest.fixture(scope="module")
def trace(pocket):
    return pocket.trace(TEXTS, capture=["router.*", "expert.out", "moe.out", "resid_*"])


ARGUMENTS = {
    "cross_lingual_divergence": {"pairs": [(0, 2), (1, 3)]}, "domain_information": {"labels": LABELS},
    "domain_specialization": {"labels": LABELS}, "standing_committee": {"labels": LABELS},
    "vocabulary_specialization": {"min_count": 1},
}  # fmt: skip
OF_WEIGHTS = {"expert_weight_similarity", "router_expert_coupling", "router_geometry"}


@pytest.mark.parametrize("name", sorted(set(gs.routing.__all__) - {"adjust", "contrast", "mismatch"}))
def test_every_answer_can_be_drawn(name, trace, pocket):
    of = pocket if name in OF_WEIGHTS else {1: trace, 2: trace} if name == "router_saturation" else trace
    extra = {"layers": [2, 5]} if name == "expert_weight_similarity" else ARGUMENTS.get(name, {})
    other = [trace] if name == "routing_agreement" else []
    data = getattr(gs.routing, name)(of, *other, **extra)
    variable = "value" if "value" in data else "share"
    assert ("null" in data.attrs) or "null_mean" not in data, "a figure's legend names the null"
    dims = [str(d) for d in data[variable].dims]
    figs = [plots.ranking(data, variable)]
    at = {d: data[d].values[0] if d in data.coords else 0 for d in dims if d not in ("layer", "expert", "expert_other", "expert_next")}
    if "layer" in dims:
        figs.append(plots.lines(data, variable, **{d: 0 for d in dims if d != "layer" and d not in at}, **at))
    if "expert" in dims:
        figs.append(plots.bars(data, variable, **{d: 0 for d in dims if d not in ("expert", *at)} | {"layer": data.layer.values[0]}, **at))
    left = [d for d in dims if d not in at]
    if len(left) > 1:
        layer = {"layer": data.layer.values[1]} if len(left) > 2 else {}
        figs.append(plots.heatmap(data, None if variable == "value" else variable, **layer, **at))
    for fig in figs:
        text = fig.to_json()
        assert len(text) < 60_000 and fig.data
        assert ("null" in text) == ("null_mean" in data or "no null" in text)
    if name == "transitions":
        assert len(plots.flow(data).to_json()) < 60_000


def test_experiments_and_traces_are_drawn(trace, pocket):
    lens = gs.experiments.logit_lens(pocket, TEXTS[:2])
    fig = plots.heatmap(lens, "target_logprob", text="top_piece", rank=0, batch=1, site="resid_post")
    length = int(lens.length[1])
    assert fig.data[0].z.shape == (8, length) and fig.data[0].x[0] == "0 [BOS]"
    assert fig.data[0].text[-1][3] == plots.shown.plain(lens.top_piece.sel(site="resid_post").values[-1, 1, 3, 0])
    probs = plots.heatmap(trace, "router.probs", layer=3, batch=2)
    np.testing.assert_allclose(probs.data[0].z, trace["router.probs", 3].values[2, : len(trace.pieces[2])], rtol=1e-5)
    effect = gs.experiments.effect(pocket, TEXTS[:2], [gs.edits.BanExperts([3], layers=[2])])
    assert len(plots.ranking(effect).data[0].x) == 1


# Text, errors, size, import


def test_text_of_others_is_never_markup():
    data = xr.Dataset(
        {"value": (("label", "token"), np.arange(25.0).reshape(5, 5)), "said": (("label", "token"), np.array([HOSTILE] * 5))},
        {"label": HOSTILE, "piece": ("token", HOSTILE)}, {"unit": HOSTILE[0], "null": HOSTILE[1]},
    ).assign(null_mean=2.0)  # fmt: skip
    figs = [
        plots.heatmap(data, text="said"), plots.lines(data, over="token", name=HOSTILE[0]), plots.bars(data, over="label", token=1),
        plots.ranking(data),
    ]  # fmt: skip
    for fig in figs:
        text = json.dumps(fig.to_dict(), default=lambda a: np.asarray(a).tolist(), ensure_ascii=False)
        text = text.replace("<br>", "").replace("<extra></extra>", "")  # ours, between the values
        assert not set("<>$\u202e") & set(text), text
    assert [t.split(" ", 1)[1] for t in figs[0].data[0].x] == SHOWN and list(figs[0].data[0].text[0]) == SHOWN
    assert list(figs[1].layout.xaxis.ticktext) == [f"{n} {s}" for n, s in enumerate(SHOWN)]


def test_labels_that_look_alike_stay_apart():
    data = xr.Dataset({"value": (("label", "layer"), np.eye(2))}, {"label": ["a\n", "a⏎"], "layer": [0, 1]})
    assert len(set(plots.heatmap(data).data[0].y)) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: plots.lines(7), "wanted a Dataset .* got int; analyse"),
        (lambda d: plots.lines(d, "nonsense", expert=0), "wanted a variable with numbers, got 'nonsense'; choose one of value"),
        (lambda d: plots.lines(d), "wanted at most one dimension beside layer.* got label .3., expert .5.; choose with expert="),
        (lambda d: plots.lines(d, over="k"), "wanted value over k, got label, layer, expert; pass over='label'"),
        (lambda d: plots.lines(d, head=3), "choose along 'head', got a dataset of label, layer, expert; choose"),
        (lambda d: plots.bars(d, layer=3), "wanted layer 3, got .* 0, 2, 4, .*; choose"),
        (lambda d: plots.bars(d, layer=slice(90, 99)), "wanted at least one layer, got none; choose"),
        (lambda d: plots.bars(d, layer=[0, 2]), "got label .3., layer .2.; choose"),
        (lambda d: plots.heatmap(d), "wanted two dimensions .*got label .3., layer .7., expert .5.; choose with label="),
        (lambda d: plots.heatmap(d, layer=0, label="$x^2$"), "got expert .5.; see"),
        (lambda d: plots.heatmap(d, layer=0, text="no"), "text: wanted a variable over label, expert, got no 'no'; choose"),
        (lambda d: plots.heatmap(d.expand_dims(x=60000), layer=0, expert=0), "wanted at most 150000 cells, got x .60000."),
        (lambda d: plots.ranking(d, top=0), "wanted 1 or more entries, got 0; leave"),
        (lambda d: plots.ranking(d * np.nan), "wanted at least one finite value, got none; measure"),
        (lambda d: plots.flow(d), "wanted the answer of routing.transitions, got values over label, layer, expert; see"),
        (lambda d: plots.flow("x"), "wanted the answer of routing.transitions, got str; see"),
    ],
)
def test_errors_say_what_was_wanted_what_came_and_what_to_do(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as error:
        call(made("NLE"))
    assert "\n" not in str(error.value)


def test_large_figures_stay_small():
    e = np.arange(128)
    dims = ("layer", "expert", "expert_next")
    count = np.random.default_rng(0).poisson(3.0, (8, 128, 128)).astype(float)
    parts = {"value": count / 400, "null_mean": count * 0 + 1 / 128, "null_sd": count * 0 + 0.001, "count": count}
    data = xr.Dataset({k: (dims, v) for k, v in parts.items()}, {"layer": range(8), "expert": e, "expert_next": e})
    data["z"] = (data.value - data.null_mean) / data.null_sd
    assert len(plots.heatmap(data, layer=3).to_json()) < 700_000
    assert len(plots.flow(data, top=400).to_json()) < 150_000


def test_plotly_is_imported_when_it_is_used():
    code = "import sys, grokscope as gs; gs.routing; assert 'plotly' not in sys.modules; gs.plots.lines; assert 'plotly' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_attention_has_pieces_on_both_sides_and_nothing_where_a_token_cannot_read(pocket):
    trace = pocket.trace(["The moon is bright.", "The sun"], capture=["attn.pattern"])
    n = len(trace.pieces[1])
    fig = plots.heatmap(trace, "attn.pattern", layer=3, head=2, batch=1)
    drawn = fig.data[0]
    wanted = [f"{t} {gs.visible(p)}" for t, p in enumerate(trace.pieces[1])]
    assert [html.unescape(y) for y in drawn.y] == [html.unescape(x) for x in drawn.x] == wanted
    pattern = trace["attn.pattern", 3].isel(batch=1).sel(head=2).transpose("token", "source").values[:n, :n] if "head" in trace.data.coords else trace["attn.pattern", 3].isel(batch=1, head=2).transpose("token", "source").values[:n, :n]
    np.testing.assert_allclose(np.tril(np.nan_to_num(drawn.z)), np.tril(pattern), rtol=1e-5)
    assert np.isnan(drawn.z)[np.triu_indices(n, 1)].all() and not np.isnan(drawn.z)[np.tril_indices(n)].any()
    assert "blank" not in fig.layout.title.text if fig.layout.title.text else True


def test_axes_say_what_they_measure(pocket):
    trace = pocket.trace(["The moon is bright.", "The sun is dark."])
    load = plots.bars(gs.routing.expert_load(trace), layer=3)
    assert load.layout.yaxis.title.text == "load of the expert (share of tokens)"
    assert plots.lines(gs.routing.routing_entropy(trace)).layout.yaxis.title.text == "entropy of the router (bits)"
    assert plots.heatmap(gs.routing.expert_load(trace)).data[0].colorbar.title.text == "load of the expert − null (share of tokens)"
    assert plots.bars(gs.routing.expert_load(trace), "share", layer=3).layout.yaxis.title.text == "share"
