"""The text that a command is about: the argument, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def read_text(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file or standard input; exactly one of the two must be given."""
    if (text is None) == (file is None):
        raise typer.BadParameter("give one text, or one --file")
    if text is not None:
        return text
    try:
        return (
            sys.stdin.buffer.read().decode("utf-8") if str(file) == "-" else Path(str(file)).read_text(encoding="utf-8")
        )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: wanted UTF-8, got byte {error.object[error.start]:#x} at {error.start}; convert it, e.g. with iconv -t utf-8"
        ) from error
