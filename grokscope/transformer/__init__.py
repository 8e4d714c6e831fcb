"""The forward pass: JAX and nothing else.

May import config and sites. Read block.py first.
"""
