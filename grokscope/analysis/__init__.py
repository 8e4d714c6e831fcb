"""Traces -> labelled arrays and tables; functions only. Start with `tables.py`."""
