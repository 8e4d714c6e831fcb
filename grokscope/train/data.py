"""Documents -> token ids -> batches.

Every domain is passed over as often as its share of the run needs, each pass in a new order, and the passes are spread
evenly over the run. Documents follow each other in rows of one context; a token reads its own document only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.disk.arrays import DAMAGED
from grokscope.disk.reading import opened
from grokscope.disk.writing import whole_file
from grokscope.sweeps.corpus import read_documents
from grokscope.train.recipe import Recipe

MOST_PIECES = 1 << 16
"""Of a tokenizer: ids are kept as uint16."""


@dataclass(frozen=True)
class Corpus:
    """A domain's token ids end to end (uint16), and where each document starts; one more entry for the end."""

    domain: str
    ids: np.ndarray
    starts: np.ndarray


def corpus_files(folder: str | Path) -> list[Path]:
    """The training files of a folder (`train-*.jsonl*`), sorted by name."""
    files = sorted(p for p in Path(folder).expanduser().glob("train-*.jsonl*"))
    if not files:
        raise FileNotFoundError(f"{folder}: wanted files named train-<domain>.jsonl[.xz|.bz2|.gz], found none")
    return files


def tokenize_corpus(folder: str | Path, tokenizer: str | Path, cache: str | Path) -> list[Corpus]:
    """The training files of `folder` as ids, BOS before and EOS after each document; kept in `cache` for the next run."""
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    files = corpus_files(folder)
    kept = {f: cache / f"{f.name}.{_digest(f, Path(tokenizer))}.npz" for f in files}
    return [_kept(f, kept[f]) or _tokenize_file(f, kept[f], open_tokenizer(tokenizer)) for f in files]


def _kept(path: Path, kept: Path) -> Corpus | None:
    """A domain as it was kept; None where it was not, or is damaged."""
    with suppress(*DAMAGED), np.load(kept) as arrays:
        return Corpus(_domain(path), arrays["ids"], arrays["starts"])
    return None


def _domain(path: Path) -> str:
    return path.name.split(".")[0].removeprefix("train-")


def open_tokenizer(path: str | Path) -> Any:
    """A SentencePiece model that can be trained with. Raises ValueError for another file, and for other ids of BOS and EOS."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path}: wanted a SentencePiece model, got something else ({str(error)[:80]}); `grokscope train tokenizer` makes one"
        ) from None
    size, marks = model.get_piece_size(), (model.bos_id(), model.eos_id())
    if marks != (1, 2) or size > MOST_PIECES:
        raise ValueError(
            f"{path}: wanted up to {MOST_PIECES:,} pieces, BOS at 1 and EOS at 2, got {size:,} pieces, {marks[0]} and "
            f"{marks[1]}; make one with `grokscope train tokenizer`"
        )
    return model


def _digest(*paths: Path) -> str:
    """Of what the ids follow from: others of the same name must not pass for them."""
    made = hashlib.blake2b(digest_size=8)
    for path in paths:
        with opened(path) as file:
            while part := file.read(1 << 20):
                made.update(part)
    return made.hexdigest()


def _tokenize_file(path: Path, kept: Path, model: Any) -> Corpus:
    texts, documents = (d.text for d in read_documents(path)), []
    while some := list(islice(texts, 1024)):  # shared out over the cores
        made = model.encode(some, add_bos=True, add_eos=True, num_threads=os.cpu_count() or 1)
        documents += [np.array(ids, np.uint16) for ids in made]
    if not documents:
        raise ValueError(f"{path}: wanted at least one document, got none; leave the file out")
    starts = np.cumsum([0, *(len(d) for d in documents)])
    with whole_file(kept, replace=True) as file:
        np.savez(file, ids=(ids := np.concatenate(documents)), starts=starts)
    return Corpus(_domain(path), ids, starts)


def plan(corpora: list[Corpus], tokens: int, power: float, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """The order of documents of a whole run, rows of (corpus, document), and how often each domain is passed over."""
    rng = np.random.default_rng(seed)
    share = np.array([len(c.ids) for c in corpora], float) ** power
    share /= share.sum()
    rows, times, passes = [], [], {}
    for index, corpus in enumerate(corpora):
        needed = tokens * share[index] / len(corpus.ids)
        passes[corpus.domain] = needed
        number_of = len(corpus.starts) - 1
        for number in range(int(np.ceil(needed))):
            order = rng.permutation(number_of)[: int(np.ceil(number_of * min(1.0, needed - number)))]
            rows.append(np.stack([np.full(len(order), index), order], axis=1))
            width = min(1.0, needed - number)
            times.append((number + width * np.sort(rng.random(len(order)))) / needed)
    return np.concatenate(rows)[np.argsort(np.concatenate(times), kind="stable")], passes


def _documents(corpora: list[Corpus], recipe: Recipe) -> Iterator[np.ndarray]:
    """A run's documents in their order; where rounding takes more than were planned, another order of the same."""
    for again in count():
        order, _ = plan(corpora, int(recipe.tokens * 1.02), recipe.domain_power, recipe.seed + again)
        yield from (corpora[c].ids[corpora[c].starts[d] : corpora[c].starts[d + 1]] for c, d in order)


def batches(corpora: list[Corpus], recipe: Recipe, first_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, segments) of each step, [rows, context] each, from `first_step` on.

    A row holds one more token than its context predicts from: ids[:, 1:] are the answers to ids[:, :-1], so rows overlap
    by one token. Segments count the documents of a row from 1.
    """
    documents = _documents(corpora, recipe)
    left = np.empty(0, np.uint16)
    step = 0
    for context, share in recipe.contexts:
        rows = max(1, recipe.batch_tokens // context)
        for _ in range(round(recipe.tokens * share / recipe.batch_tokens)):
            needed = rows * context + 1
            parts, size = [left], len(left)
            while size < needed:
                parts.append(next(documents))
                size += len(parts[-1])
            stream = np.concatenate(parts)
            left = stream[needed - 1 :]
            if step >= first_step:
                ids = np.stack([stream[r * context : (r + 1) * context + 1] for r in range(rows)]).astype(np.int32)
                yield ids, np.cumsum(ids == 1, axis=1, dtype=np.int32) + 1
            step += 1
