"""An atlas of experts: for each of every layer what it is called for, by whom, in what company, and a page to wander in.

`model.atlas(texts)` makes one, `from_recording` from what another engine recorded; atlases add up exactly, to the bit.

May import sweeps, tables, analysis and what is below them. Read atlas.py first.
"""

from grokscope.arguments import offered
from grokscope.atlas.atlas import Atlas
from grokscope.atlas.collecting import from_recording
from grokscope.atlas.file import open_atlas, save
from grokscope.atlas.labelling import Context, label
from grokscope.atlas.neighbours import neighbours
from grokscope.atlas.page import page
from grokscope.atlas.tables import table, tables

__all__ = ["Atlas", "Context", "from_recording", "label", "neighbours", "open_atlas", "page", "save", "table", "tables"]

__getattr__ = offered(globals(), "grokscope.atlas")
