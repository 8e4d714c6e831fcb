"""The text that a command is about: the argument, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from grokscope.text.given import decoded


def read_text(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file or standard input; exactly one of the two must be given."""
    if (text is None) == (file is None):
        raise typer.BadParameter("give one text, or one --file")
    if text is not None:
        return text
    return decoded(sys.stdin.buffer.read() if str(file) == "-" else Path(str(file)).expanduser().read_bytes(), str(file))
