"""What a panel's answers are about: a trace, another beside it, the model, and what was edited. No browser is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from grokscope.trace.trace import Trace
from grokscope.views.routing import Values

if TYPE_CHECKING:
    from grokscope.model.model import Model


class Bench:
    """The state that panels read and set; `Workbench` is one that a browser shows."""

    trace: Trace
    other: Trace | None
    """The trace that is compared with; after an edit, the edited one."""
    model: Model | None
    values: Values
    marks: str | Sequence[int]
    """What has a colour of more than eight experts, as `views.colouring` has it."""
    edits: Sequence[Any]
    """What the Edit panel did, as values of `grokscope.edits`; `other` is then the edited trace."""
    written: Sequence[str]
    """The same as Python."""
    given: Trace | None
    """The trace that was given to be compared with, whatever `other` is now: what a patch takes from."""
    vectors: Mapping[str, np.ndarray]
    """Directions [D] of the user's own by name, to steer with."""
    answers: Mapping[str, xr.Dataset]
    """What the Answers panel shows, by name."""
    text: int
