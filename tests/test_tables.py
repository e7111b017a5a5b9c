"""Tables of pictures and labels."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from linnaeus.data.sources import Columns, open_source
from linnaeus.errors import DataError, SettingError
from pictures import save_folder


def table(path: Path, rows: list[dict[str, object]], *, delimiter: str = ",") -> Path:
    """Write rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "semicolon", "parquet"])
def test_tables(tmp_path: Path, kind: str) -> None:
    """CSV and Parquet give paths, labels, parts and groups; paths start from the table's folder."""
    save_folder(tmp_path, {"p": 4})
    rows = [
        {"path": f"p/{i}.png", "label": "ab"[i % 2], "split": "train" if i < 2 else "Test", "group": f"g{i // 2}"}
        for i in range(4)
    ]
    path = tmp_path / ("t.parquet" if kind == "parquet" else "t.csv")
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        table(path, rows, delimiter=";" if kind == "semicolon" else ",")
    source = open_source(path)
    assert source.classes == ("a", "b")
    assert source.split is not None
    assert source.split.tolist() == [0, 0, 2, 2]
    assert source.groups is not None
    assert source.groups.tolist() == [0, 0, 1, 1]
    assert source.read(3).shape == (12, 12, 3)


def test_a_table_of_other_column_names(tmp_path: Path) -> None:
    """Columns names the columns; one that is named must be there."""
    save_folder(tmp_path, {"p": 2})
    path = table(tmp_path / "t.csv", [{"file": f"p/{i}.png", "y": 10 - i} for i in range(2)])
    source = open_source(path, columns=Columns(path="file", label="y"))
    assert source.classes == ("9", "10")
    assert source.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"a column 'path'.*file, y"):
        open_source(path)
    with pytest.raises(DataError, match="'patient'"):
        open_source(path, columns=Columns(path="file", label="y", group="patient"))
    with pytest.raises(SettingError):
        Columns(path="")


def test_an_empty_group_is_a_group_of_its_own(tmp_path: Path) -> None:
    """Rows without a group do not belong together."""
    save_folder(tmp_path, {"p": 4})
    groups = ["", "x", "", "x"]
    rows = [{"path": f"p/{i}.png", "label": i % 2, "group": groups[i]} for i in range(4)]
    source = open_source(table(tmp_path / "t.csv", rows))
    assert source.groups is not None
    assert source.groups.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\np/0.png,a\np/8.png,b\np/9.png,b\n", "2 of 3 missing"),
        ("path,label\np/0.png,a\np/1.png,\n", "image 1"),
        ("path,label\n,a\np/1.png,b\n", "row 2"),
        ("path,label\np/0.png,a,b\n", "row 2"),
        ("path,label,split\np/0.png,a,train\np/1.png,b,holdout\n", "'holdout'"),
        ("path,label\n", "none in"),
        ("", "of nothing"),
        ('path,label\n"p/0.png,a\n', "read"),
        ("path,label\n\udcff,a\n", "UTF-8"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    """Missing files, empty cells, uneven rows, unknown parts, no rows and broken text are named."""
    save_folder(tmp_path, {"p": 2})
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        open_source(path)


def test_metadata_is_a_table_only_without_class_folders(tmp_path: Path) -> None:
    """metadata.csv counts in a folder of plain pictures and is passed over beside class folders."""
    save_folder(tmp_path / "flat", {"pictures": 2})
    rows = [{"path": f"pictures/{i}.png", "label": "xy"[i]} for i in range(2)]
    table(tmp_path / "flat" / "metadata.csv", rows)
    assert open_source(tmp_path / "flat").classes == ("x", "y")
    save_folder(tmp_path / "deep", {"a": 1, "b": 1})
    table(tmp_path / "deep" / "metadata.csv", rows)
    assert open_source(tmp_path / "deep").classes == ("a", "b")


SETS = (["cat", "dog"], ["dog"], [], ["cat"])


def test_several_labels_in_a_table(tmp_path: Path) -> None:
    """A separator, a column of lists and columns of 0 and 1 give the same sets; a row may have no label."""
    save_folder(tmp_path, {"p": 4})
    rows = [{"path": f"p/{i}.png", "label": " ;".join(names), "cat": int("cat" in names), "dog": "dog" in names}
            for i, names in enumerate(SETS)]  # fmt: skip
    path = table(tmp_path / "t.csv", rows)
    parquet.write_table(pa.Table.from_pylist([{**row, "label": names} for row, names in zip(rows, SETS)]),
                        tmp_path / "t.parquet")  # fmt: skip
    found = [
        open_source(path, columns=Columns(separator=";")),
        open_source(path, columns=Columns(classes=("cat", "dog"))),
        open_source(tmp_path / "t.parquet"),
    ]
    for source in found:
        assert source.classes == ("cat", "dog")
        assert source.targets is not None
        assert source.targets.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]
        assert [source.label_of(i) for i in range(4)] == [tuple(names) for names in SETS]
        assert source.labels.tolist() == [0, 1, 2, 0]
        assert any("1 picture has no label" in note for note in source.notes)


def test_several_labels_are_never_guessed(tmp_path: Path) -> None:
    """Without a separator a cell is one label, and a note tells how to read several."""
    save_folder(tmp_path, {"p": 2})
    source = open_source(
        table(tmp_path / "t.csv", [{"path": f"p/{i}.png", "label": "a|b" if i else "c"} for i in (0, 1)])
    )
    assert source.targets is None
    assert source.classes == ("a|b", "c")
    assert any("label_separator='|'" in note for note in source.notes)


def test_columns_of_flags_that_are_wrong(tmp_path: Path) -> None:
    """Anything but 0 and 1 is named with its row."""
    save_folder(tmp_path, {"p": 2})
    path = table(tmp_path / "t.csv", [{"path": f"p/{i}.png", "a": 1, "b": (0, "?")[i]} for i in (0, 1)])
    with pytest.raises(DataError, match="row 3"):
        open_source(path, columns=Columns(classes=("a", "b")))
