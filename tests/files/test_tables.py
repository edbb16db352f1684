"""CSV files as people's programs write them."""

import pytest

from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.tables import numbers, read_rows

PLAIN = "id,moving,fixed\nJosé,a b.png,es.png\n"


@pytest.mark.parametrize(
    "data",
    {
        "plain": PLAIN.encode(),
        "byte-order mark": PLAIN.encode("utf-8-sig"),
        "Excel's Unicode text": PLAIN.replace(",", "\t").encode("utf-16"),
        "latin-1": PLAIN.encode("latin-1"),
        "semicolons": PLAIN.replace(",", ";").replace("\n", "\r\n").encode(),
        "blanks": b"id, moving , fixed\n Jos\xc3\xa9,a b.png , es.png\n",
        "empty rows": ("\n" + PLAIN.replace("\n", "\n,,\n") + "\n,,\n,,,,\n").encode(),
        "quoted": 'id,moving,fixed\n"José","a b.png","es.png"\n'.encode(),
    }.values(),
)
def test_one_table_however_written(tmp_path, data):
    path = tmp_path / "pairs.csv"
    path.write_bytes(data)
    [(_, row)] = read_rows(path, ("id", "moving", "fixed"), ("slice",))
    assert row == {"id": "José", "moving": "a b.png", "fixed": "es.png", "slice": ""}


def test_lines_are_counted_and_further_columns_kept(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("id,note\n\na,one\nb,\n")
    assert read_rows(path, ("id",)) == [
        (3, {"id": "a", "note": "one"}),
        (4, {"id": "b", "note": ""}),
    ]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "its header is empty, expected the columns id,moving"),
        (b"id,fixed\n", r"its header is id,fixed, expected the columns id,moving \(no moving\)"),
        (b"id,moving,id\n", "its header has id more than once"),
        (b"id,moving\na,b,c\n", "line 2: found 3 values, expected 2 as in the header"),
        (b"id,moving\na,b\nc\n", "line 3: found 1 values, expected 2 as in the header"),
        (b"PK\0\0", "not a CSV file"),
    ],
)
def test_bad_tables(tmp_path, data, message):
    path = tmp_path / "pairs.csv"
    path.write_bytes(data)
    with pytest.raises(FileError, match=message) as caught:
        read_rows(path, ("id", "moving"))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(FileError, match="no such file"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(FileError, match="is a folder, expected a CSV file"):
        read_rows(tmp_path)


def test_numbers_of_a_row():
    row = {"x": "1", "y": "2.5e1", "z": "nan", "name": "two"}
    assert numbers(row, ("x", "y"), "points.csv, line 2") == (1.0, 25.0)
    for columns, message in (
        (("x", "z"), "points.csv, line 2: x is '1', z is 'nan', expected numbers"),
        (("name",), "points.csv, line 2: name is 'two', expected a number"),
    ):
        with pytest.raises(FileError, match=message):
            numbers(row, columns, "points.csv, line 2")
