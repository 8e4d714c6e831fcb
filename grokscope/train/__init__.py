"""How the embedded model was made, for models of your own. Start with `loop.py`; `pocket.py` is its recipe."""
