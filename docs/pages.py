"""Pictures of the pages that `ldm-morph track` and `register` write, wide and on a phone.

ldm-morph track --example --out beat/
ldm-morph register --example --out pair/
PYTHONPATH=tests python docs/pages.py beat/ pair/
"""

import io
import sys
from pathlib import Path

import browser
from PIL import Image

WIDE, PHONE = (1400, 1000), (390, 844)


def main(*folders: str) -> None:
    for name, folder in zip(("track", "register"), folders, strict=True):
        html = f"file://{(Path(folder) / 'report.html').resolve()}"
        with browser.page() as page:
            shots = []
            for (width, height), scheme in ((WIDE, "light"), (PHONE, "dark")):
                page.look(scheme)
                page.open(html, width=width, height=height)
                shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        both = Image.new("RGB", (WIDE[0] + 20 + PHONE[0], WIDE[1]), "white")
        both.paste(shots[0], (0, 0))
        both.paste(shots[1], (WIDE[0] + 20, 0))
        both.quantize(128).save(Path(__file__).parent / f"images/page_{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
