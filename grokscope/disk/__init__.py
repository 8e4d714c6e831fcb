"""Files of strangers read within limits, files of ours written whole or not at all. No JAX.

May import harmless alone. Read writing.py and reading.py; arrays.py and parquet.py stand on the second.
"""
