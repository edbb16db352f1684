"""Links of the documentation lead somewhere; references to documents in the code, too."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
IN_CODE = re.compile(r"\bdocs/[\w/]+\.(?:md|ipynb)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    missing = [
        link
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert missing == []


def test_code_names_documents_that_exist():
    missing = {}
    for folder in ("ldm_morph_jax", "configs", "launch", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            named = set(IN_CODE.findall(path.read_text(encoding="utf-8")))
            lost = {name for name in named if not (ROOT / name).exists()}
            if lost:
                missing[str(path.relative_to(ROOT))] = lost
    assert missing == {}
