"""The text that a command is about: the argument, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

import typer

from grokscope.text.given import decoded

LIMIT = 1 << 26
"""Bytes of a text that one command takes; a model's prompt has a thousandth of it."""


def read_text(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file or standard input; exactly one of the two must be given."""
    if (text is None) == (file is None):
        raise typer.BadParameter("give one text, or one --file")
    if text is not None:
        return text
    if str(file) == "-":
        return decoded(_bounded(sys.stdin.buffer, "-"), "-")
    with open(Path(str(file)).expanduser(), "rb") as stream:
        return decoded(_bounded(stream, str(file)), str(file))


def _bounded(stream: IO[bytes], name: str) -> bytes:
    """All of it. A pipe may be meant, so that a size is not asked for; what has no end is refused all the same."""
    data = stream.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f"{name}: wanted a text of at most {LIMIT:,} bytes, got more; cut it, or sweep it")
    return data
