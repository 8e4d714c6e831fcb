"""Activations of a corpus on disk: rows of numbers by site and layer, and the table of tokens that they belong to. No JAX.

May import trace, the safetensors reader of checkpoints and what is below them. Read activations.py first.
"""
