"""The command line: trace, generate, inspect, convert, sweep, report, lab, train. Each `--help` is enough to use it."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from grokscope.cli.ending import interruptible, run
from grokscope.cli.reading import read_text
from grokscope.cli.sweep import Format, Full, sweep
from grokscope.harmless import listed, visible_lines

app = typer.Typer(
    help=(
        "Look inside mixture-of-experts language models, Grok-1 first.\n\nTo read: `grokscope lab` opens the notebooks, of which "
        "00_tour is the first, with pages beside them (families, recordings, statistics, tables, agents); "
        '`python -c "import grokscope as gs; help(gs.routing)"` prints what a function says of itself; `make docs` in a '
        "checkout builds all of it as a site."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Text = Annotated[str | None, typer.Argument(help="The text. Or use --file.")]
File = Annotated[Path | None, typer.Option("--file", "-f", help="A UTF-8 file with the text; - reads standard input.")]
ModelPath = Annotated[
    str, typer.Option("--model", "-m", help='A checkpoint\'s directory, or "pocket", the embedded model.')
]
_OUT = "A new directory for the tables, and for trace.zarr with --capture."
_CAPTURE = 'Sites to keep besides routing and logits, e.g. "attn.pattern" or "resid_*".'
Dtype = Annotated[str, typer.Option(help="Of the arithmetic: bfloat16 or float32.")]


def _version(asked: bool) -> None:
    if asked:
        from grokscope import __version__

        print(f"grokscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def trace(  # noqa: PLR0913 - one a flag
    text: Text = None,
    file: File = None,
    model: ModelPath = "pocket",
    out: Annotated[Path | None, typer.Option("--out", "-o", help=_OUT)] = None,
    capture: Annotated[list[str] | None, typer.Option("--capture", "-c", help=_CAPTURE)] = None,
    format: Format = "csv",
    full: Full = False,
    dtype: Dtype = "bfloat16",
    truncate: Annotated[bool, typer.Option("--truncate", help="Keep the first tokens of a text that is over the context.")] = False,
) -> None:  # fmt: skip
    """Show how each token of a text is routed, and write it as tables with --out.

    Example: grokscope trace "The quick brown fox" --out fox
    """
    words = read_text(text, file)
    if capture and out is None:
        raise typer.BadParameter("--capture keeps more in trace.zarr: it needs --out")
    if out is not None:
        _check_free(out := out.expanduser())
    from grokscope.model.loading import load
    from grokscope.sites import ROUTING, Capture
    from grokscope.views.terminal import RoutingPicture, draw, legend

    console = _console()
    loaded = load(model, dtype=dtype)
    sites = Capture.of([*ROUTING, "logits", *(capture or [])] if out else ROUTING)
    # Without tables nothing needs pandas or xarray, which take longer to import than pocket to load and run.
    recorder, encoded = loaded.record(words, sites, truncate=truncate)
    pieces = loaded.pieces(encoded)
    experts, gates = (recorder.arrays[s][:, 0] for s in ("router.experts", "router.gates"))
    if out is not None:  # before anything is shown: a terminal that cannot show it must not cost the tables
        from grokscope.tables.export import export
        from grokscope.trace.trace import as_trace

        made = as_trace(recorder, encoded, pieces, loaded.provenance(recorder.config, sites, ()))
        export(made, out, format, full)
        if capture:
            made.save(out / "trace.zarr")
    console.print(legend(recorder.config.router), soft_wrap=True)
    layers = recorder.layers["router.experts"]
    for line in draw(RoutingPicture(experts, gates, pieces[0], layers, recorder.config.router), console.width):
        console.print(line, no_wrap=True, crop=False, soft_wrap=True)
    if out is not None:
        console.print(
            f"wrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}", markup=False, highlight=False
        )


@app.command()
def generate(
    text: Text = None,
    file: File = None,
    model: ModelPath = "pocket",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="At most this many.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the best token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the smallest set of tokens with this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    dtype: Dtype = "bfloat16",
) -> None:
    """Continue a text, printing it as it comes.

    Example: grokscope generate "Once upon a time" -n 100 -t 0.8 --top-p 0.95
    """
    words = read_text(text, file)
    from grokscope.model.loading import load

    loaded = load(model, dtype=dtype)
    write = sys.stdout.write
    write(_terminal_safe(words))

    def show(new: str) -> None:
        write(_terminal_safe(new))
        sys.stdout.flush()

    loaded.generate(words, max_new_tokens, temperature, top_p, seed, capture=(), on_text=show)
    write("\n")


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help='A checkpoint\'s directory, or "pocket".')] = "pocket",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a checkpoint: format, shape, parameters, bytes, and everything that is wrong with it.

    Exit status 1 where something is wrong. Nothing in the files is executed.
    """
    from grokscope.checkpoints.inspecting import as_dict
    from grokscope.checkpoints.inspecting import inspect as look
    from grokscope.cli.inspection import inspection_lines

    found = look(path)
    if json:
        import json as library

        print(library.dumps(as_dict(found), indent=1))
    else:
        for line in inspection_lines(found):
            print(visible_lines(line))
    if found.problems:
        raise ValueError(f"this checkpoint cannot be loaded:{listed(found.problems)}")


@app.command()
def convert(
    path: Annotated[str, typer.Argument(help="A checkpoint's directory, of any known format, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="A new directory; the work lies beside it, in OUT.part, until it is complete.")],
    check: Annotated[bool, typer.Option(help="Read everything back from the disk and compare it with what was meant.")] = True,
    int8: Annotated[bool, typer.Option("--int8", help="Write matrices as int8 with scales.")] = False,
    text: Annotated[str | None, typer.Option(help="With --int8: say what that costs on this text, by running both.")] = None,
) -> None:  # fmt: skip
    """Rewrite a checkpoint in grokscope's own format: a file for each layer, mapped and made for streaming.

    It takes the memory of one layer. After an interruption, the same command goes on where it was.

    Example: grokscope convert grok-1 grok-1-native
    """
    if text and not int8:
        raise typer.BadParameter("--text measures what --int8 costs: it needs it")
    from grokscope.checkpoints.converting import SOURCE
    from grokscope.checkpoints.converting import convert as work

    out = out.expanduser()
    if not (out / SOURCE).is_file():  # else its last step was cut off
        _check_free(out)

    try:
        made = work(path, out, quantize="int8" if int8 else None, check=check)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; what is whole is kept in {out}.part, and the same command goes on there") from None
    files = [p.stat().st_size for p in made.iterdir()]
    print(f"wrote {len(files)} files, {sum(files):,} bytes, to {out}")
    if text:
        _say_cost(path, out, text)


def _say_cost(path: str, out: Path, text: str) -> None:
    from grokscope.experiments.precision import precision
    from grokscope.model.loading import load

    found = precision(load(path), load(out), text)
    before, after = found["bits_per_byte"].values
    flips = f"; {100 * float(found['flips'].mean()):.1f} % of choices fall on another expert" if "flips" in found else ""
    print(f"on this text ({found.attrs['tokens']} tokens) int8 costs {before:.4f} -> {after:.4f} bits per byte{flips}")


def _check_free(out: Path) -> None:
    """Before the work, not after it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out}: wanted a new or an empty directory, got one that already holds something; name another"
        )
    parent = next(p for p in out.absolute().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{out}: wanted a place to write, {parent} is not writable; name another")


def _terminal_safe(text: str) -> str:
    from grokscope.text.visible import visible

    return "".join(c if c in "\n\t" else visible(c) for c in text)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


@cache
def _add_others() -> None:  # once, however often `main` is called
    from grokscope.cli.look import lab, report
    from grokscope.cli.train import app as training

    for one in (sweep, report, lab):
        app.command()(one)
    app.add_typer(training, name="train")
    for command in (*app.registered_commands, *training.registered_commands):
        command.callback = interruptible(command.callback)


def main() -> None:
    """Entry point."""
    _add_others()
    run(app)
