"""xAI's tokenizer.tok.json, the format of Grok-2's tokenizer, as the layout of a tokenizer.json.

It lists the bytes of each token, whose id is its rank: of two neighbouring parts of a text those are merged whose bytes
together have the lowest rank (tiktoken's rule). A piece of text that is a token is taken whole. The library wants the two
parts of each merge by name: they are those that the same rule, run on the token's own bytes, merges last, since in any text
what happens within the bytes that become a token is what happens to them alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from grokscope.harmless import told
from grokscope.text.visible import CHARACTER_OF

V1 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How word_split "V1" cuts a text before bytes are merged: digits one by one."""
ALLOWED = {
    "<|pad|>", "<|separator|>", "<|eos|>", *(f"<|control{n}|>" for n in range(1, 705)),
    *(f"<|reserved_{n}|>" for n in range(3, 128)),
}  # fmt: skip
"""Special tokens that are taken as such where they stand in a text, besides those that the file names."""
CHAT = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ 'System: ' + m.content.strip() + '<|separator|>\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ 'Human: ' + m.content.strip() + '<|separator|>\\n\\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + '<|separator|>\\n\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The conversation of Grok-2 as its serving code writes it; other roles are left out, and an answer begins with its space."""
MOST_BYTES = 1024
"""Of one token."""


def layout_of(found: Any) -> tuple[dict[str, Any], dict[int, str]]:
    """(the layout of a tokenizer.json, special tokens that no text becomes: id -> content). Raises ValueError for what is no
    such file, and for one whose tokens could not be told apart.
    """
    if not isinstance(found, dict) or not isinstance(found.get("regular_tokens"), list):
        raise ValueError(f"wanted an object with regular_tokens and special_tokens, got {told(found)}")
    if found.get("word_split") != "V1":
        raise ValueError(f'word_split: wanted "V1", got {told(found.get("word_split"))}; no other is known here')
    pattern = V1 if found.get("pat_str") is None else found["pat_str"]
    ranks = _ranks(found["regular_tokens"], "regular_tokens")
    special = {rank: _text(token) for token, rank in _ranks(found.get("special_tokens", []), "special_tokens").items()}
    _check(found, ranks, special)
    allowed = ALLOWED | {_text(_bytes(token, "default_allowed_special")) for token in found.get("default_allowed_special") or ()}
    hidden = {rank: content for rank, content in special.items() if content not in allowed}
    vocab = {_spelt(token): rank for token, rank in ranks.items()}
    # No text has a space in its spelling: under such a name a token is there, and nothing becomes it.
    vocab |= {f"{content} " if rank in hidden else content: rank for rank, content in special.items()}
    if len(vocab) < len(ranks) + len(special):
        raise ValueError("special_tokens: wanted other contents than those of regular tokens, got one twice")
    plain = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    shown = (rank for rank in sorted(special) if rank not in hidden)
    added = [{"id": rank, "content": special[rank], "special": True} | plain for rank in shown]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": vocab, "merges": list(_merges(ranks)), "ignore_merges": True}
    return {
        "version": "1.0", "added_tokens": added, "model": model, "decoder": by_bytes,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
    }, hidden  # fmt: skip


def _ranks(tokens: Any, what: str) -> dict[bytes, int]:
    """Bytes -> id of a list of tokens."""
    ranks: dict[bytes, int] = {}
    for entry in tokens if isinstance(tokens, list) else [tokens]:
        if not isinstance(entry, dict) or type(entry.get("token")) is not int or not 0 <= entry["token"] < 1 << 31:
            raise ValueError(f'{what}: wanted {{"bytes": [...], "token": an id}}, got {told(entry)}')
        token = _bytes(entry.get("bytes"), what)
        if token in ranks:
            raise ValueError(f"{what}: wanted each token once, got {token!r:.80} twice")
        ranks[token] = entry["token"]
    return ranks


def _bytes(values: Any, what: str) -> bytes:
    try:
        if isinstance(values, list) and 0 < len(values) <= MOST_BYTES:
            return bytes(values)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{what}: wanted a list of 1 to {MOST_BYTES:,} bytes, got {told(values)}")


def _text(token: bytes) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"special_tokens: wanted UTF-8, got {token!r:.80}") from error


def _check(found: dict[str, Any], ranks: dict[bytes, int], special: dict[int, str]) -> None:
    """Ids once each, every byte a token of its own, and as many as vocab_size says."""
    ids = [*ranks.values(), *special]
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"regular_tokens: wanted every byte as a token, got none for {lacking[:5]}")
    if len(set(ids)) < len(ids):
        raise ValueError("wanted each id once, got one for two tokens")
    size = found.get("vocab_size")
    if size is not None and not (len(ids) == size == max(ids) + 1):
        raise ValueError(f"vocab_size: wanted {len(ids)} (tokens) and {max(ids) + 1} (after the largest id), got {told(size)}")


def _spelt(token: bytes) -> str:
    return "".join(CHARACTER_OF[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[str, str]]:
    """The two parts of each token that merging makes, by its rank."""
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [token[n : n + 1] for n in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, 1 << 31) for a, b in pairwise(parts)]
            lowest = min(pairs)
            if lowest == 1 << 31:
                break
            at = pairs.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield _spelt(parts[0]), _spelt(parts[1])
