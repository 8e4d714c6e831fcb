"""What a run leaves behind: `trace.py` (the value), `store.py` (on disk)."""

from grokscope.trace.store import open_trace, save_trace
from grokscope.trace.trace import Recorder, Trace

__all__ = ["Recorder", "Trace", "open_trace", "save_trace"]
