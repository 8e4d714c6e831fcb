"""What a run leaves behind: `recorder.py` (its arrays), `trace.py` (with names), `store.py` (on disk)."""
