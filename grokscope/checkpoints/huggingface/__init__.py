"""Checkpoints of the Hugging Face hub: a table for each family (`families/`), one reader for all of them.

What belongs to the file and not to the model ends here: names, fused and transposed matrices, interleaved rotary pairs,
quantised forms, slices of several ranks, tensors that take no part. May import config and transformer. Read
families/llama.py first.
"""

from __future__ import annotations

from grokscope.checkpoints.huggingface.checkpoint import describe, idle, load, problems, read_config, recognises
from grokscope.checkpoints.huggingface.files import promised_bytes
from grokscope.checkpoints.huggingface.hub import download, is_hub_id

__all__ = ["describe", "download", "idle", "is_hub_id", "load", "problems", "promised_bytes", "read_config", "recognises"]
