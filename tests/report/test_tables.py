"""Tables of summaries."""

import pytest

from ldm_morph_jax.report.tables import format_summary_table


def statistics(mean, std, n=4, n_excluded=0):
    return {"mean": mean, "std": std, "median": mean, "n": n, "n_excluded": n_excluded}


def make_summary(**changes):
    summary = {
        "method": "LDM-Morph",
        "dataset": "phantom",
        "split": "test",
        "n_pairs": 4,
        "dsc_initial": statistics(0.7, 0.1),
        "dsc": statistics(0.85, 0.05),
        "nonpositive_jacobian_percent": statistics(0.25, 0.5),
        "seconds_per_pair": statistics(0.0123, 0.001),
        "structures": {},
    }
    return summary | changes


def test_one_summary():
    lines = format_summary_table(make_summary()).splitlines()
    assert lines[0] == "LDM-Morph on phantom, test: 4 pairs, mean (std)"
    assert lines[3].split("  ")[0] == "DSC"
    assert lines[3].split() == ["DSC", "0.700", "(0.100)", "0.850", "(0.050)"]
    assert len({len(line) for line in lines[1:]}) == 1  # aligned
    assert "0.0123 (0.0010)" in lines[-1]


def test_structures_and_excluded_pairs():
    structure = {
        "dsc_initial": statistics(0.6, 0.1),
        "dsc": statistics(None, None, n=0, n_excluded=4),
        "hd95_initial_px": statistics(3.0, 1.0),
        "hd95_px": statistics(2.0, 1.0),
    }
    table = format_summary_table(
        make_summary(
            dsc=statistics(0.85, 0.05, n=3, n_excluded=1),
            structures={"LV": structure, "RV": structure},
        )
    )
    assert "DSC [n=3]" in table
    row = next(line for line in table.splitlines() if line.startswith("- LV"))
    assert row.split()[-3:] == ["0.600", "(0.100)", "-"]


def test_several_summaries_in_markdown():
    other = make_summary(method="SyN | ANTs", dsc=statistics(0.8, 0.1))
    lines = format_summary_table([make_summary(), other], markdown=True).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    assert cells[0][:2] == ["method", "DSC"]
    assert cells[2][:2] == ["initial", "0.700 (0.100)"]
    assert cells[3][:2] == ["LDM-Morph", "0.850 (0.050)"]
    assert "SyN \\| ANTs" in lines[6]


def test_several_datasets():
    table = format_summary_table([make_summary(), make_summary(dataset="sunnybrook")])
    assert table.count("initial") == 2 and "sunnybrook, test" in table
    with pytest.raises(ValueError, match="found none"):
        format_summary_table([])
