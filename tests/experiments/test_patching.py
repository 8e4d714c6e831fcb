"""Patching against edits made by hand, its laws, its controls and intervals, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.experiments import pairs
from grokscope.experiments.pairs import BothRuns, Pairs
from grokscope.experiments.rows import Row, batches
from tests.checkpoints.families import model as family

E, X = gs.edits, gs.experiments
RNG = np.random.default_rng(7)
CLEAN = RNG.integers(3, 97, (2, 11))
CORRUPT = CLEAN.copy()
CORRUPT[:, 3] += 1
CORRUPT[:, 6] -= 1
METRIC = gs.metrics.logit_difference(5, 8)
ALL = {"all": slice(None)}


def of(trace):
    z = trace["logits"].values.astype(float)
    last = z[np.arange(len(z)), trace.data["length"].values - 1]
    return last[:, 5] - last[:, 8]


def by_hand(model, edits, texts=CORRUPT):
    return of(model.trace(texts, ["logits"], edits=edits))


@pytest.fixture(scope="module")
def clean(tiny):
    return tiny.trace(CLEAN, ["resid_pre", "attn.pattern", "router.experts", "expert.out"])


def test_streams_equal_edits_by_hand_and_what_comes_before_a_difference_is_exactly_nothing(tiny, clean):
    found = X.patch(tiny, CLEAN, CORRUPT, "resid_pre", METRIC)
    assert found["value"].dims == ("layer", "token")
    np.testing.assert_allclose(found.metric_into, by_hand(tiny, []), atol=1e-6)
    np.testing.assert_allclose(found.metric_other, by_hand(tiny, [], CLEAN), atol=1e-6)
    for layer, token in ((0, 3), (1, 6), (2, 10), (1, 4)):
        edits = [E.Replace("resid_pre", clean, layer, tokens=token)]
        np.testing.assert_allclose(found.metric.sel(layer=layer, token=token), by_hand(tiny, edits), atol=2e-6)
    assert not found.effect.sel(token=slice(0, 2)).any(), "the texts begin alike"
    assert not found.effect.sel(layer=0, token=[4, 5, 7, 8, 9, 10]).any(), "the same token at layer 0 is the same stream"
    gap = found.metric_other - found.metric_into
    share = (found.metric - found.metric_into).sum("pair") / gap.sum()
    np.testing.assert_allclose(found.value, share, atol=1e-12)
    np.testing.assert_allclose(found.effect, (found.metric - found.metric_into).mean("pair"), atol=1e-12)


@pytest.mark.parametrize("site, unit, edit", [
    ("attn.pattern", "heads", lambda t, n, p, u: E.Replace("attn.pattern", t, n, tokens=p, heads=u)),
    ("expert.out", "experts", lambda t, n, p, u: E.ReplaceExpert(u, t, n, tokens=p)),
])  # fmt: skip
def test_heads_slots_and_experts_equal_edits_by_hand(tiny, clean, site, unit, edit):
    found = X.patch(tiny, CLEAN, CORRUPT, site, METRIC, tokens=[6, 10], draws=2, **{unit: [0, 1]})
    dim = unit.removesuffix("s")
    assert found["value"].dims == ("layer", dim, "token")
    for layer, token, one in ((0, 6, 1), (2, 10, 0), (1, 10, 1)):
        wanted = by_hand(tiny, [edit(clean, layer, token, one)])
        np.testing.assert_allclose(found.metric.sel(layer=layer, token=token, **{dim: one}), wanted, atol=2e-6)
    assert np.isfinite(found.null_mean).any()


def test_the_routing_is_free_frozen_or_all_there_is(tiny, clean):
    plain = tiny.trace(CORRUPT, ["router.experts"])
    found = X.patch(
        tiny, CLEAN, CORRUPT, "resid_pre", METRIC, ("free", "frozen", "only"), tokens={"six": 6, **ALL}, layers=[0, 1], draws=0
    )
    stream = E.Replace("resid_pre", clean, 1, tokens=6)
    frozen = by_hand(tiny, [E.Replay(plain["router.experts"], layers=[1, 2]), stream])
    only = by_hand(tiny, [E.Replay(clean["router.experts"], layers=[1, 2], tokens=6)])
    np.testing.assert_allclose(found.metric.sel(routing="frozen", layer=1, token="six"), frozen, atol=2e-6)
    np.testing.assert_allclose(found.metric.sel(routing="only", layer=1, token="six"), only, atol=2e-6)
    total, content, path = (found.value.sel(routing=r) for r in ("free", "frozen", "only"))
    np.testing.assert_allclose(total, content + path + found.interaction, atol=1e-12)
    np.testing.assert_allclose(total.sel(token="all"), 1, atol=1e-5)
    assert abs(content.sel(token="all") - 1).max() > 1e-2, "without its routes the other run is another"
    whole = by_hand(tiny, [E.Replay(plain["router.experts"])], CLEAN)
    np.testing.assert_allclose(found.metric.sel(routing="frozen", layer=0, token="all"), whole, atol=2e-6)


def test_sites_outside_the_layers_are_the_streams_beside_them(tiny):
    other = tiny.trace(CLEAN, ["embed", "final", "logits"])
    for site, token in (("embed", 3), ("final", -1), ("logits", -1)):
        found = X.patch(tiny, CLEAN, CORRUPT, site, METRIC, tokens=[3, -1], draws=0)
        assert found.layer.values.tolist() == [site] and found.attrs["site"] == site
        at = found.sel(layer=site, token=token)
        np.testing.assert_allclose(at.metric, by_hand(tiny, [E.Replace(site, other, tokens=token)]), atol=2e-6)
        assert abs(at.effect) > 1e-3
        if site != "embed":
            assert not found.effect.sel(token=3).any(), "another token's is not read"
    found = X.attribution_patch(tiny, CLEAN, CORRUPT, "embed", METRIC, tokens=[3, 6])
    assert found.attrs["site"] == "embed" and found.exact.shape == (1, 2)


def test_clean_into_clean_is_nothing_and_says_that_the_share_is_undefined(tiny):
    with pytest.warns(UserWarning, match="the share is undefined"):
        found = X.patch(tiny, CLEAN, CLEAN, "resid_pre", METRIC, tokens=ALL, draws=0)
    assert not found.effect.any() and np.isnan(found.value).all()
    assert found.attrs["layer_tokens"] == 2 * 2 * 16 * 3, "nothing was run but the two runs"


def test_into_clean_goes_the_other_way_and_sets_go_together(tiny):
    found = X.patch(tiny, CLEAN, CORRUPT, "resid_post", METRIC, into="clean", layers=[(0, 2), 2], tokens=[-1, (3, 6), slice(3, None)])
    assert found.token.values.tolist() == ["-1", "3+6", "3:"] and found.layer.values.tolist() == ["0+2", "2"]
    np.testing.assert_allclose(found.metric_into, by_hand(tiny, [], CLEAN), atol=1e-6)
    np.testing.assert_allclose(found.value.sel(token="3:"), 1, atol=1e-5)
    other = tiny.trace(CORRUPT, ["resid_post"])
    wanted = by_hand(tiny, [E.Replace("resid_post", other, [0, 2], tokens=[3, 6])], CLEAN)
    np.testing.assert_allclose(found.metric.sel(layer="0+2", token="3+6"), wanted, atol=2e-6)


def test_controls_are_other_places_and_intervals_are_over_pairs(tiny):
    clean, corrupt = ([row[:n].tolist() for row, n in zip(x, (11, 9), strict=True)] for x in (CLEAN, CORRUPT))
    found = X.patch(tiny, clean, corrupt, "resid_pre", METRIC, layers=[1], draws=300)
    assert np.isnan(found.metric.sel(token=10).values[1]).all(), "a text that has no such token does not count"
    np.testing.assert_array_equal(found.differs.sum("position"), 2)
    alone = found.sel(token=[9, 10])
    assert np.isnan([alone.ci_low, alone.ci_high]).all() and np.isfinite(alone.value).all(), "one pair has no interval"
    effect = (found.metric - found.metric_into).values[:, 0]
    gap = (found.metric_other - found.metric_into).values
    without = effect[::-1, 6] / gap[::-1]
    half = 12.706204736 * np.sqrt(((without - without.mean()) ** 2).sum() / 2)
    np.testing.assert_allclose(found.ci_high[0, 6] - found.value[0, 6], half, rtol=1e-9)
    # One token among the text's: the control is the mean of the others, which the map has, to what 300 draws tell.
    others = [np.delete(row[np.isfinite(row)], 6) for row in effect]
    wanted = sum(o.mean() for o in others) / gap.sum()
    error = np.sqrt(sum(o.var() for o in others) / 300) / abs(gap.sum())
    assert abs(found.null_mean[0, 6] - wanted) < 4 * error
    ends = CLEAN.copy()
    ends[:, 10] += 1
    sure = X.patch(tiny, CLEAN, ends, "resid_pre", METRIC, layers=[1], tokens=[10, 9], draws=2)
    np.testing.assert_allclose(sure.value[0], [1, 0], atol=1e-6)
    assert sure.null_sd[0, 0] == 0 and sure.p[0, 0] == pytest.approx(1 / 3), "two draws say no more"


def test_what_the_metric_appended_is_no_control(tiny):
    metric = gs.metrics.logprob((5, 8, 11, 23))
    sweep = {}

    def seen(self, cell, pair, tokens, draw):
        row = real(self, cell, pair, tokens, draw)
        sweep.setdefault("rows", []).append(row)
        return row

    from grokscope.experiments.sweeping import Sweep

    real = Sweep.control
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Sweep, "control", seen)
        X.patch(tiny, CLEAN[:1], CORRUPT[:1], "expert.out", metric, layers=[1], experts=slice(None), draws=8)
    rows = [r for r in sweep["rows"] if r]
    assert rows and all(not np.asarray(mask)[11:].any() for r in rows for mask in r.masks.values())


def test_gaps_that_cancel_are_said(tiny):
    with pytest.warns(UserWarning, match="differs one way, got gaps that add up to"):
        X.patch(tiny, [CLEAN[0], CORRUPT[0]], [CORRUPT[0], CLEAN[0]], "resid_pre", METRIC, layers=[1], tokens=[-1], draws=0)


def test_of_all_tokens_the_control_is_another_head(tiny):
    heads = X.patch(tiny, CLEAN, CORRUPT, "attn.pattern", METRIC, heads=slice(None), tokens=ALL, layers=[1], draws=2)
    assert np.isfinite(heads.null_mean).all() and heads.null_sd.values.any()


def test_half_the_work_of_whole_runs_whatever_the_texts(tiny):
    """The map of 40 tokens and 8 layers, were nothing equal: layers before and tokens before are not run."""
    pairs = Pairs(tiny, [[3] * 40], [[4] * 40], METRIC, "corrupt", "patch")
    runs = object.__new__(BothRuns)
    runs.pairs = pairs
    rows = [Row(0, layer, token) for layer in range(8) for token in range(40)]
    work = sum(b.size * b.width * (8 - b.level) for b in batches(runs, rows))
    assert work <= 0.5 * len(rows) * 8 * 40
    assert sorted(id(r) for b in batches(runs, rows) for r in b.rows) == sorted(map(id, rows))
    for batch in batches(runs, rows):
        assert all(batch.window.start <= r.first for r in batch.rows) and batch.window.stop >= 40


@pytest.mark.parametrize("name", ["granitemoe", "deepseek_v2"])
def test_other_families(name):
    """A patch by hand, also where attention remembers narrow vectors; a derivative against differences of patches by hand."""
    model = family(f"{name}/hub")
    layer, both = model.config.num_layers - 1, [[5, 9, 3, 17, 77, 8, 12, 4, 30], [5, 9, 3, 18, 77, 8, 12, 4, 30]]
    seen = ["resid_pre", "logits"]
    stream = model.trace(both, seen)["resid_pre"].sel(layer=layer).values
    found = X.patch(model, both[:1], both[1:], "resid_pre", METRIC, layers=[layer], tokens=[3, 8], draws=0)

    def put(value):
        return of(model.trace(both, seen, edits=[E.Replace("resid_pre", value, layer, tokens=8)]))[1]

    np.testing.assert_allclose(found.metric.sel(layer=layer, token=8)[0], put(stream[0]), atol=2e-6)
    if name == "deepseek_v2":
        return  # to compile its derivative takes as long as all of this
    slope = model.gradients(both, of=METRIC, at="resid_pre")["resid_pre"].sel(layer=layer).values[1]
    way = np.zeros_like(slope)
    way[8] = np.random.default_rng(5).standard_normal(slope.shape[1]) * 0.1
    wanted = (put(stream[1] + 1e-2 * way) - put(stream[1] - 1e-2 * way)) / 2e-2
    np.testing.assert_allclose((slope * way).sum(), wanted, rtol=2e-2, atol=1e-3)


def test_the_embedded_model_says_its_words(pocket):
    metric = gs.metrics.logit_difference(" Paris", "London")
    clean, corrupt = ("The capital of France is Paris. The capital of France is", "The capital of France is London. The capital of France is")
    found = X.patch(pocket, clean, corrupt, "resid_pre", metric, layers=[6], draws=2)
    assert found.attrs["metric"] == "logit_difference(' Paris', 'London')" and found.metric_other > found.metric_into
    assert "▁London ← ▁Paris" in found.piece.values
    assert gs.plots.heatmap(found, "value").data and gs.plots.heatmap(found).data


def test_metrics_are_what_they_say(tiny):
    logits = tiny.trace(CLEAN, ["logits"])["logits"].values.astype(float)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def measured(metric, clean=CLEAN, corrupt=CORRUPT):
        return X.patch(tiny, clean, corrupt, "resid_post", metric, layers=[2], tokens=[10 if np.ndim(clean) > 1 else 9], draws=0)

    last = logits[:, -1]
    np.testing.assert_allclose(measured(gs.metrics.logit_difference([5, 6], 7)).metric_other, last[[0, 1], [5, 6]] - last[:, 7], atol=1e-5)
    np.testing.assert_allclose(measured(lambda z: z.max(-1)).metric_other, last.max(-1), atol=1e-5)
    np.testing.assert_allclose(measured(gs.metrics.kl()).metric_other, 0, atol=1e-6)
    at = tiny.trace(CLEAN, ["logits"])
    np.testing.assert_allclose(measured(gs.metrics.kl(at)).metric_into, measured(gs.metrics.kl()).metric_into, atol=1e-6)
    # A text of three tokens that is really there: the last two and the first of what the prompt lacks.
    cut = [row[:8].tolist() for row in CLEAN]
    found = X.patch(
        tiny, cut, [row[:8].tolist() for row in CORRUPT], "resid_post",
        gs.metrics.logprob([tuple(row[8:].tolist()) for row in CLEAN]), layers=[2], tokens=[7], draws=0,
    )  # fmt: skip
    wanted = np.take_along_axis(log_p[:, 7:10], CLEAN[:, 8:11, None], -1)[..., 0].sum(-1)
    np.testing.assert_allclose(found.metric_other, wanted, atol=1e-5)


def test_what_cannot_be_asked_says_so_in_one_line(tiny, pocket):
    def patch(clean=CLEAN, corrupt=CORRUPT, site="resid_pre", metric=METRIC, model=tiny, **more):
        return X.patch(model, clean, corrupt, site, metric, **more)

    for call, says in (
        (lambda: patch(corrupt=CORRUPT[:, :10]), "pair 0: wanted prompts of equal length, got 11 and 10"),
        (lambda: patch(clean=[], corrupt=[]), "wanted a prompt or several, got none"),
        (lambda: patch(corrupt=CORRUPT[0]), "as many corrupt prompts as clean ones, got 2 and 1"),
        (lambda: patch(metric=lambda z: z), "wanted one number for each of 2 texts"),
        (lambda: patch(metric=lambda z: z[:, 0] * np.nan), "wanted finite numbers"),
        (lambda: patch(metric=gs.metrics.logit_difference([5], 8)), "a token for each of 2 texts, got 1"),
        (lambda: patch(metric=gs.metrics.logit_difference(5, 97)), "id from 0 to 96"),
        (lambda: patch(model=pocket, clean="a", corrupt="b", metric=gs.metrics.logit_difference(" Paris", " Reykjavik")), "one token, got ' Reyk"),
        (lambda: patch(layers=[3]), "layers: wanted some of 0 to 2"),
        (lambda: patch(heads=[0]), r"heads: wanted a site that has them, got resid_pre"),
        (lambda: patch(site="attn.k", heads=[5]), "heads: wanted some of 0 to 1"),
        (lambda: patch(site="router.experts", experts=[0]), "experts: wanted a site that has them"),
        (lambda: patch(site="logits", layers=[2]), "layers: logits lies outside the layers, and has none"),
        (lambda: patch(site="embed", heads=[0]), "heads: embed lies outside"),
        (lambda: patch(site="blocks.2.hook_embed"), "layers: embed lies outside"),
        (lambda: X.attribution_patch(tiny, CLEAN, CORRUPT, "logits", METRIC), "one before the last norm, got logits; patch gives its exact"),
        (lambda: patch(site="shared.out"), "this model has no shared.out"),
        (lambda: patch(site="attn.zz"), "wanted one of grokscope.SITES"),
        (lambda: patch(tokens=[11]), "positions of pair 0, 0 to 10, got 11"),
        (lambda: patch(tokens=[]), "tokens: wanted some, got none"),
        (lambda: patch(routing="fixed"), "free, frozen, only"),
        (lambda: patch(routing=None), "free, frozen, only"),
        (lambda: patch(into="both"), '"corrupt"'),
        (lambda: patch(draws=1), "one has no spread"),
        (lambda: X.attribution_patch(tiny, CLEAN, CORRUPT, "router.experts", METRIC), "no derivative"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    for call, says in (
        (lambda: patch(metric=None), "gs.metrics"),
        (lambda: patch(layer=[1]), "did you mean 'layers'"),
        (lambda: X.patch(CLEAN, CORRUPT, tiny), "wanted a Model"),
    ):
        with pytest.raises(TypeError, match=says):
            call()


def test_what_memory_does_not_hold_is_refused_before_the_run(tiny, monkeypatch):
    """Streams of 4 texts of 16 tokens: 40 numbers at 4 levels; attention remembers 2 x 2 x 14 of each of 3 layers."""
    streams, past = 4 * 16 * 4 * 40 * 4, 4 * 16 * 4 * 56 * 3
    for free, device, refused in (
        (2 * (streams + past), None, None), (2 * (streams + past) - 2, None, "streams of all layers and what attention"),
        (2 * streams, 2 * past, None), (2 * streams, 2 * past - 2, "GB for what attention remembers"), (2 * streams - 2, 2 * past, "GB for the streams"),
        (20, None, "shorter prompts, not one pair"),
    ):  # fmt: skip
        monkeypatch.setattr(pairs, "free_memory", lambda free=free: free)
        monkeypatch.setattr(pairs, "device_memory", lambda device=device: device)
        check = BothRuns.__new__(BothRuns)
        check.pairs = Pairs(tiny, CLEAN, CORRUPT, METRIC, "corrupt", "patch")
        if refused is None:
            check._check_memory((), ("attn.k", "attn.v"))
        else:
            with pytest.raises(MemoryError, match=refused):
                check._check_memory((), ("attn.k", "attn.v"))
