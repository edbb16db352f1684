"""What is said of a name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, found: str, known: Iterable[str]) -> str:
    """ "WHAT is FOUND, expected one of KNOWN", and the nearest of them if one is near."""
    known = list(known)
    return f"{what} is {found!r}, expected one of {', '.join(known)}{nearest(found, known)}"


def nearest(found: str, known: Iterable[str]) -> str:
    """ " (did you mean NAME?)", or nothing if no name is near."""
    near = difflib.get_close_matches(found, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
