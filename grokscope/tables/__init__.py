"""Traces, recordings, counters and every analysis as tidy tables in CSV and Parquet.

May import analysis and what is below it. Read schema.py first, then export.py.
"""
