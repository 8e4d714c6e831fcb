"""What a run leaves behind: named arrays, in memory and on disk. No JAX, no analysis.

May import config, sites and prompt. Read trace.py first.
"""
