"""`grokscope sweep`: routing statistics of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_SOURCE = "A file, folder or glob of .jsonl, .parquet or text, packed or not; - reads JSON lines from standard input."
_LABELS = 'The field that groups the documents, e.g. "domain"; where a line has none, its file\'s name; "file": always that.'
_RESUME = "A directory for what is done: the same command goes on there after an interrupt."
_SHARD = "K/N: take every Nth document from the Kth on (from 0). The counters of all N add up."
_PLAN = "What it would take in documents, tokens, calls and passes; nothing is run and --out is not needed."
_RAY = "Share the documents between so many tasks of a Ray cluster: RAY_ADDRESS's, else one of this machine alone."
Format = Annotated[Literal["csv", "parquet"], typer.Option(help="Of the tables.")]
Full = Annotated[bool, typer.Option("--full", help="All tables that there are, and in metrics pairs of experts too.")]


def sweep(  # noqa: PLR0913 - one a flag
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new file for the counters (.npz).")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help='A checkpoint\'s directory, or "pocket".')] = "pocket",
    labels: Annotated[str | None, typer.Option("--labels", "--label", help=_LABELS)] = None,
    resume: Annotated[Path | None, typer.Option(help=_RESUME)] = None,
    shard: Annotated[str, typer.Option(help=_SHARD)] = "0/1",
    rows: Annotated[Path | None, typer.Option(help="A folder for the routing of a sample of the documents, as Parquet.")] = None,
    share: Annotated[float, typer.Option(help="Of the documents whose routing goes to --rows.")] = 0.01,
    tables: Annotated[Path | None, typer.Option(help="A new folder for the tables of the counters.")] = None,
    format: Format = "csv",
    full: Full = False,
    ray: Annotated[int | None, typer.Option(help=_RAY)] = None,
    plan: Annotated[bool, typer.Option("--plan", help=_PLAN)] = False,
) -> None:  # fmt: skip
    """Count how the documents of a corpus are routed, in constant memory; documents go one by one.

    Example: grokscope sweep corpus.jsonl.xz --label domain --out counters.npz --tables tables
    """
    number, _, of = shard.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise typer.BadParameter(f"--shard: wanted K/N, as in 0/4, got {shard}")
    if ray is not None and shard != "0/1":
        raise typer.BadParameter("--ray: wanted all documents for the cluster, got --shard too; leave one out")
    if plan:
        from grokscope.model.loading import load

        print(load(model).sweep(source, labels, shard=(int(number), int(of)), plan=True).to_string())
        return
    if out is None:
        raise typer.BadParameter("--out: wanted a new file for the counters, got none; as in --out counters.npz")
    out, tables = out.expanduser(), tables and tables.expanduser()
    if out.exists():
        raise FileExistsError(f"{out}: wanted a new file, got one that is there; name another")
    if tables is not None and tables.exists() and (not tables.is_dir() or any(tables.iterdir())):
        raise FileExistsError(f"{tables}: wanted a new or an empty folder, got one that holds something; name another")
    sample = None if rows is None else (rows, share)
    if ray is None:
        from grokscope.model.loading import load

        counters = load(model).sweep(source, labels, rows=sample, resume=resume, shard=(int(number), int(of)))
    else:
        from grokscope.model.on_ray import sweep_on_ray

        counters = sweep_on_ray(model, source, labels, shards=ray, rows=sample, resume=resume)
    counters.save(out)
    print(f"{counters.tokens:,} tokens of {counters.documents:,} documents, labels {', '.join(map(repr, counters.labels))}")
    for layer, row in zip(counters.spec.layers, counters.table("load"), strict=True):
        print(f"layer {layer:3}  " + " ".join(f"{part:5.1f}" for part in 100 * row / row.sum()) + "  % of its slots, by expert")
    print(f"wrote {out}")
    if tables is not None:
        from grokscope.tables.export import export

        print(f"wrote {', '.join(sorted(p.name for p in export(counters, tables, format, full).iterdir()))} to {tables}")
