"""What any edits change: the one measurement that the others stand on."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from grokscope.experiments.paired import Paired
from grokscope.model.model import Model
from grokscope.transformer.edits import as_edits


def effect(model: Model, texts: Any, edits: Any) -> xr.Dataset:
    """What `edits` do to the next-token predictions of `texts`: a text, several, ids, or a `Prompt` from `model.encode`.

    By token, (batch, token), each about the token after it and NaN at a text's last: `nll`, in nats and without edits;
    `d_nll_by_token` = NLL(do) - NLL, positive where the next token became less likely (its negative is the change of
    log-probability); `kl_by_token` = KL(p || p_do) over the whole vocabulary, good to 1e-5; `flips_by_token`, whether the
    most likely token is another. Over all predicted tokens: `value` (also `d_nll`) = E[NLL(do) - NLL] with ci_low and
    ci_high, `kl`, `flips` (a share). Padding never counts; a text's first token only where the model has a
    beginning-of-text token and texts are given, not ids.

    Trap: an edit of many tokens reaches each also through those before it; edit one (tokens=[5]) for its own effect alone.
    Raises ValueError for texts of one token, edits that cannot take effect here or give no numbers, and edits of the logits.
    """
    edits = as_edits(edits)
    plain = Paired(model, texts, "effect")
    [(_, found)] = plain.measure([edits], list)
    sums = {name: plain.by_document(getattr(found, name)).sum() for name in ("kl", "flips")}
    made = plain.answer(
        (), plain.by_document(found.d_nll), np.var(found.d_nll), attrs={"edits": [repr(e) for e in edits]},
        **{name: s / len(plain.row) for name, s in sums.items()},
    )  # fmt: skip
    pieces = np.full((plain.prompt.batch, plain.prompt.tokens), "", object)
    for row, of_text in enumerate(model.pieces(plain.prompt)):
        pieces[row, : len(of_text)] = of_text
    by_token = {f"{name}_by_token": getattr(found, name) for name in ("d_nll", "kl", "flips")} | {"nll": plain.nll}
    return made.assign(
        d_nll=made["value"], **{name: (("batch", "token"), plain.spread(v)) for name, v in by_token.items()}
    ).assign_coords(token=np.arange(plain.prompt.tokens), piece=(("batch", "token"), pieces))
