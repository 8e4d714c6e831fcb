"""What the pages of a Parquet file unpack to, by their own headers: the footer says it too, and nobody checks what it says.

A page header is a struct in Thrift's compact protocol. Its type and its two sizes come first, then how many values it has; the
rest is passed over, to find where the page's bytes begin. A reader makes room for what the header says, whatever the footer said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

HEADER_LIMIT = 1 << 24
"""Bytes of one header, as readers allow: it may hold the least and the largest value."""
_DEEPEST, _MOST = 8, 10_000
"""Structs in structs, and items of lists, of a header; real ones have 3 and a dozen."""
_SIZES, _OF_KIND = (1, 2, 3), (5, 7, 8)
"""Fields of a header: its type and its sizes, unpacked and in the file; and what else a page of each kind says, values first."""
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_WIDE = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8}


@dataclass(frozen=True)
class Page:
    """What one page unpacks to: bytes, and values (in a column of lists more than rows)."""

    bytes: int
    values: int


def pages(file: IO[bytes], start: int, length: int) -> Iterator[Page]:
    """The pages in a stretch of the file. Raises ValueError for headers that do not say what they unpack to."""
    at, end = start, start + length
    while at < end:
        packed, page, header = _header(file, at, end)
        if min(packed, page.bytes, page.values) < 0 or at + header + packed > end:
            raise ValueError(f"a page of {packed:,} bytes at {at:,}, where its column ends at {end:,}")
        yield page
        at += header + packed


def _header(file: IO[bytes], at: int, end: int) -> tuple[int, Page, int]:
    """(bytes in the file, what they unpack to, bytes of the header itself)."""
    size = 256
    while True:
        file.seek(at)
        data = file.read(min(size, end - at))
        try:
            return _Compact(data).page()
        except IndexError:  # the header goes on
            if len(data) < size or size >= HEADER_LIMIT:
                raise ValueError(f"a page at {at:,} whose header has no end") from None
            size *= 16


class _Compact:
    """As much of Thrift's compact protocol as it takes to pass over a struct. Raises IndexError where the bytes end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.items = data, 0, 0

    def page(self) -> tuple[int, Page, int]:
        """Of a page header: the bytes in the file, what they unpack to, and its own length."""
        found: dict[int, int] = {}
        values = 0
        for field, kind in self.fields():
            if field in _SIZES:
                if kind != _I32 or field in found:
                    raise ValueError("a page whose header has no sizes")
                found[field] = self.number()
            elif field in _OF_KIND and kind == _STRUCT:
                values += self.first_number()
            else:
                self.skip(kind, 1)
        if len(found) < len(_SIZES):
            raise ValueError("a page whose header has no sizes")
        return found[3], Page(found[2], values), self.at

    def first_number(self) -> int:
        """The first field of a struct, where it is a whole number; the rest is passed over."""
        first = 0
        for field, kind in self.fields():
            if field == 1 and kind == _I32:
                first += self.number()
            else:
                self.skip(kind, 2)
        return first

    def fields(self) -> Iterator[tuple[int, int]]:
        """(number, type) of each field of a struct; the value is to be read, or passed over, before the next."""
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.number()
            yield number, head & 15
            self.count(1)

    def skip(self, kind: int, depth: int) -> None:
        """Pass over a value."""
        if kind in _WIDE:
            self.pass_over(_WIDE[kind])
        elif kind in (_I16, _I32, _I64):
            self.varint()
        elif kind == _BINARY:
            self.pass_over(self.varint())
        elif kind in (_LIST, _SET) and depth < _DEEPEST:
            head = self.byte()
            size = head >> 4 if head >> 4 < 15 else self.varint()
            self.count(size)
            for _ in range(size):  # a truth value takes a byte in a list
                self.pass_over(1) if head & 15 in (_TRUE, _FALSE) else self.skip(head & 15, depth + 1)
        elif kind == _STRUCT and depth < _DEEPEST:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        else:
            raise ValueError("a page header of a kind that Parquet has not")

    def number(self) -> int:
        """A signed whole number."""
        coded = self.varint()
        return (coded >> 1) ^ -(coded & 1)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits in a page header")

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def pass_over(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise IndexError

    def count(self, items: int) -> None:
        self.items += items
        if self.items > _MOST:
            raise ValueError(f"a page header of more than {_MOST:,} items")
