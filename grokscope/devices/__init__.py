"""Where arrays lie: what fits, which form a device wants, how weights are spread over several.

May import transformer, checkpoints and trace. Read memory.py first, then placement.py.
"""
