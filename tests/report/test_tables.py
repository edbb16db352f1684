"""Tables of summaries."""

from ldm_morph_jax.report.tables import format_summary_table, latex_table, markdown_table


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


def test_markdown_keeps_text_as_it_is():
    lines = markdown_table(["method", "DSC"], [["SyN | ANTs", "0.800"], ["ours", "0.9"]]).split(
        "\n"
    )
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["method", "DSC"]
    assert "SyN \\| ANTs" in lines[2] and "0.800" in lines[2] and "0.90" not in lines[3]
    assert lines[1].startswith("|:") and lines[1].endswith(":|")


def test_latex_escapes_and_emphasises():
    text = latex_table(
        ["Method", "% J <= 0"],
        [["a_b ✓", "1"], ["c & d", "2"]],
        caption="50 % of β",
        notes=["x < y"],
        bold=(1, 1),
    )
    rows = [
        [cell.strip() for cell in line.removesuffix(r"\\").split(" & ")]
        for line in text.split("\n")
        if line.endswith(r"\\")
    ]
    assert rows == [
        ["Method", r"\% J $\leq$ 0"],
        [r"a\_b $\checkmark$", "1"],
        [r"c \& d", r"\textbf{2}"],
    ]
    assert r"\caption{50 \% of $\beta$}" in text and r"\par\footnotesize x $<$ y" in text
    assert [line for line in text.split("\n") if "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
