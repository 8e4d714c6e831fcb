"""The command line, a module for each group of commands.

May import everything. Read main.py first.
"""
