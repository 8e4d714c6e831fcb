"""`grokscope report` and `grokscope lab`: looking, without and with a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grokscope.cli.reading import read_text

_TEXTS = "The text to trace, or several: Compare puts one beside another. Or use --file, or --trace."
_CAPTURE = 'Sites to keep besides routing and logits; of a short text "attn.pattern" is kept anyway.'
_FOLDER = "Where the notebooks are copied to; what you changed there is kept."
_OTHER = "A second saved trace to put beside it."
PATTERN = 64_000_000
"""Bytes of attention patterns that a report's trace keeps unasked."""


def report(  # noqa: PLR0913 - one a flag
    texts: Annotated[list[str] | None, typer.Argument(help=_TEXTS)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("report.html"),
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A UTF-8 file with the text; - reads standard input.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A saved trace (.zarr), or a recording of another program.")] = None,
    other: Annotated[Path | None, typer.Option(help=_OTHER)] = None,
    model: Annotated[str, typer.Option("--model", "-m", help='A checkpoint\'s directory, or "pocket".')] = "pocket",
    dtype: Annotated[str, typer.Option(help="Of the arithmetic: bfloat16 or float32.")] = "bfloat16",
    capture: Annotated[list[str] | None, typer.Option("--capture", "-c", help=_CAPTURE)] = None,
    max_bytes: Annotated[int, typer.Option(help="The largest file; what does not fit is left out, and said.")] = 3_000_000,
) -> None:  # fmt: skip
    """Write one HTML file that shows how a text is routed; it opens from disk, with no network and no kernel.

    Example: grokscope report "The quick brown fox" --out fox.html
    """
    if sum(map(bool, (texts, file, trace))) != 1:
        raise typer.BadParameter("give texts, or one --file, or one --trace")
    out = out.expanduser()
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: wanted a folder to write in, {out.absolute().parent} is not there; make it first")
    from grokscope.widgets.report import report as write

    if trace is not None:
        shown, loaded = _opened(trace), None
    else:
        from grokscope.model.loading import load

        loaded, words = load(model, dtype=dtype), texts or [read_text(None, file)]
        sites = ["router.*", "logits", *(capture or [])]
        if loaded.plan(words, "attn.pattern")["bytes"].sum() <= PATTERN:
            sites.append("attn.pattern")
        shown = loaded.trace(words, sites)
    made = write(shown, out, None if other is None else _opened(other), model=loaded, max_bytes=max_bytes)
    print(f"wrote {made}, {made.stat().st_size:,} bytes")


def _opened(path: Path):
    if path.suffix == ".zarr" or path.is_dir():
        from grokscope.trace.trace import open_trace

        return open_trace(path)
    from grokscope.recordings.routed_experts import read_routed_experts

    return read_routed_experts(path)


def lab(
    folder: Annotated[Path, typer.Option("--folder", "-d", help=_FOLDER)] = Path("grokscope-notebooks"),
    port: Annotated[int, typer.Option(help="Of this machine.", min=1, max=65535)] = 8888,
    browser: Annotated[bool, typer.Option(help="Open one.")] = True,
) -> None:  # fmt: skip
    """Open JupyterLab on a copy of the notebooks, with this environment's kernel. Ctrl-C twice ends it.

    Example: grokscope lab --folder notebooks --port 8899
    """
    from grokscope.cli.lab import open_lab

    raise typer.Exit(open_lab(folder, port, browser))
