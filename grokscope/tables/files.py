"""Tables <-> files, CSV or Parquet, with the types of `schema`; text that a spreadsheet cannot take for a formula."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from grokscope.devices.memory import free_memory
from grokscope.disk.parquet import read_columns, with_texts
from grokscope.disk.reading import opened, read_json
from grokscope.harmless import told, visible
from grokscope.tables import schema

_FORMULA = tuple("=+-@|%\t\r\n＝＋－＠")


def _is_formula(text: str) -> bool:
    rest = text.lstrip()
    while rest and unicodedata.category(rest[0]) in ("Cf", "Zs", "Cc") and rest[0] not in "\t\r\n":
        rest = rest[1:]
    return rest.startswith(_FORMULA) or text.startswith(_FORMULA)


def spreadsheet_safe(text: str) -> str:
    """`text` with an apostrophe in front where a spreadsheet could take it for a formula, also behind invisible characters.

    Also where apostrophes of its own are in front of one, so that `spreadsheet_plain` gives back what there was.
    """
    return f"'{text}" if _is_formula(text.lstrip("'")) else text


def spreadsheet_plain(text: str) -> str:
    """What `spreadsheet_safe` was given."""
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


def _mapped(column: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """Text changed, each different text once."""
    coded = column.combine_chunks().dictionary_encode()
    names = pa.array([change(s) for s in coded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([names.take(coded.indices)])


def as_arrow(name: str, frame: pd.DataFrame, about: dict[str, Any]) -> pa.Table:
    """A frame as the table `name` of the schema: its columns and types, null where the frame lacks one. `about`: metadata."""
    arrays, fields = [], []
    for c in schema.TABLES[name].columns:
        if c.type == "logits":
            if c.name not in frame or not len(frame):
                continue
            flat = np.concatenate(frame[c.name].to_numpy()).astype(np.float32)
            values: Any = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(flat) // len(frame))
        elif c.name not in frame:
            values = pa.nulls(len(frame), c.type)
        else:
            try:
                values = pa.array(frame[c.name], from_pandas=True).cast(c.type)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{name}.{c.name}: wanted {c.type}, got numbers beyond it ({error}); report this") from error
        if not c.null and values.null_count:
            raise ValueError(f"{name}.{c.name}: wanted a value in every row, got {values.null_count} empty; report this")
        arrays.append(values)
        told = {"meaning": c.meaning, "unit": c.unit, "empty": c.null or "never"}
        fields.append(pa.field(c.name, values.type, bool(c.null), {k: v for k, v in told.items() if v}))
    about = {"grokscope": json.dumps({"table": name, **about})}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, about))


def write_parquet(table: pa.Table, folder: Path, name: str) -> None:
    """One file; above schema.PART_ROWS rows a folder of files."""
    if len(table) <= schema.PART_ROWS:
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        return
    (folder / name).mkdir()
    for part, start in enumerate(range(0, len(table), schema.PART_ROWS)):
        path = folder / name / f"part-{part:03}.parquet"
        pq.write_table(table.slice(start, schema.PART_ROWS), path, compression="zstd")


def write_csv(table: pa.Table, folder: Path, name: str) -> None:
    """One file, UTF-8 with the mark that spreadsheets look for."""
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(at, field.name, _mapped(table[field.name], spreadsheet_safe))
    table = table.select([f.name for f in table.schema if not pa.types.is_fixed_size_list(f.type)])
    with (folder / f"{name}.csv").open("wb") as file:
        file.write("\ufeff".encode())
        pcsv.write_csv(table, file)


def read_csv(path: str | Path) -> pd.DataFrame:
    """One of our CSV tables with the schema's types, as it was before it became CSV.

    pandas alone turns tokens such as `nan`, `NA` and `null` into missing values, and leaves the apostrophe in front of those that
    a spreadsheet could take for a formula. Whole numbers of which some are missing are pandas' nullable ones.
    """
    convert = pcsv.ConvertOptions(
        column_types={n: t for n, t in schema.TYPES.items() if t != "logits"}, null_values=[""],
        strings_can_be_null=True, quoted_strings_can_be_null=False,
    )  # fmt: skip
    try:
        block = pcsv.ReadOptions(block_size=1 << 24)  # a row must fit
        with opened(path) as file:
            table = pcsv.read_csv(file, block, pcsv.ParseOptions(newlines_in_values=True), convert)
    except pa.ArrowException as error:
        raise ValueError(
            f"{path}: wanted a table that gs.export wrote, got another or a damaged one ({visible(str(error))}); export it again"
        ) from error
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(at, field.name, _mapped(table[field.name], spreadsheet_plain))
    return _frame(table)


def _frame(table: pa.Table) -> pd.DataFrame:
    """pandas' own types; nullable ones for whole numbers of which some are missing, which would else become floats."""
    nullable = {pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
    return pd.DataFrame(
        {
            name: column.to_pandas(types_mapper=nullable.get if column.null_count else None)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )


def read_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """All tables that `grokscope.export` wrote to `folder`, from either format, with the types that its page says.

    Raises FileNotFoundError where there are none, ValueError for a table that is damaged or of a later version.
    """
    folder, found = Path(folder).expanduser(), {}
    if not (run := folder / "run.json").is_file():
        raise FileNotFoundError(f"{folder}: wanted a folder that gs.export wrote, got one without run.json; name another")
    about = read_json(run)
    if (had := about.get("schema") if isinstance(about, dict) else about) != schema.SCHEMA:
        raise ValueError(f"{folder}: wanted tables of schema {schema.SCHEMA}, got {told(had)}; export them again")
    for name in schema.TABLES:
        csv, one, parts = (folder / p for p in (f"{name}.csv", f"{name}.parquet", name))
        if csv.is_file():
            found[name] = read_csv(csv)
        elif one.is_file() or parts.is_dir():
            try:
                paths = [one] if one.is_file() else sorted(parts.glob("*.parquet"))
                most = free_memory() // 2
                found[name] = _frame(with_texts(read_columns(paths, None, most), most))
            except (pa.ArrowException, OSError, ValueError) as error:
                said = visible(str(error))
                raise ValueError(f"{one}: wanted a whole table, got a damaged one ({said}); export it again") from error
    return found
