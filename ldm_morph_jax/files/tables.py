"""Reading CSV files that others wrote, by hand, with Excel or with a script."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ldm_morph_jax.files.errors import FileError


def read_rows(
    path: str | Path, columns: Iterable[str] = (), optional: Iterable[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every row, in order.

    Every column of the file is in the row; a missing one of `optional` is "". Values are without
    the blanks around them. Commas, semicolons and tabs separate, whichever the header has; UTF-8
    with or without a byte-order mark, UTF-16 with one, or else Latin-1; empty rows are skipped.

    Raises:
        FileError: no such file, no text, a column of `columns` is missing or twice there, a row of
            another length.
    """
    path, columns = Path(path), tuple(columns)
    text = _text(path)
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=lambda mark: header_line.count(mark))
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [(lines.line_num, [value.strip() for value in values]) for values in lines]
    except csv.Error as error:
        raise FileError(f"{path}: not a CSV file ({error})") from None
    rows = [(line, values) for line, values in rows if any(values)]
    header = rows[0][1] if rows else []
    if missing := [name for name in columns if name not in header]:
        raise FileError(
            f"{path}: its header is {','.join(header) or 'empty'}, expected the columns "
            f"{','.join(columns)} (no {', '.join(missing)})"
        )
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise FileError(f"{path}: its header has {', '.join(twice)} more than once")
    table = []
    for line, values in rows[1:]:
        while len(values) > len(header) and not values[-1]:
            values.pop()  # Excel fills rows up to the longest
        if len(values) != len(header):
            raise FileError(
                f"{path}, line {line}: found {len(values)} values, expected {len(header)} as in "
                "the header"
            )
        row = dict.fromkeys(optional, "")
        row.update(zip(header, values, strict=True))
        table.append((line, row))
    return table


def numbers(row: Mapping[str, str], columns: Sequence[str], where: str) -> tuple[float, ...]:
    """The finite numbers in some columns of a row; `where` names it in messages.

    Raises FileError: another value.
    """
    values = []
    for column in columns:
        try:
            values.append(float(row[column]))
        except ValueError:
            values.append(math.nan)
    if not all(map(math.isfinite, values)):
        found = ", ".join(f"{column} is {row[column]!r}" for column in columns)
        raise FileError(f"{where}: {found}, expected {'numbers' if columns[1:] else 'a number'}")
    return tuple(values)


def _text(path: Path) -> str:
    if not path.is_file():
        found = "is a folder, expected a CSV file" if path.is_dir() else "no such file"
        raise FileError(f"{path}: {found}")
    data = path.read_bytes()
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileError(f"{path}: not a CSV file (it holds zero bytes)")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("latin-1")
