"""How the text of an option becomes its value, where cyclopts does not do what is wanted."""

import typing

from cyclopts import Parameter


def whole_number(text: str) -> int:
    """ "3"; ValueError otherwise."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"found {text!r}, expected a whole number") from None


def _whole_numbers(type_, tokens) -> int | tuple[int, ...]:
    numbers = tuple(whole_number(token.value) for token in tokens)
    return numbers if typing.get_origin(type_) is tuple else numbers[0]


WHOLE = Parameter(converter=_whole_numbers, n_tokens=1)  # cyclopts itself rounds 2.5
WHOLE_PAIR = Parameter(converter=_whole_numbers, n_tokens=2)
WHOLE_FEW = Parameter(converter=_whole_numbers, n_tokens=-1)
