"""A run over texts: traced, generated, scored, taken up again. It takes a `Loaded` and knows no `Model`.

May import devices, trace, checkpoints and what is below them. Read running.py first, then generation.py.
"""
