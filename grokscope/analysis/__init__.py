"""Trace or counters (or weights) -> labelled answers with null and interval; one question a file.

May import counters, trace and running's `Loaded`. Read measure.py first, then load.py.
"""
