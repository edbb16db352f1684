"""How the text of an option becomes its value, where cyclopts does not do what is wanted."""

import typing

from cyclopts import Parameter


def _whole_numbers(type_, tokens) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(token.value) for token in tokens)
    except ValueError:
        found = " ".join(token.value for token in tokens)
        raise ValueError(f"found {found!r}, expected a whole number") from None
    return numbers if typing.get_origin(type_) is tuple else numbers[0]


WHOLE = Parameter(converter=_whole_numbers, n_tokens=1)  # cyclopts itself rounds 2.5
WHOLE_PAIR = Parameter(converter=_whole_numbers, n_tokens=2)
WHOLE_FEW = Parameter(converter=_whole_numbers, n_tokens=-1)
