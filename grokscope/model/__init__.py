"""The door: `Model` with its verbs, and `load`, which makes one.

May import everything that runs, counts and sweeps; of what is below nothing imports it. Read model.py first.
"""
