"""`grokscope train`: make a small mixture of experts of your own with the block that inference uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from grokscope.train.recipe import Recipe

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

    made = train_tokenizer(corpora, out, vocab_size)
    fewer = "" if made == vocab_size else f" (the text holds no more; a recipe's vocab_size must be {made:,} or larger)"
    print(f"wrote {out} with {made:,} pieces{fewer}")


@app.command()
def recipe(out: Annotated[Path, typer.Argument(help="The file to write.")]) -> None:
    """Write the default recipe (on a CPU a small one) as JSON, to be changed and given to `grokscope train model`."""
    out = out.expanduser()
    if out.exists():
        raise FileExistsError(f"{out}: wanted a new file, got one that exists; name another")
    out.write_text(_default().to_json() + "\n", encoding="utf-8")


def _default(**config: Any) -> Recipe:
    """What this machine can do: the embedded model's recipe on a GPU, a small one in float32 on a CPU, of minutes to an hour."""
    import jax

    from grokscope.train.recipe import Recipe, pocket_config

    if jax.default_backend() != "cpu":
        return Recipe(config=pocket_config(**config))
    small = {"d_model": 128, "num_layers": 4, "num_heads": 4, "d_head": 32, "d_expert": 128, "max_tokens": 512}
    how = {"tokens": 2_000_000, "batch_tokens": 4096, "contexts": ((256, 0.9), (512, 0.1)), "warmup": 20, "dtype": "float32"}
    return Recipe(config=pocket_config(**small, **config), **how)


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

    With `heldout_dev.jsonl` (or .xz, .bz2, .gz) in the folder, bits per byte by domain are measured on it. Without --recipe the
    vocabulary is the tokenizer's, and on a CPU the model is small and the arithmetic float32.
    """
    from grokscope.train.data import corpus_files, open_tokenizer, tokenize_corpus
    from grokscope.train.loop import is_complete, num_steps, steps_done, train
    from grokscope.train.pocket import export, heldout_documents
    from grokscope.train.recipe import Recipe

    corpora, tokenizer, out = (p.expanduser() for p in (corpora, tokenizer, out))
    corpus_files(corpora)
    pieces = open_tokenizer(tokenizer).get_piece_size()
    made = Recipe.from_file(recipe) if recipe else _default(vocab_size=pieces)
    if pieces > made.config.vocab_size:
        had = f"{made.config.vocab_size:,}"
        raise ValueError(f"{recipe}: vocab_size: wanted the tokenizer's {pieces:,} or more, got {had}; change it")
    size = f"{made.config.num_parameters:,} parameters, {made.dtype}"
    print(f"{num_steps(made):,} steps of {made.batch_tokens:,} tokens; {size}", flush=True)
    texts = tokenize_corpus(corpora, tokenizer, out / "tokens")
    files = sorted(corpora.glob("heldout_dev.jsonl*"))
    heldout = heldout_documents(files[0], tokenizer) if files else []
    try:
        weights = train(made, texts, out, heldout, minutes=minutes)
    except KeyboardInterrupt:
        where = f"step {steps_done(out):,} of {num_steps(made):,}"
        raise KeyboardInterrupt(f"interrupted; the same command goes on at {where}") from None
    if is_complete(out):
        if not (out / "int8").exists():  # else the run was complete before
            export(weights, made, out / "int8", tokenizer, heldout)
        print(f'the model lies in {out / "int8"}: gs.load("{out / "int8"}"), or grokscope trace TEXT --model {out / "int8"}')
    else:
        print(f"stopped with a checkpoint in {out}: the same command goes on there, and writes the model at its end")


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
