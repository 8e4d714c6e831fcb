"""The forward pass; JAX and nothing else. Start with `block.py`."""
