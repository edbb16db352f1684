"""The paper's numbers: consistent with each other, and with what the experiment cards quote."""

from pathlib import Path

import pytest

from ldm_morph_jax.paper.reported import TABLE_1, TABLE_2, TABLE_3

CONFIGS = Path(__file__).parents[2] / "configs"
DATASETS = ("camus_2ch", "camus_4ch", "echonet", "acdc")
BASELINES = ("voxelmorph", "cyclemorph", "diffusemorph", "transmorph", "transmatch")


def card(path):
    """A configuration's docstring, on one line."""
    return " ".join(path.read_text(encoding="utf-8").split('"""')[1].split())


def test_the_papers_tables_are_consistent():
    """Rows that the paper prints twice are the same here, and no row is missing."""
    assert len(TABLE_1) == 9 * 4 and len(TABLE_2) == 9 * 2 and len(TABLE_3) == 4 * 4
    for dataset in DATASETS:
        ours = TABLE_1["ldm_morph", dataset]
        assert TABLE_3[(True, True, True), dataset][:2] == ours[:2]
        assert ours.dsc[0] == max(TABLE_1[key].dsc[0] for key in TABLE_1 if key[1] == dataset)
    for key, score in TABLE_2.items():
        if key[0] in ("initial", "syn", "lddmm"):
            assert score[:2] == TABLE_1[key][:2]


@pytest.mark.parametrize("dataset", DATASETS)
def test_experiments_quote_their_row(dataset):
    text = card(CONFIGS / f"{dataset}.py")
    (dsc, dsc_std), (folds, folds_std), _ = TABLE_1["ldm_morph", dataset]
    assert f"DSC {dsc:.3f} ({dsc_std:.3f}), {folds:.3f} ({folds_std:.3f}) % of pixels" in text
    dsc, std = TABLE_1["initial", dataset].dsc
    assert f"without registration DSC {dsc:.3f} ({std:.3f})" in text


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_quote_their_row(method):
    text = card(CONFIGS / "baselines" / f"{method}.py")
    (dsc, _), (folds, _), _ = TABLE_1[method, "camus_2ch"]
    assert f"Table 1: DSC {dsc:.3f}, {folds:.3f} % of pixels with J <= 0 on CAMUS 2CH" in text
