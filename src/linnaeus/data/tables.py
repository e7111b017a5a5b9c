"""CSV and Parquet tables that name a picture and its label in each row."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.data.arrays import existing_files
from linnaeus.data.labelled import Reading, some, split_code
from linnaeus.errors import DataError, MissingExtraError, SettingError

_Table = dict[str, list[Any]]

_FLAGS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
_MARKS = (";", "|")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of a table's columns; `split` and `group` may be absent from it while they bear these names.

    `separator` parts the labels of pictures that have several; empty, a cell is one label whatever it holds. `classes`
    are columns of 0 and 1, one for each class, that stand in place of `label`.
    """

    path: str = "path"
    label: str = "label"
    split: str = "split"
    group: str = "group"
    separator: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role in ("path", "label", "split", "group"):
            if not isinstance(getattr(self, role), str) or not getattr(self, role):
                got = repr(getattr(self, role))
                raise SettingError(f"a column name for {role}", got=got, fix="Give the name as text.")


def read_table(path: Path, columns: Columns) -> Reading:
    """Read a .csv, .tsv or .parquet file; relative paths in it start from its own folder.

    Raises:
        DataError: the file or a picture it names is missing, a column is missing, or a cell is empty. Where pictures
            may have several labels, a cell without any is a picture that has none.
        MissingExtraError: for Parquet without pyarrow.
    """
    table = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    images = _paths(path, _column(table, columns.path, path))
    split = _optional(table, columns.split, path, usual="split")
    groups = _optional(table, columns.group, path, usual="group")
    labels, notes = _labels(table, columns, path)
    return Reading(
        images=images,
        labels=labels,
        classes=columns.classes,
        split=None if split is None else np.array([split_code(str(word)) for word in split], np.int8),
        groups=None if groups is None else _group_numbers(groups),
        notes=_repeated(images) + notes,
    )


def _labels(table: _Table, columns: Columns, path: Path) -> tuple[list[Any] | NDArray[np.uint8], tuple[str, ...]]:
    """Return one label for each row, a list of them, or 0 and 1 for each class; and notes."""
    if columns.classes:
        return np.stack([_flags(_column(table, name, path), name, path) for name in columns.classes], axis=1), ()
    cells = _column(table, columns.label, path)
    if any(isinstance(cell, list) for cell in cells):  # of Parquet
        return [[name if name is None else str(name) for name in cell or ()] for cell in cells], ()
    if columns.separator:
        parts = [str("" if cell is None else cell).split(columns.separator) for cell in cells]
        return [[name.strip() for name in names if name.strip()] for names in parts], ()
    return cells, _unused_marks(cells)


def _flags(cells: list[Any], name: str, path: Path) -> NDArray[np.uint8]:
    """Return uint8 (N,) for a column that says of each picture whether it is of a class."""
    values = [_FLAGS.get(str(cell).strip().lower()) for cell in cells]
    if wrong := [row for row, value in enumerate(values, 2) if value is None]:
        got = f"others in {len(wrong)} rows: {some(f'row {i}' for i in wrong)}"
        raise DataError(f"0 or 1 in the column {name!r} of {path}", got=got, fix="Fill or drop these rows.")
    return np.array(values, np.uint8)


def _unused_marks(cells: list[Any]) -> tuple[str, ...]:
    """Say how labels that look like several would be read as several."""
    found = {mark: [cell for cell in cells if isinstance(cell, str) and mark in cell] for mark in _MARKS}
    return tuple(
        f"{len(having)} labels hold {mark!r}, such as {having[0]!r}, and count as one each; "
        f"label_separator={mark!r} would read several from each."
        for mark, having in found.items()
        if having
    )


def _read_csv(path: Path) -> _Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            header = next(rows, [])
            body = [row for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fix = "Save it as CSV in UTF-8."
        raise DataError("a table that can be read", got=f"{path}: {error}", fix=fix) from error
    if uneven := [i for i, row in enumerate(body, 2) if len(row) != len(header)]:
        got = f"other numbers of cells in {len(uneven)} rows: {some(f'row {i}' for i in uneven)}"
        raise DataError(f"{len(header)} cells in every row of {path}", got=got, fix="Put texts with commas in quotes.")
    return {name: [row[k] for row in body] for k, name in enumerate(header)}


def _read_parquet(path: Path) -> _Table:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="parquet") from error
    try:
        table: _Table = parquet.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        fix = "Write the file anew."
        raise DataError("a Parquet file that can be read", got=f"{path}: {error}", fix=fix) from error
    return table


def _column(table: _Table, name: str, path: Path) -> list[Any]:
    if name not in table:
        fix = "Name the right column or rename it."
        raise DataError(f"a column {name!r} in {path}", got=f"the columns {some(table, 20) or 'of nothing'}", fix=fix)
    return table[name]


def _optional(table: _Table, name: str, path: Path, *, usual: str) -> list[Any] | None:
    """Return a column that may be absent, unless the user has named it."""
    return None if name == usual and name not in table else _column(table, name, path)


def _paths(table: Path, cells: list[Any]) -> tuple[str, ...]:
    if wrong := [row for row, cell in enumerate(cells, 2) if not isinstance(cell, str) or not cell.strip()]:
        got = f"no path in {len(wrong)} rows: {some(f'row {i}' for i in wrong)}"
        raise DataError(f"a path in every row of {table}", got=got, fix="Fill or drop these rows.")
    return existing_files([str(table.parent / cell) for cell in cells], named_in=str(table))


def _group_numbers(cells: list[Any]) -> NDArray[np.int64]:
    """Return a number for each group in the order of appearance; an empty cell is a group of its own."""
    numbers: dict[object, int] = {}
    keys = [(i,) if cell is None or cell == "" else cell for i, cell in enumerate(cells)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _repeated(images: tuple[str, ...]) -> tuple[str, ...]:
    count = len(images) - len(set(images))
    return (f"{count} rows name a picture that an earlier row names already.",) if count else ()
