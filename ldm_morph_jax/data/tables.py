"""Reading CSV files that others wrote."""

import csv
from collections.abc import Iterator
from pathlib import Path


def read_rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) for every row; further columns are allowed, missing optional ones are "".

    Raises:
      ValueError: not a CSV file, a column is missing, a row of another length.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            header = [name.strip() for name in next(table, [])]
            if not set(columns) <= set(header):
                raise ValueError(
                    f"{path}: its header is {','.join(header) or 'empty'}, expected the columns "
                    f"{','.join(columns)}"
                )
            for values in table:
                if not values:
                    continue
                if len(values) != len(header):
                    raise ValueError(
                        f"{path}, line {table.line_num}: found {len(values)} values, expected "
                        f"{len(header)} as in the header"
                    )
                row = dict.fromkeys(optional, "")
                row.update(zip(header, (value.strip() for value in values), strict=True))
                yield table.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error
