"""Text and tokens: tokenizers of every kind behind three methods, chat templates, what a reader can see.

May import nothing of ours. Read tokenizer.py first.
"""
