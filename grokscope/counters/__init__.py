"""Mergeable sufficient statistics of routing, for a text of any length. No JAX.

May import trace, recordings and what is below devices' JAX (memory.py). Read counters.py first, then tally.py.
"""
