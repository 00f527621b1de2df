"""Draw docs/icon.png and docs/banner.jpg from the pictures in docs/quality: `python -m benchmarks.branding`.

Every picture comes from the built-in generator: the source, and the generators that `benchmarks.quality` trained.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
ICON, TILE = 400, 150  # pixels a side
TARGETS = ("pencil_sketch", "3d_render", "zombie", "elf", "joker", "marble_statue")
ROWS = (0, 2, 4)  # the people on the banner: 7 columns and 3 rows of squares are 21:9


def tile(target: str, row: int, column: int, side: int) -> Image.Image:
    """One picture of a table in docs/quality. column: 0 is the source, 1 the adapted generator."""
    x, y = 8 + 200 * column, 70 + 200 * row
    table = Image.open(DOCS / "quality" / f"{target}.png").convert("RGB")
    return table.crop((x + 3, y + 3, x + 189, y + 189)).resize((side, side), Image.Resampling.BICUBIC)


def icon(target: str = "zombie", row: int = 0) -> Image.Image:
    """The same person before, left, and after, right."""
    before, after = (tile(target, row, column, ICON) for column in (0, 1))
    before.paste(after.crop((ICON // 2, 0, ICON, ICON)), (ICON // 2, 0))
    before.paste("white", (ICON // 2 - 3, 0, ICON // 2 + 3, ICON))
    return before


def banner() -> Image.Image:
    """Three people: the source, then six domains."""
    sheet = Image.new("RGB", (TILE * (1 + len(TARGETS)), TILE * len(ROWS)))
    for line, row in enumerate(ROWS):
        sheet.paste(tile(TARGETS[0], row, 0, TILE), (0, TILE * line))
        for column, target in enumerate(TARGETS, 1):
            sheet.paste(tile(target, row, 1, TILE), (TILE * column, TILE * line))
    return sheet


def main() -> None:
    icon().quantize(128, dither=Image.Dither.NONE).save(DOCS / "icon.png", optimize=True)
    banner().save(DOCS / "banner.jpg", quality=84, optimize=True)


if __name__ == "__main__":
    main()
