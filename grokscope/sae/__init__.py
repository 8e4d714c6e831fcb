"""Sparse autoencoders and transcoders in SAELens' format: features to see, to sweep and to edit, and what they say to routers.

`load` reads one; `seen`, `patch`, `top_contexts`, `router_push` and `predict_choice` ask about its features; `train` makes a small
one.

May import experiments and what is below it. Read sae.py first.
"""

from grokscope.arguments import offered
from grokscope.sae.choice import predict_choice
from grokscope.sae.contexts import score, top_contexts
from grokscope.sae.loading import load, save
from grokscope.sae.patching import patch
from grokscope.sae.pushes import router_push
from grokscope.sae.sae import Sae
from grokscope.sae.seen import seen
from grokscope.sae.train import train

__all__ = ["Sae", "load", "patch", "predict_choice", "router_push", "save", "score", "seen", "top_contexts", "train"]

__getattr__ = offered(globals(), "grokscope.sae")
