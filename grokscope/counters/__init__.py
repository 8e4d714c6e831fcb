"""Mergeable sufficient statistics of routing, for a text of any length. No JAX.

May import trace and recordings. Read counters.py first, then tally.py.
"""
