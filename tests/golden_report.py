"""Collects how far every block is from its golden numbers, for the table at the end of the run.

tests/conftest.py attaches the records to the test reports (which also travel from xdist workers to
the controller) and prints the table.
"""

BLOCK = "golden block"

pending: list[tuple[str, float, float]] = []  # of the test that runs; drained by conftest.py


def record(block: str, error: float, tolerance: float) -> None:
    """Note the error of a block for the table, then assert that it is within the tolerance."""
    pending.append((block, float(error), tolerance))
    assert error <= tolerance, f"{block}: relative error {error:.2e}, tolerance {tolerance:.0e}"


def table(user_properties) -> list[str]:
    """Lines of the table: every block's largest error over all reports' (name, value) pairs."""
    worst = {}
    for name, value in user_properties:
        if name == BLOCK:
            block, error, tolerance = value
            # `not <=` keeps a NaN
            if block not in worst or not error <= worst[block][0]:
                worst[block] = (error, tolerance)
    width = max((len(block) for block in worst), default=0)
    rows = [f"{BLOCK:<{width}} | largest relative error | tolerance"]
    for block, (error, tolerance) in sorted(worst.items()):
        rows.append(f"{block:<{width}} | {error:>22.2e} | {tolerance:>9.0e}")
    return rows if worst else []
