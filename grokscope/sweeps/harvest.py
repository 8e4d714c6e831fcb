"""Activations of a corpus of any size on disk: documents in, rows by site and layer out, in bounded memory.

Documents go one by one through the same calls as a sweep's, so that a text gives the same numbers in whatever company. What is
finished lies on disk part by part; the same call goes on after the last whole one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from grokscope.activations.activations import Activations, open_activations
from grokscope.activations.layout import DONE, DTYPES, FORMAT, Place, process_folder
from grokscope.activations.opening import whole_parts
from grokscope.devices.memory import free_memory
from grokscope.disk.writing import write_whole
from grokscope.running.resuming import claim, made_by
from grokscope.running.running import calls_of
from grokscope.sites import DIMS, SITES, Capture
from grokscope.sweeps.corpus import is_once
from grokscope.sweeps.harvest_part import IN_TABLE, KINDS, Chunk, Piece, Rows, share_of, token_columns, write
from grokscope.sweeps.harvest_room import check_disk, check_folder
from grokscope.sweeps.sweep import Sweep, filled, in_calls
from grokscope.text.given import is_whole, labels_in
from grokscope.trace.recorder import kept_layers, shape_of
from grokscope.transformer.edits import as_edits
from grokscope.transformer.forward import run_end, run_layers
from grokscope.versions import versions

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.running.loaded import Loaded

PART_BYTES, PART_TOKENS = 1 << 28, 1 << 18
"""A part is finished when it holds so many bytes, or so many tokens were read for it: what an interrupt can lose."""
STREAMED_TOKENS = 1 << 17
"""Tokens for which streamed layers are brought once."""
REFUSED = ("attn.scores", "attn.pattern")


@dataclass(frozen=True)
class _Wanted(Capture):
    """The sites at their layers, and the choices of every router: the table of tokens has those."""

    routing: tuple[str, ...] = ()

    def at(self, layer: int) -> tuple[str, ...]:
        """See `Capture`."""
        return tuple(dict.fromkeys((*super().at(layer), *self.routing)))


class Harvest:
    """One pass over a corpus; `Model.harvest` runs it."""

    def __init__(
        self, model: Loaded, sites: Any, layers: Any = None, *, share: float = 1.0, dtype: str = "bfloat16", seed: int = 0,
        **sweep: Any,
    ) -> None:  # fmt: skip
        """sweep: edits, shard and classes as `Sweep` has them."""
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"harvest: tokens: wanted a share above 0, up to 1, got {share!r:.40}; as in tokens=0.1")
        if dtype not in DTYPES:
            raise ValueError(f"harvest: dtype: wanted one of {', '.join(DTYPES)}, got {dtype!r:.40}; choose one of these")
        if not is_whole(seed) or seed < 0:
            raise ValueError(f"harvest: seed: wanted a whole number from 0 on, got {seed!r:.40}; give one")
        if model.tokenizer is None:
            raise ValueError("harvest: wanted a model with a tokenizer, got one without; pass tokenizer= to load")
        self.model, self.share, self.dtype, self.seed = model, float(share), dtype, int(seed)
        self.sweep = Sweep(model, **sweep | {"edits": as_edits(sweep.get("edits", ()))})
        self.config, self.documents = (config := self.sweep.config), 0
        capture = model.capture(sites, layers)
        if wrong := [s for s in capture.sites if s in REFUSED]:
            raise ValueError(f"harvest: wanted sites of one width, got {', '.join(wrong)}, as wide as a text; use trace")
        own = tuple(s for s in capture.sites if s not in IN_TABLE)
        self.routed = () if config.is_dense else config.moe_layers
        self.capture = _Wanted(own, capture.layers, routing=tuple(IN_TABLE) if self.routed else ())
        self.places = [
            _place(site, layer, self) for site in own
            for layer in (kept_layers(capture, config, site) if SITES[site].in_block else [None])
        ]  # fmt: skip
        if not self.places:
            anyway = f"{' and '.join(IN_TABLE)}, which come anyway"
            raise ValueError(f"harvest: sites: wanted one or more besides {anyway}, got none; add one")
        itemsize = KINDS[dtype].itemsize
        self.row_bytes = sum(p.row_bytes(itemsize) for p in self.places)
        self.table_bytes = 24 + 6 * config.router.top_k * len(self.routed)

    def pieces(self, source: Any, label: Any) -> Iterator[tuple[Piece, str]]:
        """Every piece of this process's documents, with the digest of all up to it."""
        digest, (first, step) = "", self.sweep.shard
        for n, cut in enumerate(self.sweep.pieces(source, label)):
            start = 0
            for ids, name, key, _ in cut:
                words = f"{digest}{key}{name}".encode("utf-8", "backslashreplace")
                digest = hashlib.blake2b(words, digest_size=8).hexdigest()
                kept = share_of(key, self.seed, start, len(ids), self.share)
                yield Piece(first + n * step, start, ids, name, key, kept), digest
                start += len(ids)

    def chunks(self, pieces: Iterable[tuple[Piece, str]]) -> Iterator[Chunk]:
        """The parts: always the same, whatever the machine."""
        most = max(1, PART_BYTES // self.row_bytes)
        waiting, rows, tokens, read, digest, last = [], 0, 0, 0, "", None
        self.documents = 0
        for piece, digest in pieces:
            read, self.documents, last = read + 1, self.documents + (piece.document != last), piece.document
            if piece.kept.any():
                waiting.append(piece)
                rows, tokens = rows + int(piece.kept.sum()), tokens + len(piece.ids)
            if rows >= most or tokens >= PART_TOKENS:
                yield Chunk(tuple(waiting), read, self.documents, digest)
                waiting, rows, tokens = [], 0, 0
        if waiting:
            yield Chunk(tuple(waiting), read, self.documents, digest)

    def plan(self, source: Any, labels: Any) -> pd.DataFrame:
        """What it would keep, a row a site: its shape for one token and layer, layers, tokens and bytes; the table's last.

        The source is read and cut into tokens once for it; of one that can be read but once, bytes are of one token.
        """
        import pandas as pd

        once = is_once(source)
        kept = 1 if once else sum(int(p.kept.sum()) for p, _ in self.pieces(source, labels))
        itemsize, rows = KINDS[self.dtype].itemsize, []
        for site in dict.fromkeys(p.site for p in self.places):
            here = [p for p in self.places if p.site == site]
            shape = f"{here[0].slots} x {here[0].width}" if here[0].slots else str(here[0].width)
            rows.append((site, shape, len(here), kept, kept * sum(p.row_bytes(itemsize) for p in here)))
        rows.append(("tokens", "", len(self.routed), kept, kept * self.table_bytes))
        return pd.DataFrame(rows, columns=["site", "shape", "layers", "tokens", "bytes"]).set_index("site")

    def into(self, source: Any, labels: Any, out: str | Path, progress: bool = True) -> Activations:
        """Write all of it; see `Model.harvest`."""
        given = labels is not None and not isinstance(labels, str)
        labels = labels_in(labels) if given else labels
        out = Path(out).expanduser()
        check_folder(out, self.sweep.shard[1])
        folder = out / process_folder(*self.sweep.shard)
        bytes_planned = None if is_once(source) else int(self.plan(source, labels)["bytes"].sum())
        lock = claim(folder, "harvest", self._about(source, "given" if given else labels), ["*"])
        try:
            there = whole_parts(folder, self.places, self.dtype)
            done = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            if bytes_planned is not None:
                check_disk(out, bytes_planned - done, self.share, progress)
            self._write(folder, self.pieces(source, labels), there, progress)
        finally:
            lock.close()
        whole = all((out / process_folder(n, self.sweep.shard[1]) / DONE).exists() for n in range(self.sweep.shard[1]))
        return open_activations(out, partial=not whole)

    def _write(self, folder: Path, pieces: Iterator[tuple[Piece, str]], there: Sequence[dict[str, Any]], progress: bool) -> None:
        """All parts that are not there, and the note that it is done."""
        self._written = there[-1]["documents"] if there else 0
        rows, number, chunk, waiting = 0, -1, None, []
        with tqdm(unit="token", unit_scale=True, desc="harvest", delay=1, disable=None if progress else True) as bar:
            try:
                for number, chunk in enumerate(self.chunks(pieces)):
                    rows += chunk.rows
                    if number < len(there):
                        if (chunk.read, chunk.digest) != (there[number]["read"], there[number]["digest"]):
                            break
                        continue
                    waiting.append((number, chunk))
                    if self._is_enough([c for _, c in waiting]):
                        self._parts(folder, waiting, bar)
                        waiting = []
                self._parts(folder, waiting, bar)
            except (KeyboardInterrupt, OSError) as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                if isinstance(error, OSError) and not full:
                    raise
                why = "the disk is full" if full else "interrupted"
                kept = f"harvest: {why}, {self._written:,} documents are in {folder}: the same call goes on there"
                raise (OSError(errno.ENOSPC, kept) if full else KeyboardInterrupt(kept)) from None
        if number + 1 < len(there) or (there and number < len(there) and chunk.digest != there[number]["digest"]):
            raise ValueError(f"{folder}: wanted the documents that were read here, got others; name another directory")
        if chunk is None:
            raise ValueError("harvest: wanted at least one token, got none; look at the source, or raise tokens=")
        done = {"parts": number + 1, "rows": rows, "documents": self.documents}
        write_whole(folder / DONE, json.dumps(done).encode(), replace=True)

    def _is_enough(self, chunks: Sequence[Chunk]) -> bool:
        """Whether these parts are run now: each at once, but streamed layers are brought once for as many as memory holds.

        Raises MemoryError for one that it does not hold.
        """
        need, free = sum(c.rows for c in chunks) * (self.row_bytes + self.table_bytes), free_memory() // 2
        if len(chunks) == 1 and need > free:
            raise MemoryError(
                f"harvest: wanted at most {free / 1e9:.2f} GB for the rows of one part, got {need / 1e9:.2f} GB. What would fit: "
                f"tokens={max(free / need * self.share, 1e-9):.2g}, or {100 * free / need:.0f} % of the layers or sites"
            )
        tokens = sum(len(p.ids) for c in chunks for p in c.pieces)
        return not self.model.is_streamed or need > free // 2 or tokens >= STREAMED_TOKENS

    def _parts(self, folder: Path, chunks: Sequence[tuple[int, Chunk]], bar: tqdm) -> None:
        """Run these parts, and write them one after the other."""
        model, calls, rows = self.model, [], []
        for _, chunk in chunks:
            rows.append(Rows(chunk, self.places, self.routed, self.config.router.top_k, self.dtype))
            by_ids = {id(p.ids): p for p in chunk.pieces}
            for group, size in in_calls([(p.ids, p.label, p.key) for p in chunk.pieces]):
                prompt = filled([ids for ids, *_ in group], size)
                record = rows[-1].of_call([by_ids[id(ids)] for ids, *_ in group], prompt.ids.shape)
                calls += calls_of(model, self.config, prompt, self.capture, self.sweep.lowered, record)
        together = max(1, len(calls)) if model.is_streamed else 1
        for first in range(0, len(calls), together):
            streams = run_layers(model.weights, some := calls[first : first + together])
            for n, call in enumerate(some):
                run_end(model.weights, streams.get(n), call.run, call.record)
        for (number, chunk), made in zip(chunks, rows, strict=True):
            tokens = token_columns(chunk, model.tokenizer.pieces, self.sweep.classes)
            about = {"read": chunk.read, "documents": chunk.documents, "digest": chunk.digest}
            write(folder, number, chunk, made, tokens, {k: str(v) for k, v in about.items()})
            self._written = chunk.documents
            bar.update(sum(len(p.ids) for p in chunk.pieces))

    def _about(self, source: Any, labels: Any) -> dict[str, Any]:
        """What must be the same to go on, and what a reader wants to know of it."""
        model, named = self.model, isinstance(source, str | Path)
        return made_by(model, self.sweep.edits, self.sweep.classes) | {
            "format": FORMAT, "config": self.config.to_dict(), "tokenizer": getattr(model.tokenizer, "sha256", None),
            "source": str(source)[:500] if named else type(source).__name__, "labels": labels,
            "shard": list(self.sweep.shard), "share": self.share, "seed": self.seed, "dtype": self.dtype,
            "places": [[p.site, p.layer, p.width, p.slots] for p in self.places], "routed": list(self.routed),
            "slots": self.config.router.top_k, "versions": versions("grokscope", "jax"),
        }  # fmt: skip


def _place(site: str, layer: int | None, harvest: Harvest) -> Place:
    config, dims = harvest.config, SITES[site].dims
    shape = shape_of(site, config, replace(harvest.capture, layers=None), 1, 1, config.router.top_k)
    width = math.prod(shape[DIMS[letter]] for letter in dims if letter not in "BTSA")
    return Place(site, layer, width, config.router.top_k if "A" in dims else 0)
