"""Text whose documents may be of any number, and each of no more than a limit: what is packed may unpack without end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

DOCUMENT_LIMIT = 1 << 26
"""Characters of one document, or of the line that it stands in: ten times the longest book."""


class BoundedText:
    """A stream of text, read as a whole or by lines, neither longer than the limit. Raises ValueError, naming the file."""

    def __init__(self, stream: IO[str], name: str | Path) -> None:
        self.stream, self.name = stream, name

    def read(self) -> str:
        """All of it."""
        return self._checked(self.stream.read(DOCUMENT_LIMIT + 1), "")

    def __iter__(self) -> Iterator[str]:
        lines = iter(lambda: self.stream.readline(DOCUMENT_LIMIT + 1), "")
        for number, line in enumerate(lines, 1):
            yield self._checked(line, f", line {number}")

    def _checked(self, text: str, where: str) -> str:
        if len(text) > DOCUMENT_LIMIT:
            raise ValueError(f"{self.name}{where}: wanted documents of at most {DOCUMENT_LIMIT:,} characters, got more; cut it")
        return text
