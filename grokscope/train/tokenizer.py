"""Make a SentencePiece tokenizer with Grok-1's conventions.

Identity normaliser, byte fallback, single digits, pieces for runs of newlines, tabs and spaces. The first 325 ids are
Grok-1's own (`[PAD] [BOS] [EOS] [UNK]`, the runs, the control words, the 256 bytes), so that a reader of one vocabulary
reads the other.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

from grokscope.disk.writing import write_whole
from grokscope.sweeps.corpus import read_documents
from grokscope.train.data import MOST_PIECES, corpus_files

SPECIAL_PIECES = (
    ["\n" * n for n in range(1, 11)]
    + list("0123456789")
    + ["\t" * n for n in range(1, 9)]
    + [" " * n for n in range(2, 17)]
    + ["<|separator|>", "<|mask|>"]
    + [f"<|control{n}|>" for n in range(1, 21)]
)


def train_tokenizer(
    folder: str | Path, out: str | Path, vocab_size: int = 16384, megabytes: int = 64, seed: int = 0
) -> int:
    """Train on a sample of `folder` in which a domain's share goes with the square root of its size; gives the pieces that it
    has, fewer than `vocab_size` where the text holds no more.

    The square root keeps a language with a twentieth of the text from being spelt in bytes.
    `character_coverage` 0.998 leaves the rarest ideograms to the bytes: at 16k pieces they would take a third of them.
    """
    import sentencepiece

    model, out = io.BytesIO(), Path(out).expanduser()
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: wanted a folder to write in, {out.absolute().parent} is not there; make it first")
    if vocab_size > MOST_PIECES:
        raise ValueError(f"vocab_size: wanted up to {MOST_PIECES:,} pieces, as training reads them, got {vocab_size:,}; take fewer")
    settings = dict(
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=0.998,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        max_sentence_length=8000,
        max_sentencepiece_length=16,
        user_defined_symbols=SPECIAL_PIECES,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]", unk_surface="[UNK]",
        num_threads=os.cpu_count() or 1,
        minloglevel=2,
    )  # fmt: skip
    try:
        sample = _sample(folder, megabytes * 1_000_000, seed)
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=sample, model_writer=model, **settings)
    except RuntimeError as error:
        raise ValueError(
            f"{folder}: wanted a text with which {vocab_size:,} pieces can be made (control words, bytes and characters take some "
            f"400 of them), got another ({str(error).rsplit('] ', 1)[-1][:120]}); give more text, or another --vocab-size"
        ) from None
    write_whole(out, model.getvalue(), replace=True)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


def _sample(folder: str | Path, num_bytes: int, seed: int, piece: int = 3000) -> Iterator[str]:
    """Passages of at most `piece` characters, domain by domain, until each domain has had its share of `num_bytes`."""
    domains = {path: [d.text for d in read_documents(path)] for path in corpus_files(folder)}
    sizes = {path: sum(len(t.encode()) for t in texts) for path, texts in domains.items()}
    if not (total := sum(size**0.5 for size in sizes.values())):
        raise ValueError(f"{folder}: wanted some text in the training files, got none; write a document on each line")
    rng = random.Random(seed)
    for path, texts in domains.items():
        left = min(sizes[path], int(num_bytes * sizes[path] ** 0.5 / total))
        passages = [t[i : i + piece] for t in texts for i in range(0, len(t), piece)]
        rng.shuffle(passages)
        for passage in passages:
            if left <= 0:
                break
            left -= len(passage.encode())
            yield passage
