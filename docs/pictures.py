"""Make the README's pictures with the commands that it shows: a run on `shapes`, its page, its map, its sheets.

    make pictures                    # of runs/demo, which is trained first if it is not there
    make pictures ARGS=runs/other    # of another run on shapes

Needs Chromium with its driver (Debian: apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser, open_browser  # noqa: E402

DOCS = ROOT / "docs"
WIDTH = 880  # pixels, as wide as a README is shown
QUERY = "0"  # the first of the test images, whatever its neighbours are: nothing is picked for its looks


def barlowtwins(*words: str) -> None:
    print("barlowtwins", *words)
    subprocess.run([sys.executable, "-m", "barlowtwins", *words], check=True)


def save(picture: Image.Image, name: str, *, colours: int | None = None) -> None:
    """Keep a picture, no wider than it is shown, in as many colours if told (noise is large without)."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    if colours is not None:
        picture = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(DOCS / name, optimize=True)
    print(f"docs/{name}: {(DOCS / name).stat().st_size / 1e3:.0f} kB")


def screen(browser: Browser) -> Image.Image:
    return Image.open(io.BytesIO(browser.driver.get_screenshot_as_png()))


def main(run: str) -> None:
    if not (Path(run) / "backbone.safetensors").exists():
        barlowtwins("demo", "--out", run)
    with tempfile.TemporaryDirectory() as folder:
        emb, page, sheet = f"{folder}/shapes", f"{folder}/map.html", f"{folder}/sheet.png"
        barlowtwins("report", run)
        barlowtwins("embed", "shapes", "--weights", run, "--out", emb)
        barlowtwins("map", emb, "--out", page, "--method", "tsne")
        barlowtwins("neighbours", emb, "--query", QUERY, "--k", "11", "--sheet", sheet)
        save(Image.open(sheet), "neighbours.png")
        barlowtwins("augment", "shapes", "--out", sheet, "--images", "2")
        save(Image.open(sheet), "augment.png")

        browser = open_browser()
        try:
            browser.open(Path(run) / "report.html", size=(1120, 1140))
            save(screen(browser), "report.png")
            browser.run("document.querySelector('.matrices').scrollIntoView({block: 'center'})")
            box = browser.run(
                "const b = document.querySelector('.matrices').getBoundingClientRect(); return [b.x, b.y]"
            )
            matrices = screen(browser).crop((int(box[0]) - 6, int(box[1]) - 6, int(box[0]) + 902, int(box[1]) + 510))
            save(matrices, "correlation.png", colours=48)
            browser.open(Path(page), size=(1200, 760))
            browser.run(f"barlowtwinsMap.choose({QUERY})")
            browser.wait("document.querySelectorAll('canvas[data-drawn]').length > 8")
            save(screen(browser), "map.png")
        finally:
            browser.driver.quit()


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["runs/demo"]))
