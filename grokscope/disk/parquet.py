"""Parquet files of strangers: rows one after another, and nothing that unpacks without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.harmless import told, visible

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

FREE, MOST_PACKED = 1 << 28, 200
"""Bytes that a part of a file may unpack to whatever its size; of more, so many for each byte of the file."""


def parquet_file(path: Path) -> ParquetFile:
    """A Parquet file, open. Texts that it holds once stay so in memory, however often they stand there."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := [n for n in names if names.count(n) > 1]:
            raise ValueError(f"two columns {told(twice[0])}")
        kinds = {n: file.schema_arrow.field(n).type for n in names}
        return parquet.ParquetFile(path, read_dictionary=[n for n, kind in kinds.items() if pyarrow.types.is_string(kind)])
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _damaged(path, error) from error


def check_unpacked(file: ParquetFile, columns: Sequence[str]) -> None:
    """Raise ValueError where columns unpack to far more than they are in the file."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        parts = [group.column(at) for at in range(group.num_columns)]
        for part in (p for p in parts if p.path_in_schema in columns):
            packed, size = part.total_compressed_size, part.total_uncompressed_size
            if size > max(FREE, MOST_PACKED * packed):
                raise ValueError(f"{told(part.path_in_schema)} of {size:,} bytes out of {packed:,}: nothing packs so well")


def parquet_rows(file: ParquetFile, path: Path, columns: Sequence[str], longest: int) -> Iterator[dict[str, Any]]:
    """Its rows, one after another, no text of which has more than `longest` characters.

    Raises ValueError, naming the file, for what cannot be read, or unpacks to too much.
    """
    import pyarrow

    try:
        check_unpacked(file, columns)
        for batch in file.iter_batches(batch_size=256, columns=list(columns)):
            for at in range(len(batch)):
                row = {name: batch.column(name)[at].as_py() for name in columns}
                if any(isinstance(value, str) and len(value) > longest for value in row.values()):
                    raise ValueError(f"a document of more than {longest:,} characters")
                yield row
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, KeyError, OverflowError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> ValueError:
    said = visible(" ".join(str(error).split()))[:200] or type(error).__name__
    return ValueError(f"{path}: wanted Parquet, got something else ({said}); convert or download it again")
