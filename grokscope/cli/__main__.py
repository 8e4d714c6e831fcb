"""`python -m grokscope.cli`."""

from grokscope.cli.main import main

main()
