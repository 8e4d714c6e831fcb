"""How the embedded model was made; users train their own small mixture with it.

May import model and what is below it. Read recipe.py first, then loop.py.
"""
