"""A corpus through a run: documents in, counters out, on one process or many.

May import running, analysis, tables and what is below them. Read sweep.py first.
"""
