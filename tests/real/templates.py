"""Build the workflow templates, apps and blueprints, run the templates, and save their thumbnails.

    COMFYUI_PATH=... python tests/real/templates.py [NUMBER ...]

Without numbers everything is built, with the two screenshots of the README, which show the stored first template. The
last picture of a run becomes the thumbnail.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from author import Node, Workflow, app, blueprint, build, numbers, save
from environment import UNRUN, comfy_path, comfy_python, pack_path
from page import FRESH, Page, open_page
from PIL import Image
from server import Server, serve

from workflows import BLUEPRINTS, WORKFLOWS

SIDE = 512  # of a thumbnail, in pixels
#: Height of the empty band at the top of a thumbnail: the list of templates puts a badge there.
BAND = 68
QUALITY = 82

#: The node whose picture becomes the thumbnail, from left to right in order of preference.
RESULTS = ("compare", "pick", "sheet_mix", "result", "save")
ROWS = 3  # people in every sheet
MOST_COLUMNS = 4  # that a thumbnail shows


def main(chosen: Sequence[str]) -> None:
    folder = pack_path() / "workflows"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, serve(comfy_path(), comfy_python(), pack_path(), Path(base)) as server:
        if not chosen:
            screenshots(server)
        with open_page(server) as page:
            build_all(page, folder, chosen)


def build_all(page: Page, folder: Path, chosen: Sequence[str]) -> None:
    for name, description in WORKFLOWS.items():
        if not chosen or name.split()[0] in chosen:
            make(page, name, description, folder)
    if not chosen:
        (pack_path() / "subgraphs").mkdir(exist_ok=True)
        for name, description in BLUEPRINTS.items():
            workflow = blueprint(build(page, description, name), description)
            save(workflow, pack_path() / "subgraphs" / f"{name}.json")


def screenshots(server: Server) -> None:
    """Save what a new installation shows of the first template, before and after its run, for the README."""
    with open_page(server, settings=FRESH) as page:
        page.templates()
        page.open_template(next(iter(WORKFLOWS)))
        for name in ("before", "after"):
            page.tab.wait_for_timeout(6000)  # messages disappear
            picture = Image.open(io.BytesIO(page.tab.screenshot()))
            picture.convert("RGB").save(pack_path() / "docs" / f"comfyui-{name}.jpg", quality=85)
            if name == "before":
                page.queue()
                page.wait()


def make(page: Page, name: str, description: Workflow, folder: Path) -> None:
    workflow = build(page, description, name)
    save(workflow, folder / f"{name}.json")
    if name in UNRUN:
        shutil.copy(folder / f"{UNRUN[name]}.jpg", folder / f"{name}.jpg")
        return
    page.queue()
    outputs = page.wait()["outputs"]
    ids = numbers(description)
    key = next(key for key in RESULTS if str(ids.get(key)) in outputs)
    picture, columns = fetched(page.server, outputs[str(ids[key])]["images"]), columns_of(description, key)
    thumbnail(picture, columns).save(folder / f"{name}.jpg", quality=QUALITY, optimize=True)
    if description.form:
        save(app(workflow, description), folder / f"{name}.app.json")
        thumbnail(picture, columns, rows=1).save(folder / f"{name}.app.jpg", quality=QUALITY, optimize=True)
    sys.stdout.write(f"{name}\n")


def fetched(server: Server, places: Sequence[dict[str, str]]) -> Image.Image:
    """The picture that a node has saved, or nine of its pictures or of the frames of its video."""
    files = [io.BytesIO(server.get(f"/view?{urlencode(place)}")) for place in places]
    if places[0]["filename"].endswith(".mp4"):
        import av

        with av.open(files[0]) as video:
            pictures = [frame.to_image() for frame in video.decode(video=0)]
    else:
        pictures = [Image.open(file).convert("RGB") for file in files]
    return pictures[0] if len(pictures) == 1 else contact_sheet(pictures[:: max(len(pictures) // 9, 1)][:9])


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    side, gap = 128, 4
    sheet = Image.new("RGB", (3 * side + 2 * gap, 3 * side + 2 * gap), "white")
    for index, one in enumerate(pictures):
        row, column = divmod(index, 3)
        sheet.paste(one.resize((side, side), Image.Resampling.LANCZOS), (column * (side + gap), row * (side + gap)))
    return sheet


def columns_of(description: Workflow, key: str) -> int:
    """The number of columns of the sheet that a node shows, or 0 if it is none."""
    values = {one.key: one.widgets for one in description.nodes if isinstance(one, Node)}
    if key == "pick":
        return 1 + values["adapt"]["settings.steps"] // values["adapt"]["snapshot_every"]
    return len(values[key]["labels"].splitlines()) if "labels" in values[key] else 0


def thumbnail(sheet: Image.Image, columns: int, rows: int | None = None) -> Image.Image:
    """Fit the first `rows` of the sheet below the band, by default as many as fill the square best."""
    room = SIDE, SIDE - BAND
    if columns > MOST_COLUMNS:
        sheet = sheet.crop((0, 0, round(sheet.width * MOST_COLUMNS / columns), sheet.height))
    columns = min(columns, MOST_COLUMNS)
    if columns:
        cell = sheet.width / columns
        heights = [sheet.height - round(dropped * cell) for dropped in range(ROWS)]
        height = max(heights, key=lambda high: sheet.width * high * min(room[0] / sheet.width, room[1] / high) ** 2)
        sheet = sheet.crop((0, 0, sheet.width, height if rows is None else heights[ROWS - rows]))
    factor = min(room[0] / sheet.width, room[1] / sheet.height)
    size = round(sheet.width * factor), round(sheet.height * factor)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(sheet.resize(size, Image.Resampling.LANCZOS), ((SIDE - size[0]) // 2, BAND + (room[1] - size[1]) // 2))
    return square


if __name__ == "__main__":
    main(sys.argv[1:])
