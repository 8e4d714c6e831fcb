"""The columns of the exported tables, as data: what a file holds, what the page about it says, what reading it gives.

`python -m grokscope.tables.schema > notebooks/tables.md` writes the page. A name means the same in every table.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA = 2
"""Goes up when a column changes its meaning, its type or its name, not when one is added."""
PART_ROWS = 5_000_000
"""A Parquet table of more rows is a folder of files of so many."""


@dataclass(frozen=True)
class Column:
    """One column. type: a name of pyarrow's, or "logits", a list of E float32 (Parquet only)."""

    name: str
    type: str
    meaning: str
    unit: str = ""
    null: str = ""
    """When it is empty; never, where nothing is said."""


@dataclass(frozen=True)
class Table:
    """One table. key: the columns that name a row, after run_id; written: from what, and when."""

    row: str
    key: tuple[str, ...]
    written: str
    columns: tuple[Column, ...]


C = Column
_UNKNOWN = "not recorded"
RUN = C("run_id", "string", "16 hexadecimal digits that follow from what was recorded: the same x, the same run_id")
PROMPT = C("prompt", "int32", "number of the text in the batch, from 0")
POSITION = C("position", "int32", "the token's place in its text, from 0")
TOKEN_ID = C("token_id", "int32", "the token, exactly", null=_UNKNOWN)
TOKEN = C("token", "string", "the token as a reader sees it (`gs.visible`); not lossless", null=_UNKNOWN)
LAYER = C("layer", "int16", "the layer's number in the model")
EXPERT = C("expert", "int16", "the expert's number, from 0; it means nothing in another layer")
OTHER = C("expert_other", "int16", "the other expert of the pair")
SLOT = C("slot", "int8", "place among the token's choices: 0 has the largest gate; without gates, as recorded")
PROBABILITY = C("probability", "float", "the router's for this expert, as recorded", null=_UNKNOWN)
LOGIT = C("logit", "float", "the router's for this expert, capped where the rule caps", "logits", _UNKNOWN)
STRATUM = C("stratum", "string", "the label of the documents; empty text where they have none")
CLASS = C("class", "string", "the class of the tokens; empty text for those without one", null="counters without classes=")
TOKENS = C("n_tokens", "int64", "tokens routed: those with an expert at any layer", "tokens")
COUNT = C("count", "int64", "how often")
_SCORES = "without router logits or probabilities"
_WRITTEN = "counters without contributions=True"
_TRACE, _FULL, _BOTH = "a trace or recording", "a trace or recording, with full=True", "anything"
_COUNTED = "counters; a trace or recording with full=True"

TABLES: dict[str, Table] = {
    "runs": Table("one run, from which all the other tables come",
        (), _BOTH, (
        RUN,
        C("schema", "int16", "version of this page"),
        C("model", "string", "its name or path", null=_UNKNOWN),
        C("tokenizer", "string", "its hash", null=_UNKNOWN),
        C("router", "string", "the rule from logits to gates, as JSON; null in it is what nobody said"),
        C("layers", "string", "the layers' numbers, as JSON"),
        C("num_experts", "int16", "E, experts in a layer"),
        C("top_k", "int16", "k, slots of a token"),
        C("edits", "string", "interventions in force, as JSON"),
        C("dtype", "string", "of the arithmetic", null=_UNKNOWN),
        C("backend", "string", "where it ran", null=_UNKNOWN),
        C("n_documents", "int64", "texts", "texts"),
        C("n_tokens", "int64", "tokens routed, over all texts", "tokens"),
        C("provenance", "string", "all that is known, as JSON: what run.json says"),
    )),
    "tokens": Table("one token of a text; padding is left out",
        ("prompt", "position"), _TRACE, (
        RUN, PROMPT, POSITION, TOKEN_ID, TOKEN,
        C("logprob", "float", "of this token, given those before it", "nats", "the first token; a trace without logits"),
        C("predicted_id", "int32", "the likeliest next token after this one", null="a trace without logits"),
    )),
    "routing": Table("one chosen expert of a token at a layer",
        ("prompt", "position", "layer", "slot"), _TRACE, (
        RUN, PROMPT, POSITION, TOKEN_ID, TOKEN, LAYER, SLOT, EXPERT,
        C("gate", "float", "the weight that its output really got", null=_UNKNOWN),
        PROBABILITY, LOGIT,
        C("margin", "float", "its logit less the best unchosen one: how far this choice is from another; negative where forced",
          "logits", "no logits or probabilities (which give it too); nothing unchosen; the best unchosen one banned"),
    )),
    "runner_ups": Table("one expert that was nearly chosen: the best k of the others",
        ("prompt", "position", "layer", "place"), _FULL, (
        RUN, PROMPT, POSITION, LAYER,
        C("place", "int8", "0 is the best of those not chosen"), EXPERT, PROBABILITY, LOGIT,
        C("shortfall", "float", "the worst chosen logit less this one", "logits", "an empty choice"),
    )),
    "routing_layer": Table("one token at one layer",
        ("prompt", "position", "layer"), _FULL, (
        RUN, PROMPT, POSITION, LAYER,
        C("entropy", "float", "of the router's probabilities, divided by their sum where that is not 1", "bits", _SCORES),
        C("top1_gap", "float", "the best probability less the second", null=_SCORES),
        C("sel_margin", "float", "the worst chosen logit less the best unchosen: how near the choice is to another", "logits",
          f"{_SCORES}; nothing chosen or unchosen; the best unchosen one banned"),
        C("topk_mass", "float", "probability of the chosen experts together", null=_SCORES),
        C("gate_sum", "double", "the gates together", null=_UNKNOWN),
        C("logsumexp", "float", "of the logits", "nats", "without router logits"),
        C("logits", "logits", "all E logits; Parquet only, up to 16 experts", "logits", "without router logits"),
    )),
    "expert_stats": Table("one expert of a layer",
        ("stratum", "class", "layer", "expert"), _BOTH, (
        RUN, STRATUM, CLASS, LAYER, EXPERT, TOKENS,
        C("count", "int64", "tokens that chose it"),
        C("share", "float", "count over the layer's slots in use; all experts' add up to 1"),
        C("count_first", "int64", "tokens whose first choice it was", null=_UNKNOWN),
        C("share_first", "float", "count_first over the layer's first choices", null=_UNKNOWN),
        C("gate_sum", "double", "gates over its visits", null=_UNKNOWN),
        C("gate_squared_sum", "double", "squares of the gates", null=_UNKNOWN),
        C("gate_mean", "float", "gate_sum over count", null=f"{_UNKNOWN}; never chosen"),
        C("probability_sum", "double", "over all tokens, also those that chose others", null=_SCORES),
        C("probability_mean", "float", "probability_sum over n_tokens", null=_SCORES),
        C("y_norm_sum", "double", "length of what it wrote before its gate, over its visits", null=_WRITTEN),
        C("gy_norm_sum", "double", "the same after the gate", null=_WRITTEN),
        C("y_absmax", "double", "the largest |number| that it wrote before its gate", null=_WRITTEN),
    )),
    "layer_stats": Table("one layer",
        ("stratum", "class", "layer"), _BOTH, (
        RUN, STRATUM, CLASS, LAYER, C("n_documents", "int64", "texts", "texts"), TOKENS,
        C("entropy_sum", "double", "routing_layer.entropy over tokens", "bits", _SCORES),
        C("entropy_squared_sum", "double", "its square", "bits²", _SCORES),
        C("sel_margin_sum", "double", "routing_layer.sel_margin over tokens; 0 where that is empty", "logits", _SCORES),
        C("sel_margin_squared_sum", "double", "its square", "logits²", _SCORES),
        C("top1_gap_sum", "double", "routing_layer.top1_gap over tokens", null=_SCORES),
        C("topk_mass_sum", "double", "routing_layer.topk_mass over tokens", null=_SCORES),
    )),
    "expert_slots": Table("one expert of a layer in one slot; those never taken are left out",
        ("stratum", "class", "layer", "expert", "slot"), _COUNTED, (
        RUN, STRATUM, CLASS, LAYER, EXPERT, SLOT, COUNT,
        C("gate_sum", "double", "gates over these visits", null=_UNKNOWN),
        C("gate_squared_sum", "double", "squares of the gates", null=_UNKNOWN),
    )),
    "repeats": Table("tokens and those `lag` later in their text, at one layer",
        ("stratum", "class", "layer", "lag"), _COUNTED, (
        RUN, STRATUM, CLASS, LAYER, C("lag", "int32", "how much later", "tokens"), C("pairs", "int64", "such pairs of tokens"),
        C("hit_first", "int64", "pairs with the same first choice"),
        C("hit_any", "int64", "pairs with an expert in common"),
        C("overlap_sum", "int64", "experts in common, over pairs"),
        C("shuffled_first_sum", "double", "hit_first as expected were each text's tokens in random order"),
        C("shuffled_overlap_sum", "double", "overlap_sum as expected in random order"),
    )),
    "layer_hist": Table("one bin of a histogram; empty bins are left out",
        ("stratum", "class", "layer", "metric", "slot", "expert", "bin_low"), _COUNTED, (
        RUN, STRATUM, CLASS, LAYER,
        C("metric", "string", "gate (of a slot), entropy_norm (entropy / log E), sel_margin, or position (of an expert's tokens)"),
        C("slot", "int8", "for gate", null="other metrics"), C("expert", "int16", "for position", null="other metrics"),
        C("bin_low", "double", "values from here on", null="the first bin, below all edges"),
        C("bin_high", "double", "values below this", null="the last bin, from the last edge on"), COUNT,
    )),
    "coactivation": Table("two experts that one token chose; pairs never seen are left out",
        ("stratum", "class", "layer", "expert", "expert_other"), _COUNTED, (
        RUN, STRATUM, CLASS, LAYER, C("expert", "int16", "the lower number of the pair"), C("expert_other", "int16", "the higher"),
        C("count", "int64", "tokens that chose both"),
        C("count_before", "int64", "of these, where expert comes directly before expert_other by rank"),
        C("count_after", "int64", "where it comes directly after"),
    )),
    "transitions": Table("an expert and one of a later layer that the same token chose; pairs never seen are left out",
        ("stratum", "class", "layer", "distance", "choice", "expert", "expert_other"), _COUNTED, (
        RUN, STRATUM, CLASS, LAYER, C("layer_other", "int16", "the later layer"),
        C("distance", "int16", "recorded layers between the two, 1: the next"),
        C("choice", "string", "first: first choices alone; any: all k × k pairs"), EXPERT, OTHER, COUNT,
    )),
    "vocab_expert": Table("a token id and an expert that served it; pairs never seen are left out",
        ("stratum", "class", "layer", "token_id", "expert"), _COUNTED, (
        RUN, STRATUM, CLASS, LAYER, C("token_id", "int32", "the token, exactly"), EXPERT,
        C("count", "int64", "occurrences of this id that chose it"),
        C("count_first", "int64", "as first choice; over all experts: the id's occurrences"),
    )),
    "metrics": Table("one number of an analysis of `grokscope.routing`",
        ("metric", "layer", "expert", "expert_other", "stratum", "class"), _BOTH, (
        RUN,
        C("metric", "string", "the analysis; after a dot, its kind or a further variable of it. Pairs of experts with full=True"),
        LAYER, C("expert", "int16", "the expert", null="of the layer as a whole"),
        C("expert_other", "int16", "the other expert of a pair; for transitions, that of the next layer", null="no pair"),
        C("stratum", "string", "the label that it is about", null="all documents"),
        C("class", "string", "the class of tokens that it is about, in metrics that end in .class", null="all tokens"),
        C("value", "double", "as the analysis defines it", "the analysis's", "nothing to measure, such as an expert never chosen"),
        C("null_kind", "string", "what null_mean supposes", null="no null"),
        C("null_mean", "double", "expected by chance alone", "as value", "no null"),
        C("null_sd", "double", "its spread: documents are the unit, 5 % of chance lies beyond 1.96 of it", "as value",
          "no null, or one without a spread"),
        C("z", "double", "(value - null_mean) / null_sd; infinite beside a null that cannot vary",
          null="no spread; under 5 expected"),
        C("p", "double", "of the null, two-sided, for information one-sided; right also of rare cells",
          null="no null; under 4 shards of documents"),
        C("p_adjusted", "double", "over the cells of the layer, by Benjamini and Hochberg: mark by it", null="as p"),
        C("ci_low", "double", "95 % interval, documents being the unit", "as value",
          "under 4 shards of documents; too few tokens"),
        C("ci_high", "double", "its upper end", "as value", "as ci_low"),
        C("n_eff", "double", "independent observations' worth", null="not defined"),
    )),
}  # fmt: skip
"""Name -> table, in the order of the page."""

TYPES = {c.name: c.type for t in TABLES.values() for c in t.columns}
"""Name of a column -> type, which is the same in every table."""

_NAMES = {"double": "float64", "float": "float32", "string": "text", "logits": "list of E float32"}
_PAGE = f"""# The exported tables

`gs.export(x, "out/", format="csv")`, or `"parquet"`, writes one file for each of these tables, and `run.json`. x: a trace, an
imported recording, or routing counters. This page is made by `python -m grokscope.tables.schema` (schema {SCHEMA}).

- One row is one fact. Whole numbers stay whole; sums are float64 and counts int64, so tables of counts of several runs are
  added by `group by … sum`; shares and means are not. What is not known is empty (null), never 0 or -1.
- `gs.read_tables("out/")` gives all tables as pandas DataFrames with these types, from either format; `gs.read_csv(path)` one.
- `run.json` has the schema's version, the router's rule, where x came from, the rows of each table, and `skipped`: the analyses
  that x lacks the data for, with the reason. Parquet files have the same under `grokscope` in their metadata, and each
  column's meaning and unit with the column.
- CSV is UTF-8 with a byte order mark. Text that a spreadsheet could take for a formula has an apostrophe in front, which
  `gs.read_csv` takes away; `token_id` is exact. A spreadsheet shows 1,048,576 rows and no more.
- Parquet is compressed with zstd: one file a table, but a folder `NAME/part-000.parquet`, ... above {PART_ROWS:,} rows. DuckDB:
  `select * from 'out/routing.parquet'`, or `'out/routing/*.parquet'`.
- The same x gives the same rows in the same order. `stratum` and other text are shown as `gs.visible` shows them."""


def page() -> str:
    """The page that documents the tables, as Markdown."""
    parts = [_PAGE]
    for name, table in TABLES.items():
        key = ", ".join(f"`{k}`" for k in table.key)
        parts.append(f"\n## {name}\n\nA row: {table.row}. Written from {table.written}.{f' Key: {key}.' if key else ''}\n")
        parts.append("| column | type | unit | meaning | empty |\n|---|---|---|---|---|")
        for c in table.columns:
            parts.append(f"| `{c.name}` | {_NAMES.get(c.type, c.type)} | {c.unit} | {c.meaning} | {c.null or 'never'} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.buffer.write(page().encode())
