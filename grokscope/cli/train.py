"""`grokscope train`: make a small mixture of experts of your own with the block that inference uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train a small mixture of experts, or the embedded model again.", no_args_is_help=True)

Corpora = Annotated[
    Path, typer.Argument(help='A folder of train-<domain>.jsonl[.xz|.bz2|.gz] files, one {"text": ...} a line.')
]
Tokenizer = Annotated[Path, typer.Argument(help="A SentencePiece model, e.g. from `grokscope train tokenizer`.")]


@app.command()
def tokenizer(
    corpora: Corpora,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    vocab_size: Annotated[int, typer.Option(help="Pieces, bytes and control words included.")] = 16_384,
) -> None:
    """Make a SentencePiece tokenizer with Grok-1's conventions."""
    from grokscope.train.tokenizer import train_tokenizer

    train_tokenizer(corpora, out, vocab_size)


@app.command()
def recipe(out: Annotated[Path, typer.Argument(help="The file to write.")]) -> None:
    """Write the default recipe as JSON, to be changed and given to `grokscope train model`."""
    from grokscope.train.recipe import Recipe

    if out.exists():
        raise FileExistsError(f"{out}: wanted a new file, got one that exists; name another")
    out.write_text(Recipe().to_json() + "\n")


@app.command()
def model(
    corpora: Corpora,
    tokenizer: Tokenizer,
    out: Annotated[
        Path, typer.Argument(help="The run's folder: log, checkpoint and the int8 model. Run again to go on.")
    ],
    recipe: Annotated[Path | None, typer.Option(help="A recipe's JSON; else the default.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop with a checkpoint after this long.")] = None,
) -> None:
    """Train one model on all local devices, with its progress on the screen, and export it as int8.

    With `heldout_dev.jsonl.xz` in the folder, bits per byte by domain are measured on it.
    """
    from grokscope.train.data import tokenize_corpus
    from grokscope.train.loop import is_complete, train
    from grokscope.train.pocket import export, heldout_documents
    from grokscope.train.recipe import Recipe

    made = Recipe.from_file(recipe) if recipe else Recipe()
    texts = tokenize_corpus(corpora, tokenizer, out / "tokens")
    heldout_file = corpora / "heldout_dev.jsonl.xz"
    heldout = heldout_documents(heldout_file, tokenizer) if heldout_file.exists() else []
    weights = train(made, texts, out, heldout, minutes=minutes)
    if is_complete(out):
        export(weights, made, out / "int8", tokenizer, heldout)


@app.command()
def pocket(
    corpora: Corpora,
    tokenizer: Tokenizer,
    out: Annotated[Path, typer.Argument(help="A folder for all runs.")],
    minutes: Annotated[float, typer.Option(help="The time for both stages.")] = 600.0,
) -> None:
    """Train the embedded model again: four models, one on each GPU, then one that learns from the text and from them."""
    from grokscope.train.pocket import main

    main(str(corpora), str(tokenizer), str(out), minutes)
