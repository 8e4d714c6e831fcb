"""Products and attention for GPUs, behind the signatures of experts.py and attention.py.

May import transformer's weights and ops. Read flash.py first, then hopper.py.
"""
