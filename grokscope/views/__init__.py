"""What a panel shows, as frozen values that tests read; no JAX and no browser.

May import analysis, trace and what is below them. Read routing.py first.
"""
