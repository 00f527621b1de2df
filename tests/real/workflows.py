"""Descriptions of the workflow templates; `main` builds workflows/*.json and their thumbnails.

    COMFYUI_PATH=... python tests/real/workflows.py [NAME ...]

Each workflow is run in the frontend; its last image becomes the thumbnail.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from author import Group, Node, Note, Workflow, write
from environment import PREFIX, comfy_path, comfy_python, pack_path
from page import Page, open_page
from PIL import Image
from server import serve

#: The layers that the text moves most. Training all layers, which is automatic without Choose Layers, gives slightly
#: better results on the built-in generator; the templates demonstrate layer selection.
CHOICE: dict[str, Any] = {"mode": "adaptive"}

READS, TRAINS, SHOWS = "#2a4858", "#4a3358", "#335842"  # title bars
WIDTH, COLUMN, GAP = 340, 420, 100  # of a node, from one column to the next, between two nodes of a column

#: Node heights in the frontend without the title bar; a training node has room for its preview.
HEIGHTS = {
    "LoadGenerator": 82,
    "LoadGuide": 82,
    "CombineGuides": 106,
    "ShiftFromText": 106,
    "ChooseLayers": 130,
    "AdaptGenerator": 560,
    "InspectLayers": 150,
    "SampleLatents": 180,
    "MixLatents": 130,
    "InterpolateLatents": 82,
    "Render": 82,
    "Compare": 220,
    "PlotTraining": 58,
    "SaveDomain": 82,
    "ApplyDomain": 82,
    "AlignFace": 180,
    "DrawPortrait": 130,
    "LoadLikeness": 82,
    "InvertImage": 520,
    "PivotalTuning": 520,
    "FindDirections": 150,
    "EditLatents": 190,
    "SaveLatents": 58,
}


def node(key: str, kind: str, color: str, title: str | None = None, **widgets: Any) -> Node:
    """A node of this pack; `stack` sets its position."""
    return Node(key, PREFIX + kind, (0, 0), (WIDTH, HEIGHTS[kind]), title, widgets, color)


def stack(column: float, *nodes: Node | Note, top: int = 0) -> list[Node | Note]:
    """Place nodes below each other."""
    for one in nodes:
        one.pos = (round(column * COLUMN), top)
        assert one.size is not None
        top += one.size[1] + GAP
    return list(nodes)


def picture(key: str, title: str, size: tuple[int, int]) -> Node:
    return Node(key, "PreviewImage", (0, 0), size, title)


def note(text: str, height: int, title: str = "Note") -> Note:
    return Note(text, (0, 0), (WIDTH, height), title)


def wires(*pairs: str) -> list[tuple[str, str]]:
    """Parse "a.b > c.d, e.f": connect output a.b to inputs c.d and e.f."""
    split = [pair.split(" > ") for pair in pairs]
    return [(source, target) for source, targets in split for target in targets.split(", ")]


def adapts(*keys: str, slots: Sequence[str] = ("generator", "guide", "shift", "layers")) -> list[tuple[str, str]]:
    """Links that several training nodes share."""
    outputs = {
        "generator": "generator.generator",
        "guide": "guide.guide",
        "shift": "shift.shift",
        "layers": "layers.layers",
    }
    return [(outputs[slot], f"{key}.{slot}") for key in keys for slot in slots]


TEXT_TO_NEW_DOMAIN = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Text to new domain\n\nPress **Run**. In about half a minute on two CPU cores, the built-in "
                "portrait generator is fine-tuned toward the Joker from text alone, without any image of "
                "him.\n\n**Adapt Generator** shows the same four people during training: before (top) and now "
                "(bottom).\n\nThen try another **target**: pencil sketch, zombie, anime, marble statue.",
                270,
                "Start here",
            ),
            note(
                "## Your own generator\n\nPut a StyleGAN2 file (.pkl, .pt, .safetensors) into "
                "`models/stylegan_nada`, press **R** and select it. Select a published CLIP as guide, such as "
                "`ViT-B-32:openai`.\n\nThe settings adjust themselves: *automatic* takes those that the file "
                "recommends, or those of the paper. In Choose Layers, set **count** to 12 to 18.",
                230,
                "Next",
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("guide", "LoadGuide", READS),
            node("shift", "ShiftFromText", READS, source="photo", target="joker"),
            node("layers", "ChooseLayers", TRAINS, **CHOICE),
        ),
        *stack(1, node("adapt", "AdaptGenerator", TRAINS)),
        *stack(
            2,
            node("latents", "SampleLatents", SHOWS, count=6, psi=0.85),
            node("compare", "Compare", SHOWS, labels="photo\njoker"),
            node("plot", "PlotTraining", SHOWS),
        ),
        *stack(3, picture("sheet", "before and after", (340, 920))),
        *stack(3.95, picture("curves", "training curves", (620, 740))),
    ],
    links=[
        *adapts("adapt"),
        *wires(
            "generator.generator > latents.generator, compare.before",
            "latents.latents > compare.latents",
            "adapt.adapted > compare.after",
            "adapt.training > plot.training",
            "compare.sheet > sheet.images",
            "plot.plot > curves.images",
        ),
    ],
    groups=[
        Group("1. Inputs", ("generator", "guide", "shift", "layers")),
        Group("2. Training", ("adapt",)),
        Group("3. Results", ("latents", "compare", "plot", "sheet", "curves")),
    ],
)

HOW_MANY_LAYERS = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# How many layers to train?\n\nTraining fewer layers preserves more of the generator; training "
                "more layers allows larger changes.\n\n**Inspect Layers** measures how much the latents of each "
                "layer change when they are optimized toward the text. Adaptive selection trains the layers with "
                "the longest bars first.\n\nThis workflow trains the same direction with 2, 5 and all layers. For a "
                "generator this small, the results are more similar than for a large one.",
                330,
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("guide", "LoadGuide", READS),
            node("shift", "ShiftFromText", READS, source="photo", target="zombie"),
            node("latents", "SampleLatents", SHOWS, count=5, psi=0.85),
            node("inspect", "InspectLayers", SHOWS),
        ),
        *stack(
            1,
            node("few", "ChooseLayers", TRAINS, "2 layers", **{**CHOICE, "mode.count": 2}),
            node("layers", "ChooseLayers", TRAINS, "5 layers", **CHOICE),
            node("all", "ChooseLayers", TRAINS, "all layers", mode="all"),
        ),
        *stack(
            2,
            node("adapt_few", "AdaptGenerator", TRAINS, "Adapt with 2 layers"),
            node("compare", "Compare", SHOWS, labels="photo\n2 layers\n5 layers\nall layers"),
        ),
        *stack(3, node("adapt", "AdaptGenerator", TRAINS, "Adapt with 5 layers")),
        *stack(4, node("adapt_all", "AdaptGenerator", TRAINS, "Adapt with all layers")),
        *stack(3, picture("bars", "change of each layer's latents", (760, 370)), top=700),
        *stack(5, picture("sheet", "the same latents", (820, 1060))),
    ],
    links=[
        *adapts("adapt_few", "adapt", "adapt_all", "inspect", slots=("generator", "guide", "shift")),
        *wires(
            "few.layers > adapt_few.layers",
            "layers.layers > adapt.layers, inspect.layers",
            "all.layers > adapt_all.layers",
            "inspect.chart > bars.images",
            "generator.generator > latents.generator, compare.before",
            "latents.latents > compare.latents",
            "adapt_few.adapted > compare.after",
            "adapt.adapted > compare.third",
            "adapt_all.adapted > compare.fourth",
            "compare.sheet > sheet.images",
        ),
    ],
)

SEVERAL_GUIDES = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Several guides\n\nTraining against one CLIP model can produce adversarial artifacts: patterns "
                "that lower the loss but do not look like the target. Two different models share few such "
                "weaknesses, so an ensemble is more reliable. The paper uses ViT-B/32 and ViT-B/16.\n\nThe two "
                "built-in guides were trained separately and use different image sizes. The columns: source, "
                "first guide, second guide, both.\n\nFor your own generator, select `ViT-B-32:openai` and "
                "`ViT-B-16:openai`.",
                380,
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("first", "LoadGuide", READS, guide="portraits"),
            node("second", "LoadGuide", READS, guide="portraits-64"),
            node("both", "CombineGuides", READS),
            node("shift", "ShiftFromText", READS, source="photo", target="anime"),
            node("layers", "ChooseLayers", TRAINS, **CHOICE),
        ),
        *stack(
            1,
            node("adapt_first", "AdaptGenerator", TRAINS, "Adapt with first guide"),
            node("latents", "SampleLatents", SHOWS, count=5, psi=0.85),
        ),
        *stack(
            2,
            node("adapt_second", "AdaptGenerator", TRAINS, "Adapt with second guide"),
            node("compare", "Compare", SHOWS, labels="photo\nfirst guide\nsecond guide\nboth"),
        ),
        *stack(3, node("adapt_both", "AdaptGenerator", TRAINS, "Adapt with both guides")),
        *stack(4, picture("sheet", "the same latents", (820, 1060))),
    ],
    links=[
        *adapts("adapt_first", "adapt_second", "adapt_both", slots=("generator", "shift", "layers")),
        *wires(
            "first.guide > both.first, adapt_first.guide",
            "second.guide > both.second, adapt_second.guide",
            "both.guide > adapt_both.guide",
            "generator.generator > latents.generator, compare.before",
            "latents.latents > compare.latents",
            "adapt_first.adapted > compare.after",
            "adapt_second.adapted > compare.third",
            "adapt_both.adapted > compare.fourth",
            "compare.sheet > sheet.images",
        ),
    ],
)

NAIVE_VERSUS_DIRECTIONAL = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Why a directional loss?\n\nThe naive (global) loss moves every image toward the target text. All "
                "images converge to the same optimum: **mode collapse**.\n\nThe directional loss of StyleGAN-NADA "
                "compares *changes*: the change of each image in CLIP space should be parallel to the change from "
                "source text to target text. Each image starts from its own position, so the images stay "
                "different.\n\nThe two training runs differ only in their loss weights.",
                340,
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("guide", "LoadGuide", READS),
            node("shift", "ShiftFromText", READS, source="photo", target="marble statue"),
            node("layers", "ChooseLayers", TRAINS, **CHOICE),
        ),
        *stack(
            1,
            node(
                "naive",
                "AdaptGenerator",
                TRAINS,
                "Naive: global loss",
                **{
                    "settings": "by hand",
                    "settings.direction_loss": 0.0,
                    "settings.global_loss": 1.0,
                    "settings.angle_loss": 0.0,
                },
            ),
        ),
        *stack(2, node("adapt", "AdaptGenerator", TRAINS, "StyleGAN-NADA: directional loss")),
        *stack(
            3,
            node("latents", "SampleLatents", SHOWS, count=6, psi=0.85),
            node("compare", "Compare", SHOWS, labels="photo\nnaive\ndirectional"),
        ),
        *stack(4, picture("sheet", "the same latents", (500, 980))),
    ],
    links=[
        *adapts("naive", "adapt"),
        *wires(
            "generator.generator > latents.generator, compare.before",
            "latents.latents > compare.latents",
            "naive.adapted > compare.after",
            "adapt.adapted > compare.third",
            "compare.sheet > sheet.images",
        ),
    ],
)

DOMAINS_MIXED = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Mixing domains\n\nTraining changes some of the generator's weights. These changes are a "
                "**domain**: a file that can be applied at any strength, alone or together with other "
                "domains.\n\n**Save Domain** writes it to `output/stylegan_nada/domains`. Press **R** to list it in "
                "**Load Domain** in any workflow.\n\nChange the strengths: nothing is trained again.",
                330,
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("guide", "LoadGuide", READS),
            node("shift_a", "ShiftFromText", READS, source="photo", target="pencil sketch"),
            node("shift_b", "ShiftFromText", READS, source="photo", target="zombie"),
            node("layers", "ChooseLayers", TRAINS, **CHOICE),
        ),
        *stack(
            1,
            node("adapt_a", "AdaptGenerator", TRAINS, "Train sketch"),
            node("save", "SaveDomain", SHOWS, filename_prefix="sketch"),
        ),
        *stack(2, node("adapt_b", "AdaptGenerator", TRAINS, "Train zombie")),
        *stack(
            3,
            node("half_a", "ApplyDomain", TRAINS, "sketch, strength 0.5", strength=0.5),
            node("half_b", "ApplyDomain", TRAINS, "zombie, strength 0.5", strength=0.5),
            node("mixed", "ApplyDomain", TRAINS, "sketch and zombie", strength=0.5),
            node("latents", "SampleLatents", SHOWS, count=5, psi=0.85),
            node("compare", "Compare", SHOWS, labels="photo\nhalf sketch\nhalf zombie\nboth halves"),
        ),
        *stack(4, picture("sheet", "the same latents", (820, 1060))),
    ],
    links=[
        *adapts("adapt_a", "adapt_b", slots=("generator", "guide", "layers")),
        *wires(
            "shift_a.shift > adapt_a.shift",
            "shift_b.shift > adapt_b.shift",
            "generator.generator > half_a.generator, half_b.generator, latents.generator, compare.before",
            "adapt_a.domain > half_a.domain, mixed.domain, save.domain",
            "adapt_b.domain > half_b.domain",
            "half_b.generator > mixed.generator, compare.third",
            "half_a.generator > compare.after",
            "mixed.generator > compare.fourth",
            "latents.latents > compare.latents",
            "compare.sheet > sheet.images",
        ),
    ],
)

SAMPLE_SHEET = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Sample sheet\n\nThis workflow does not train anything.\n\n**Sample Latents** draws random latents. "
                "**psi** is the truncation: 0 is the mean face, 1 the full variety.\n\n**Mix Latents** replaces the "
                "late rows with those of other latents: the same people in other colors.\n\n**Interpolate Latents** "
                "interpolates from one latent to the next. Connect the images to a video node for an "
                "animation.\n\nTo use a fine-tuned generator, save it with Save Generator, press **R**, and select "
                "it in Load Generator.",
                400,
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("latents", "SampleLatents", SHOWS, count=12),
            node("second", "SampleLatents", SHOWS, "Sample second set", seed=100, count=12, psi=0.9),
        ),
        *stack(
            1,
            node("mix", "MixLatents", SHOWS, from_row=4),
            node("walk", "InterpolateLatents", SHOWS, frames=3, loop=True),
            top=182,
        ),
        *stack(
            2,
            node("render", "Render", SHOWS, "Render samples"),
            node("render_mix", "Render", SHOWS, "Render mix"),
            node("render_walk", "Render", SHOWS, "Render interpolation"),
        ),
        *stack(3, picture("sheet", "12 seeds", (560, 420)), picture("sheet_mix", "mixed colors", (560, 420))),
        *stack(4.5, picture("sheet_walk", "interpolation", (780, 940))),
    ],
    links=wires(
        "generator.generator > latents.generator, second.generator, render.generator, render_mix.generator, "
        "render_walk.generator",
        "latents.latents > render.latents, mix.first, walk.latents",
        "second.latents > mix.second",
        "mix.latents > render_mix.latents",
        "walk.latents > render_walk.latents",
        "render.images > sheet.images",
        "render_mix.images > sheet_mix.images",
        "render_walk.images > sheet_walk.images",
    ),
)

PHOTO_TO_DOMAINS = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Photo to new domains\n\n**Draw Portrait** draws photos that the generator was not trained on. "
                "**Invert Photo** finds latents that reproduce them. **Edit Latents** moves the latents along a "
                "direction that **Find Directions** computed from the weights of the generator.\n\nThe domains are "
                "trained from text, on random latents. The sheet still shows the people in the photos, because "
                "fine-tuning does not change the meaning of latents.\n\nChange **strength** or **direction**: "
                "nothing is trained again.",
                430,
                "Start here",
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("guide", "LoadGuide", READS),
            node("likeness", "LoadLikeness", READS, identity="portraits"),
            node("photos", "DrawPortrait", READS, seed=3, count=4),
            node("layers", "ChooseLayers", TRAINS, **CHOICE),
        ),
        *stack(
            1,
            node("invert", "InvertImage", TRAINS),
            node("found", "FindDirections", SHOWS),
            node("edit", "EditLatents", SHOWS, direction="0", strength=2.0),
        ),
        *stack(
            2,
            node("zombie", "ShiftFromText", READS, "to a zombie", target="zombie"),
            node("adapt_zombie", "AdaptGenerator", TRAINS, "Train zombie"),
        ),
        *stack(
            3,
            node("joker", "ShiftFromText", READS, "to the Joker", target="joker"),
            node("adapt_joker", "AdaptGenerator", TRAINS, "Train joker"),
        ),
        *stack(
            4,
            node("anime", "ShiftFromText", READS, "to anime", target="anime"),
            node("adapt_anime", "AdaptGenerator", TRAINS, "Train anime"),
        ),
        *stack(
            2,
            picture("photographs", "the photos", (340, 300)),
            picture("inverted", "inverted photos", (340, 300)),
            top=900,
        ),
        *stack(
            3,
            node("compare", "Compare", SHOWS, labels="edited\nzombie\njoker\nanime"),
            node("before", "Compare", SHOWS, "Compare before the edit", labels="inverted\nzombie\njoker\nanime"),
            top=900,
        ),
        *stack(
            5,
            picture("sheet", "edited, in three domains", (820, 880)),
            picture("sheet_before", "before the edit", (820, 880)),
        ),
    ],
    links=[
        *adapts("adapt_zombie", "adapt_joker", "adapt_anime", slots=("generator", "guide", "layers")),
        *wires(
            "zombie.shift > adapt_zombie.shift",
            "joker.shift > adapt_joker.shift",
            "anime.shift > adapt_anime.shift",
            "generator.generator > invert.generator, found.generator, compare.before, before.before",
            "photos.images > invert.image, photographs.images",
            "likeness.likeness > invert.likeness",
            "invert.latents > edit.latents, before.latents",
            "invert.inverted > inverted.images",
            "found.directions > edit.directions",
            "edit.latents > compare.latents",
            "adapt_zombie.adapted > compare.after, before.after",
            "adapt_joker.adapted > compare.third, before.third",
            "adapt_anime.adapted > compare.fourth, before.fourth",
            "compare.sheet > sheet.images",
            "before.sheet > sheet_before.images",
        ),
    ],
)

YOUR_PHOTO = Workflow(
    nodes=[
        *stack(
            -1,
            note(
                "# Your photo in a new domain\n\nAll steps for a real photo: **Align Face** crops it like the "
                "training images, **Invert Photo** finds its latents, **Pivotal Tuning** fine-tunes the generator "
                "to reproduce it closely, and **Apply Domain** adds that change to a generator that was "
                "fine-tuned with text.\n\nThe workflow runs on the built-in generator and drawn elves. The "
                "generator has never been trained on their ears: inversion loses them, tuning restores them.",
                330,
                "Start here",
            ),
            note(
                "## Use your own photo and generator\n\n0. Replace Draw Portrait with **Load Image**.\n1. **Load "
                "Generator**: a StyleGAN2 file of aligned faces, such as FFHQ. **Load CLIP Guide**: "
                "`ViT-B-32:openai`.\n2. **Load Likeness**: `vgg:imagenet` (a download) and `model_ir_se50.pth` in "
                "`models/stylegan_nada/identity`.\n3. **Align Face**: size 1024, cut *the face*. Run `pip install "
                "mtcnn-runtime` first.\n4. With an encoder (**Load Encoder**, then **Encode Image** into *start* of "
                "**Invert Photo**), 100 steps are enough.\n\nAll settings adjust themselves to the generator.",
                380,
                "Next",
            ),
        ),
        *stack(
            0,
            node("generator", "LoadGenerator", READS),
            node("guide", "LoadGuide", READS),
            node("shift", "ShiftFromText", READS, source="photo", target="zombie"),
            node("likeness", "LoadLikeness", READS, identity="portraits"),
            node("layers", "ChooseLayers", TRAINS, **CHOICE),
        ),
        *stack(
            1,
            node("photo", "DrawPortrait", READS, "the photos", seed=5, count=3, style="elf"),
            node("align", "AlignFace", SHOWS, size=64, cut="the middle"),
            picture("aligned", "aligned photos", (WIDTH, 280)),
        ),
        *stack(2, node("invert", "InvertImage", TRAINS)),
        *stack(3, node("tune", "PivotalTuning", TRAINS)),
        *stack(4, node("adapt", "AdaptGenerator", TRAINS)),
        *stack(2, Node("report", "PreviewAny", (0, 0), (WIDTH, 130), "report of the inversion"), top=700),
        *stack(3, Node("report_tuned", "PreviewAny", (0, 0), (WIDTH, 130), "report of the tuning"), top=700),
        *stack(
            5,
            node("both", "ApplyDomain", TRAINS, "Apply tuning"),
            node("compare", "Compare", SHOWS, labels="inverted\ntuned\nnew domain\nnew domain, tuned"),
            node("keep", "SaveLatents", SHOWS, filename_prefix="photo"),
        ),
        *stack(6, picture("sheet", "the photos in the new domain", (820, 680))),
    ],
    links=[
        *adapts("adapt"),
        *wires(
            "generator.generator > invert.generator, tune.generator, compare.before",
            "photo.images > align.image",
            "align.aligned > invert.image, tune.image, aligned.images",
            "likeness.likeness > invert.likeness, tune.likeness",
            "invert.latents > tune.latents, compare.latents, keep.latents",
            "invert.report > report.source",
            "tune.report > report_tuned.source",
            "adapt.adapted > both.generator, compare.third",
            "tune.domain > both.domain",
            "tune.tuned > compare.after",
            "both.generator > compare.fourth",
            "compare.sheet > sheet.images",
        ),
    ],
)

#: By file name, which ComfyUI shows as the title of the template.
WORKFLOWS = {
    "Text to new domain": TEXT_TO_NEW_DOMAIN,
    "How many layers": HOW_MANY_LAYERS,
    "Several guides": SEVERAL_GUIDES,
    "Naive versus directional": NAIVE_VERSUS_DIRECTIONAL,
    "Domains mixed by strength": DOMAINS_MIXED,
    "Sample sheet": SAMPLE_SHEET,
    "Photo to new domains": PHOTO_TO_DOMAINS,
    "Your photo": YOUR_PHOTO,
}

SIDE = 512  # of a thumbnail, in pixels; the list of templates shows squares


def main(names: Sequence[str]) -> None:
    """Build workflows in the frontend, run them, and save files and thumbnails."""
    folder = pack_path() / "workflows"
    folder.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as base,
        serve(comfy_path(), comfy_python(), pack_path(), Path(base)) as server,
        open_page(server, size=(2000, 800)) as page,
    ):
        for name in names or WORKFLOWS:
            description = WORKFLOWS[name]
            write(page, description, folder / f"{name}.json")
            keep(page, "docs/comfyui-before.jpg" if description is TEXT_TO_NEW_DOMAIN else None)
            page.queue()
            outputs = page.wait()["outputs"]
            keep(page, "docs/comfyui-after.jpg" if description is TEXT_TO_NEW_DOMAIN else None)
            number = 1 + next(i for i, one in enumerate(description.nodes) if getattr(one, "key", "") == "sheet")
            shown = [server.get(f"/view?{urlencode(one)}") for one in outputs[str(number)]["images"]]
            square([Image.open(io.BytesIO(one)) for one in shown]).save(folder / f"{name}.jpg", quality=88)
            sys.stdout.write(f"{folder / name}.json\n")


def keep(page: Page, name: str | None) -> None:
    """Save a screenshot of the page for the README."""
    if name is not None:
        with tempfile.TemporaryDirectory() as place:
            page.screenshot(Path(place) / "page.png")
            Image.open(Path(place) / "page.png").convert("RGB").save(pack_path() / name, quality=85)


def square(pictures: Sequence[Image.Image]) -> Image.Image:
    """Make a square thumbnail: the upper part of a grid, or nine images of a batch."""
    if len(pictures) == 1:
        width = pictures[0].width
        sheet = Image.new("RGB", (width, width), "white")
        sheet.paste(pictures[0].convert("RGB"), (0, max(0, (width - pictures[0].height) // 2)))
        return sheet.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    for index, one in enumerate(pictures[:9]):
        cell = one.convert("RGB").resize((162, 162), Image.Resampling.LANCZOS)
        sheet.paste(cell, (8 + index % 3 * 167, 8 + index // 3 * 167))
    return sheet


if __name__ == "__main__":
    main(sys.argv[1:])
