"""Descriptions of the workflow templates and blueprints; `templates.py` builds them.

A template has one purpose and fits the page: at 1600 x 1000 pixels it opens at a scale of 0.6 or more. Trainings are
subgraphs where there are several of them.
"""

from __future__ import annotations

from typing import Any

from author import Group, Node, Note, Subgraph, Workflow
from environment import PREFIX

READS, TRAINS, SHOWS = "#2a4858", "#4a3358", "#335842"  # title bars: inputs, trainings, results
STEPS = 80  # enough for every built-in target

#: Room for a picture below the widgets of a node, in pixels; large: and for a text of two lines.
PREVIEW, SMALL, LARGE = 250, 166, 270


def node(key: str, kind: str, color: str, title: str | None = None, *, room: int = 0, width: int = 260, **widgets: Any):
    """A node of this pack."""
    return Node(key, PREFIX + kind, title, widgets, color, width, room)


def core(key: str, kind: str, color: str, title: str | None = None, *, room: int = 0, width: int = 260, **widgets: Any):
    """A node that comes with ComfyUI."""
    return Node(key, kind, title, widgets, color, width, room)


def adapting(key: str = "adapt", **widgets: Any) -> Node:
    """A training; the choice of settings comes first because it replaces the other widgets."""
    first = {"settings": widgets.pop("settings", "automatic"), "settings.steps": STEPS}
    return node(key, "AdaptGenerator", TRAINS, "Adapt Generator", room=PREVIEW, width=320, **{**first, **widgets})


def faces(count: int, seed: int = 0, **more: Any) -> Node:
    return node("latents", "SampleLatents", SHOWS, seed=seed, count=count, psi=0.85, **more)


def comparing(labels: str, rows: int, width: int = 400, key: str = "compare", title: str | None = None) -> Node:
    """The grid that shows the result; its room fits the picture."""
    columns = labels.count("\n") + 1
    return node(key, "Compare", SHOWS, title, room=round(rows * width / columns + 50), width=width, labels=labels)


def training(key: str, title: str, around: list[str], widgets: dict[str, str], adapt: str) -> Subgraph:
    steps = {f"{adapt}.settings.steps": "steps", f"{adapt}.seed": "seed"}
    return Subgraph(key, title, around, {**widgets, **steps}, adapt, TRAINS, 280, SMALL)


def wires(*pairs: str) -> list[tuple[str, str]]:
    """Parse "a.b > c.d, e.f": connect output a.b to inputs c.d and e.f."""
    split = [pair.split(" > ") for pair in pairs]
    return [(source, target) for source, targets in split for target in targets.split(", ")]


def trained(*keys: str, slots: tuple[str, ...] = ("generator", "guide", "shift")) -> list[tuple[str, str]]:
    """Links that training nodes share, from nodes that have the names of the slots."""
    return [(f"{slot}.{slot}", f"{key}.{slot}") for key in keys for slot in slots]


def generator(width: int = 260) -> Node:
    """Its room is for the description that it shows after a run."""
    return node("generator", "LoadGenerator", READS, room=56, width=width)


GUIDE = node("guide", "LoadGuide", READS)

TEXT_TO_NEW_DOMAIN = Workflow(
    nodes=[
        Note(
            "# Text to new domain\n\nPress **Run**. The built-in portrait generator is fine-tuned toward the Joker "
            "from text alone, without any image of him.\n\n**Adapt Generator** shows four people during the "
            "training: before (top) and now (bottom).\n\nThen try another **target**: pencil sketch, zombie, anime, "
            "marble statue.",
            "Start here",
        ),
        Note(
            "## Your own generator\n\nPut a StyleGAN2 file (.pkl, .pt, .safetensors) into `models/stylegan_nada`, "
            "press **R** and select it. Select a published CLIP as guide, such as `ViT-B-32:openai`.\n\nSet "
            "**steps** to -1: the number that the file recommends, or that of the paper.",
            "Next",
        ),
        generator(),
        GUIDE,
        node("shift", "ShiftFromText", READS, source="photo", target="joker"),
        adapting(),
        faces(3),
        comparing("photo\njoker", 3, 330),
    ],
    links=[
        *trained("adapt"),
        *wires(
            "generator.generator > latents.generator, compare.generators.generator_1",
            "latents.latents > compare.latents",
            "adapt.adapted > compare.generators.generator_2",
        ),
    ],
    columns=[["note 0", "note 1"], ["generator", "guide", "shift"], ["latents", "adapt"], ["compare"]],
    groups=[
        Group("1. Generator and text", ["generator", "guide", "shift"]),
        Group("2. Faces", ["latents"]),
        Group("3. Training", ["adapt"]),
        Group("4. Result", ["compare"]),
    ],
    form=(["shift.target", "adapt.settings.steps", "adapt.seed"], ["adapt", "compare"]),
)

YOUR_OWN_PICTURES = Workflow(
    nodes=[
        Note(
            "# Your own pictures\n\nTwo or three pictures in a style replace the text: **Shift from Images** "
            "computes the direction from the generator's own images to them.\n\nThe style here is drawn by the "
            "built-in renderer: marble statues.\n\n**Your pictures:** select one in **Your picture** and connect it "
            "to **Shift from Images**. Combine several with *Batch Images*. The built-in guide knows portraits only; "
            "for other pictures select a published CLIP, such as `ViT-B-32:openai`.",
            "Start here",
            290,
        ),
        node("pictures", "DrawPortrait", READS, "Style pictures", width=240, seed=500, style="marble statue"),
        core("photo", "LoadImage", READS, "Your picture", width=240, room=160),
        generator(240),
        node("guide", "LoadGuide", READS, width=240),
        node("shift", "ShiftFromImages", READS, width=240),
        adapting(),
        faces(3),
        comparing("photo\nyour style", 3, 340),
    ],
    links=[
        *trained("adapt"),
        *wires(
            "pictures.images > shift.images",
            "generator.generator > latents.generator, compare.generators.generator_1",
            "latents.latents > compare.latents",
            "adapt.adapted > compare.generators.generator_2",
        ),
    ],
    columns=[["note 0"], ["pictures", "photo"], ["generator", "guide", "shift"], ["latents", "adapt"], ["compare"]],
    groups=[
        Group("1. Pictures", ["pictures", "photo"]),
        Group("2. Generator and style", ["generator", "guide", "shift"]),
        Group("3. Faces", ["latents"]),
        Group("4. Training", ["adapt"]),
        Group("5. Result", ["compare"]),
    ],
)

FILMSTRIP = Workflow(
    nodes=[
        Note(
            "# Pick from a filmstrip\n\nThe best number of steps depends on the text. **Adapt Generator** saves a "
            "snapshot every 20 steps; **Pick Snapshot** draws the same faces at each of them, from left to "
            "right.\n\nSet **step** to the one you like, or leave it at -1 for the last, and press **Run** again: "
            "nothing is trained again.\n\n**Save** writes the result to `output/stylegan_nada`. Press **R** to list "
            "it in **StyleGAN Loader**.",
            "Start here",
            280,
        ),
        generator(250),
        node("guide", "LoadGuide", READS, width=250),
        node("shift", "ShiftFromText", READS, width=250, source="photo", target="anime"),
        faces(3, width=250),
        adapting(**{"settings.steps": 120, "snapshot_every": 20}),
        node("pick", "PickSnapshot", SHOWS, room=300, width=480),
        node("plot", "PlotTraining", SHOWS, room=260, width=480),
        node("save", "SaveGenerator", SHOWS, "Save", room=50, width=220, filename_prefix="anime"),
    ],
    links=[
        *trained("adapt"),
        *wires(
            "generator.generator > latents.generator, pick.generator",
            "latents.latents > pick.latents",
            "adapt.snapshots > pick.snapshots",
            "adapt.training > plot.training",
            "pick.adapted > save.generator",
        ),
    ],
    columns=[["note 0"], ["generator", "guide", "shift"], ["latents", "adapt"], ["pick", "plot"], ["save"]],
    groups=[
        Group("1. Generator and text", ["generator", "guide", "shift"]),
        Group("2. Faces", ["latents"]),
        Group("3. Training", ["adapt"]),
        Group("4. Filmstrip", ["pick"]),
        Group("5. Losses", ["plot"]),
        Group("6. Result", ["save"]),
    ],
    form=(
        ["shift.target", "adapt.settings.steps", "adapt.seed", "adapt.snapshot_every", "pick.pick.step"],
        ["adapt", "pick"],
    ),
)

DOMAINS_MIXED = Workflow(
    nodes=[
        Note(
            "# Mixing domains\n\nTraining changes some of the generator's weights. These changes are a **domain**: "
            "it can be applied at any strength, alone or together with other domains.\n\n**Save StyleGAN Domain** "
            "writes it to `output/stylegan_nada/domains`. Press **R** to list it in **Load StyleGAN Domain** in any "
            "workflow.\n\nChange the strengths in **Mix**: nothing is trained again.",
            "Start here",
        ),
        generator(),
        GUIDE,
        faces(3),
        node("shift_a", "ShiftFromText", READS, source="photo", target="pencil sketch"),
        adapting("adapt_a"),
        node("shift_b", "ShiftFromText", READS, source="photo", target="zombie"),
        adapting("adapt_b"),
        node("half_a", "ApplyDomain", TRAINS, strength=0.5),
        node("half_b", "ApplyDomain", TRAINS, strength=0.5),
        node("both", "ApplyDomain", TRAINS, strength=0.5),
        node("save", "SaveDomain", SHOWS, room=50, filename_prefix="sketch"),
        comparing("photo\nhalf sketch\nhalf zombie\nboth", 3, 480),
    ],
    links=[
        *trained("adapt_a", "adapt_b", slots=("generator", "guide")),
        *wires(
            "shift_a.shift > adapt_a.shift",
            "shift_b.shift > adapt_b.shift",
            "generator.generator > half_a.generator, half_b.generator, latents.generator",
            "generator.generator > compare.generators.generator_1",
            "adapt_a.domain > half_a.domain, both.domain, save.domain",
            "adapt_b.domain > half_b.domain",
            "half_b.generator > both.generator, compare.generators.generator_3",
            "half_a.generator > compare.generators.generator_2",
            "both.generator > compare.generators.generator_4",
            "latents.latents > compare.latents",
        ),
    ],
    subgraphs=[
        training("train_a", "Train a sketch", ["shift_a", "adapt_a"], {"shift_a.target": "target"}, "adapt_a"),
        training("train_b", "Train a zombie", ["shift_b", "adapt_b"], {"shift_b.target": "target"}, "adapt_b"),
        Subgraph(
            "mix",
            "Mix",
            ["half_a", "half_b", "both"],
            {"half_a.strength": "sketch", "half_b.strength": "zombie", "both.strength": "sketch in both"},
            color=TRAINS,
            takes=("generator", "sketch", "zombie"),
            gives=("half sketch", "half zombie", "both"),
        ),
    ],
    columns=[["note 0"], ["generator", "guide"], ["latents", "train_a", "train_b"], ["mix", "save"], ["compare"]],
    groups=[
        Group("1. Generator", ["generator", "guide"]),
        Group("2. Faces", ["latents"]),
        Group("3. Training", ["train_a", "train_b"]),
        Group("4. Domains", ["mix", "save"]),
        Group("5. Result", ["compare"]),
    ],
)

SAMPLE_SHEET = Workflow(
    nodes=[
        Note(
            "# Sample sheet\n\nNothing is trained here.\n\n**Sample people** draws random latents. **psi** is the "
            "truncation: 0 is the mean face, 1 the full variety.\n\n**Mix StyleGAN Latents** replaces the late rows "
            "with those of other latents: the same people in other colors.\n\nTo use a fine-tuned generator, save it "
            "with **Save StyleGAN Generator**, press **R**, and select it in **StyleGAN Loader**.",
            "Start here",
        ),
        generator(),
        faces(9, title="Sample people"),
        node("second", "SampleLatents", SHOWS, "Sample colors", seed=300, count=9, psi=0.7),
        node("mix", "MixLatents", SHOWS, from_row=4, width=230),
        node("render", "Render", SHOWS, "Render people", width=230),
        node("render_mix", "Render", SHOWS, "Render mix", width=230),
        core("sheet", "PreviewImage", SHOWS, "People", width=230, room=230),
        core("sheet_mix", "PreviewImage", SHOWS, "The same people in other colors", width=270, room=230),
    ],
    links=wires(
        "generator.generator > latents.generator, second.generator, render.generator, render_mix.generator",
        "latents.latents > render.latents, mix.first",
        "second.latents > mix.second",
        "mix.latents > render_mix.latents",
        "render.images > sheet.images",
        "render_mix.images > sheet_mix.images",
    ),
    columns=[["note 0", "generator"], ["latents", "second"], ["mix"], ["render", "render_mix"], ["sheet", "sheet_mix"]],
    groups=[
        Group("1. Generator", ["generator"]),
        Group("2. Latents", ["latents", "second", "mix"]),
        Group("3. Images", ["render", "render_mix", "sheet", "sheet_mix"]),
    ],
)

LATENT_WALK = Workflow(
    nodes=[
        Note(
            "# Latent walk\n\nNothing is trained here. **Interpolate** interpolates from one face to the next and "
            "back to the first. **Save Video** writes the frames to `output/video`.\n\nFor a walk in a new domain, "
            "save your generator with **Save StyleGAN Generator**, press **R**, and select it in **StyleGAN Loader**.",
            "Start here",
        ),
        generator(280),
        faces(6, width=230, title="Sample faces"),
        node("walk", "InterpolateLatents", SHOWS, "Interpolate", width=230, frames=16, loop=True),
        node("render", "Render", SHOWS, width=210),
        core("video", "CreateVideo", SHOWS, width=210, fps=16.0),
        core("save", "SaveVideo", SHOWS, width=300, room=260, filename_prefix="video/latent_walk"),
    ],
    links=wires(
        "generator.generator > latents.generator, render.generator",
        "latents.latents > walk.latents",
        "walk.latents > render.latents",
        "render.images > video.images",
        "video.VIDEO > save.video",
    ),
    columns=[["note 0", "generator"], ["latents"], ["walk"], ["render"], ["video"], ["save"]],
    groups=[
        Group("1. Generator", ["generator"]),
        Group("2. Path", ["latents", "walk"]),
        Group("3. Video", ["render", "video", "save"]),
    ],
)

PHOTO_TO_DOMAINS = Workflow(
    nodes=[
        Note(
            "# Photo to new domains\n\n**Draw Portrait** draws photos that the generator was not trained on. **Photo "
            "to latents** finds latents that reproduce them, and moves them along a direction that was computed from "
            "the weights of the generator.\n\nThe domains are trained from text, on random latents. The sheet still "
            "shows the people in the photos, because fine-tuning does not change the meaning of latents.\n\nChange "
            "**strength** or **direction**: nothing is trained again.",
            "Start here",
            300,
        ),
        node("photos", "DrawPortrait", READS, "Photos", seed=3, count=3),
        generator(),
        GUIDE,
        node("networks", "LoadLikeness", READS, identity="portraits"),
        node("invert", "InvertImage", TRAINS),
        node("found", "FindDirections", SHOWS),
        node("edit", "EditLatents", SHOWS, direction="0", strength=2.0),
        node("shift_a", "ShiftFromText", READS, source="photo", target="zombie"),
        adapting("adapt_a"),
        node("shift_b", "ShiftFromText", READS, source="photo", target="joker"),
        adapting("adapt_b"),
        comparing("edited\nzombie\njoker", 3, 440),
    ],
    links=[
        *trained("adapt_a", "adapt_b", slots=("generator", "guide")),
        *wires(
            "photos.images > invert.image",
            "networks.similarity_networks > invert.similarity_networks",
            "generator.generator > invert.generator, found.generator, compare.generators.generator_1",
            "invert.latents > edit.latents",
            "found.directions > edit.directions",
            "edit.latents > compare.latents",
            "shift_a.shift > adapt_a.shift",
            "shift_b.shift > adapt_b.shift",
            "adapt_a.adapted > compare.generators.generator_2",
            "adapt_b.adapted > compare.generators.generator_3",
        ),
    ],
    subgraphs=[
        Subgraph(
            "to_latents",
            "Photo to latents",
            ["networks", "invert", "found", "edit"],
            {"invert.settings.steps": "steps", "edit.direction": "direction", "edit.strength": "strength"},
            color=TRAINS,
        ),
        training("train_a", "Train a zombie", ["shift_a", "adapt_a"], {"shift_a.target": "target"}, "adapt_a"),
        training("train_b", "Train the Joker", ["shift_b", "adapt_b"], {"shift_b.target": "target"}, "adapt_b"),
    ],
    columns=[["note 0"], ["photos", "generator", "guide"], ["to_latents", "train_a", "train_b"], ["compare"]],
    groups=[
        Group("1. Photos and generator", ["photos", "generator", "guide"]),
        Group("2. Latents", ["to_latents"]),
        Group("3. Training", ["train_a", "train_b"]),
        Group("4. Result", ["compare"]),
    ],
)

YOUR_PHOTO = Workflow(
    nodes=[
        Note(
            "# Your photo in a new domain\n\n**Align Face to FFHQ** crops a photo like the training images. **Photo "
            "to generator** finds its latents and fine-tunes the generator to reproduce it (pivotal tuning). It adds "
            "the same change to a generator that was fine-tuned with text.\n\nThe photos here are drawn elves. The "
            "generator has never been trained on their ears: inversion loses them, tuning restores them.",
            "Start here",
            290,
        ),
        Note(
            "## Your own photo\n\n1. Select it in **Your photo** and connect it to **Align Face to FFHQ**: size "
            "1024, cut *the face*.\n2. **StyleGAN Loader**: a StyleGAN2 file of aligned faces, such as FFHQ. **Load "
            "CLIP Guide**: `ViT-B-32:openai`.\n3. Open **Photo to generator**: in **Load LPIPS and Identity** select "
            "`vgg:imagenet` (a download) and `model_ir_se50.pth`.",
            "Next",
            290,
        ),
        node("photo", "DrawPortrait", READS, "Photos", width=230, seed=5, count=3, style="elf"),
        core("own", "LoadImage", READS, "Your photo", width=230, room=130),
        node("align", "AlignFace", READS, width=230, size=64, cut="the middle"),
        generator(230),
        node("guide", "LoadGuide", READS, width=230),
        node("networks", "LoadLikeness", READS, identity="portraits"),
        node("invert", "InvertImage", TRAINS),
        node("tune", "PivotalTuning", TRAINS),
        node("shift", "ShiftFromText", READS, source="photo", target="zombie"),
        adapting(),
        node("both", "ApplyDomain", TRAINS, "Add the tuning", width=210),
        comparing("inverted\ntuned\nzombie\ntuned zombie", 3, 480),
    ],
    links=[
        *trained("adapt"),
        *wires(
            "photo.images > align.image",
            "generator.generator > invert.generator, tune.generator, compare.generators.generator_1",
            "align.aligned > invert.image, tune.image",
            "networks.similarity_networks > invert.similarity_networks, tune.similarity_networks",
            "invert.latents > tune.latents, compare.latents",
            "adapt.adapted > both.generator, compare.generators.generator_3",
            "tune.domain > both.domain",
            "tune.tuned > compare.generators.generator_2",
            "both.generator > compare.generators.generator_4",
        ),
    ],
    subgraphs=[
        Subgraph(
            "to_generator",
            "Photo to generator",
            ["networks", "invert", "tune", "both"],
            {"invert.settings.steps": "inversion steps", "tune.settings.steps": "tuning steps"},
            color=TRAINS,
            takes=("generator", "photo", "adapted"),
            gives=("latents", "tuned", "adapted and tuned"),
        ),
        training("train", "Train a zombie", ["shift", "adapt"], {"shift.target": "target"}, "adapt"),
    ],
    columns=[
        ["note 0", "note 1"],
        ["photo", "own", "generator", "guide"],
        ["align", "train"],
        ["to_generator"],
        ["compare"],
    ],
    groups=[
        Group("1. Photos", ["photo", "own"]),
        Group("2. Generator", ["generator", "guide"]),
        Group("3. Crop", ["align"]),
        Group("4. Training", ["train"]),
        Group("5. Photo", ["to_generator"]),
        Group("6. Result", ["compare"]),
    ],
)

#: Widgets of the naive training.
GLOBAL = {
    "settings": "by hand",
    "settings.direction_loss": 0.0,
    "settings.global_loss": 1.0,
    "settings.angle_loss": 0.0,
}

NAIVE_VERSUS_DIRECTIONAL = Workflow(
    nodes=[
        Note(
            "# Why a directional loss?\n\nThe naive (global) loss moves every image toward the target text. All "
            "images converge to the same optimum: **mode collapse**.\n\nThe directional loss of StyleGAN-NADA "
            "compares *changes*: the change of each image in CLIP space should be parallel to the change from source "
            "text to target text. Each image starts from its own position, so the images stay different.\n\nThe two "
            "training runs differ only in their loss weights.",
            "Start here",
        ),
        generator(),
        GUIDE,
        node("shift", "ShiftFromText", READS, source="photo", target="marble statue"),
        faces(3),
        adapting("naive", **GLOBAL),
        adapting("adapt"),
        comparing("photo\nnaive\ndirectional", 3, 440),
    ],
    links=[
        *trained("naive", "adapt"),
        *wires(
            "generator.generator > latents.generator, compare.generators.generator_1",
            "latents.latents > compare.latents",
            "naive.adapted > compare.generators.generator_2",
            "adapt.adapted > compare.generators.generator_3",
        ),
    ],
    subgraphs=[
        training("train_naive", "Naive: global loss", ["naive"], {}, "naive"),
        training("train", "StyleGAN-NADA: directional loss", ["adapt"], {}, "adapt"),
    ],
    columns=[["note 0"], ["generator", "guide", "shift"], ["latents", "train_naive", "train"], ["compare"]],
    groups=[
        Group("1. Generator and text", ["generator", "guide", "shift"]),
        Group("2. Faces", ["latents"]),
        Group("3. Training", ["train_naive", "train"]),
        Group("4. Result", ["compare"]),
    ],
)

HOW_MANY_LAYERS = Workflow(
    nodes=[
        Note(
            "# How many layers to train?\n\nTraining fewer layers preserves more of the generator; training more "
            "layers allows larger changes.\n\n**Inspect Layers** measures how much the latents of each layer change "
            "when they are optimized toward the text. Adaptive selection trains the layers with the longest bars "
            "first.\n\nThe same direction is trained with 2 and with all layers. For a generator this small, the "
            "results are more similar than for a large one.",
            "Start here",
            300,
        ),
        generator(240),
        node("guide", "LoadGuide", READS, width=240),
        node("shift", "ShiftFromText", READS, width=240, source="photo", target="zombie"),
        faces(3, width=240),
        node("inspect", "InspectLayers", SHOWS, width=280, room=230),
        node("few", "ChooseLayers", TRAINS, **{"mode": "adaptive", "mode.count": 2}),
        node("all", "ChooseLayers", TRAINS, mode="all"),
        adapting("adapt_few"),
        adapting("adapt_all"),
        comparing("photo\n2 layers\nall layers", 3, 440),
    ],
    links=[
        *trained("adapt_few", "adapt_all", "inspect"),
        *wires(
            "few.layers > adapt_few.layers",
            "all.layers > adapt_all.layers",
            "generator.generator > latents.generator, compare.generators.generator_1",
            "latents.latents > compare.latents",
            "adapt_few.adapted > compare.generators.generator_2",
            "adapt_all.adapted > compare.generators.generator_3",
        ),
    ],
    subgraphs=[
        training("train_few", "Train 2 layers", ["few", "adapt_few"], {"few.mode.count": "layers"}, "adapt_few"),
        training("train_all", "Train all layers", ["all", "adapt_all"], {}, "adapt_all"),
    ],
    columns=[
        ["note 0"],
        ["generator", "guide", "shift"],
        ["latents", "inspect"],
        ["train_few", "train_all"],
        ["compare"],
    ],
    groups=[
        Group("1. Generator and text", ["generator", "guide", "shift"]),
        Group("2. Faces", ["latents"]),
        Group("3. Layers", ["inspect"]),
        Group("4. Training", ["train_few", "train_all"]),
        Group("5. Result", ["compare"]),
    ],
)

SEVERAL_GUIDES = Workflow(
    nodes=[
        Note(
            "# Several guides\n\nTraining against one CLIP model can produce adversarial artifacts: patterns that "
            "lower the loss but do not look like the target. Two different models share few such weaknesses, so an "
            "ensemble is more reliable. The paper uses ViT-B/32 and ViT-B/16.\n\nThe two built-in guides were "
            "trained separately and use different image sizes.\n\nFor your own generator, select `ViT-B-32:openai` "
            "and `ViT-B-16:openai`.",
            "Start here",
            300,
        ),
        generator(240),
        node("shift", "ShiftFromText", READS, width=240, source="photo", target="anime"),
        node("first", "LoadGuide", READS, "First guide", width=240, guide="portraits"),
        node("second", "LoadGuide", READS, "Second guide", width=240, guide="portraits-64"),
        node("both", "CombineGuides", READS, width=240),
        faces(3, width=240),
        adapting("adapt_first"),
        adapting("adapt_both"),
        comparing("photo\none guide\nboth guides", 3, 440),
    ],
    links=[
        *trained("adapt_first", "adapt_both", slots=("generator", "shift")),
        *wires(
            "first.guide > both.guides.guide_1, adapt_first.guide",
            "second.guide > both.guides.guide_2",
            "both.guide > adapt_both.guide",
            "generator.generator > latents.generator, compare.generators.generator_1",
            "latents.latents > compare.latents",
            "adapt_first.adapted > compare.generators.generator_2",
            "adapt_both.adapted > compare.generators.generator_3",
        ),
    ],
    subgraphs=[
        training("train_first", "Train with one guide", ["adapt_first"], {}, "adapt_first"),
        training("train_both", "Train with both guides", ["adapt_both"], {}, "adapt_both"),
    ],
    columns=[
        ["note 0"],
        ["generator", "shift", "first", "second"],
        ["latents", "both"],
        ["train_first", "train_both"],
        ["compare"],
    ],
    groups=[
        Group("1. Generator, text and guides", ["generator", "shift", "first", "second"]),
        Group("2. Faces", ["latents"]),
        Group("3. Both guides", ["both"]),
        Group("4. Training", ["train_first", "train_both"]),
        Group("5. Result", ["compare"]),
    ],
)


def photo_to_generator(steps: int = -1) -> tuple[list[Node], list[tuple[str, str]], Subgraph]:
    """Nodes that draw aligned faces with a generator that was adapted to a text: nodes, links and their box."""
    nodes = [
        node("networks", "LoadLikeness", READS, identity="portraits"),
        node("invert", "InvertImage", TRAINS, **{"settings.steps": steps}),
        node("tune", "PivotalTuning", TRAINS, **{"settings.steps": steps}),
        node("both", "ApplyDomain", TRAINS, "Add the tuning"),
        node("render", "Render", SHOWS),
    ]
    links = wires(
        "generator.generator > invert.generator, tune.generator",
        "align.aligned > invert.image, tune.image",
        "networks.similarity_networks > invert.similarity_networks, tune.similarity_networks",
        "invert.latents > tune.latents, render.latents",
        "adapt.adapted > both.generator",
        "tune.domain > both.domain",
        "both.generator > render.generator",
    )
    box = Subgraph(
        "new_faces",
        "Faces in the new domain",
        ["networks", "invert", "tune", "both", "render"],
        {"invert.settings.steps": "inversion steps", "tune.settings.steps": "tuning steps"},
        color=TRAINS,
        takes=("generator", "aligned", "adapted"),
        gives=("faces",),
    )
    return nodes, links, box


FACE_NODES, FACE_LINKS, FACE_BOX = photo_to_generator()

FACE_BACK = Workflow(
    nodes=[
        Note(
            "# The face back into the photo\n\n**Align Face to FFHQ** cuts the face out and remembers where. The face "
            "is inverted, the generator is tuned to reproduce it, and a generator that was fine-tuned with text draws "
            "it. **Paste Face into Photo** puts the result back: pixels outside of its mask do not change.",
            "Start here",
            290,
        ),
        Note(
            "## Your own photo\n\n1. Connect **Your photo** to **Align Face to FFHQ** and to **Paste Face into "
            "Photo**. Clear **points**: they belong to the drawn photo. Set **size** to that of your generator.\n2. "
            "**face** -1 takes all faces of the photo.\n3. **StyleGAN Loader**: a StyleGAN2 file of aligned faces, "
            "such as FFHQ. **Load CLIP Guide**: `ViT-B-32:openai`.",
            "Next",
            290,
        ),
        node("photo", "DrawPortrait", READS, "Photo", width=230, seed=31, count=1),
        core("own", "LoadImage", READS, "Your photo", width=230, room=130),
        node("align", "AlignFace", READS, width=250, size=64, points="21.6,28.2 38.1,28.2 24.9,43 34.9,43"),
        generator(230),
        node("guide", "LoadGuide", READS, width=230),
        *FACE_NODES,
        node("shift", "ShiftFromText", READS, source="photo", target="zombie"),
        adapting(),
        node("paste", "PasteFace", SHOWS, width=250),
        core("before", "PreviewImage", SHOWS, "Before", width=230, room=210),
        core("result", "PreviewImage", SHOWS, "After", width=230, room=210),
    ],
    links=[
        *trained("adapt"),
        *FACE_LINKS,
        *wires(
            "photo.images > align.image, paste.image, before.images",
            "align.frames > paste.frames",
            "render.images > paste.faces",
            "paste.pasted > result.images",
        ),
    ],
    subgraphs=[FACE_BOX, training("train", "Train a zombie", ["shift", "adapt"], {"shift.target": "target"}, "adapt")],
    columns=[
        ["note 0", "note 1"],
        ["photo", "own", "generator", "guide"],
        ["align", "train"],
        ["new_faces"],
        ["paste"],
        ["before", "result"],
    ],
    groups=[
        Group("1. Photo", ["photo", "own"]),
        Group("2. Generator", ["generator", "guide"]),
        Group("3. Crop", ["align"]),
        Group("4. Training", ["train"]),
        Group("5. Face", ["new_faces"]),
        Group("6. Paste", ["paste"]),
        Group("7. Result", ["before", "result"]),
    ],
)

CLIP_NODES, CLIP_LINKS, CLIP_BOX = photo_to_generator(60)

FACES_OF_A_CLIP = Workflow(
    nodes=[
        Note(
            "# Faces of a video\n\nThe frames of a clip are a batch of photos. **smoothing** follows the face and "
            "smooths its position over time, against flicker. All frames are inverted together, and one pivotal "
            "tuning serves all of them.\n\nThe clip here is drawn.",
            "Start here",
            290,
        ),
        Note(
            "## Your own clip\n\n1. Select it in **Load Video**; short ones first: every frame is inverted. Connect "
            "**images** to **Align Face to FFHQ** and **Paste Face into Photo**, and **fps** and **audio** to **Create "
            "Video**.\n2. Clear **points**, and set **size** to that of your generator of FFHQ faces.",
            "Next",
            290,
        ),
        node("generator", "LoadGenerator", READS, width=230),  # its description fits the gap below
        node("guide", "LoadGuide", READS, width=230),
        faces(2, 4, title="Two people"),
        node("walk", "InterpolateLatents", SHOWS, "From one to the other", frames=5, loop=True),
        node("clip", "DrawPortrait", READS, "Frames"),
        core("own", "LoadVideo", READS, width=230),
        core("parts", "GetVideoComponents", READS, width=230),
        node("align", "AlignFace", READS, width=250, size=64, points="23,29.5 38,29.5 25,43 36,43", smoothing=2.0),
        *CLIP_NODES,
        node("shift", "ShiftFromText", READS, source="photo", target="zombie"),
        adapting(),
        node("paste", "PasteFace", SHOWS, width=250),
        core("video", "CreateVideo", SHOWS, width=230, fps=5.0),
        core("save", "SaveVideo", SHOWS, width=260, room=260, filename_prefix="video/faces"),
    ],
    links=[
        *trained("adapt"),
        *CLIP_LINKS,
        *wires(
            "generator.generator > latents.generator",
            "latents.latents > walk.latents",
            "walk.latents > clip.latents",
            "clip.images > align.image, paste.image",
            "own.VIDEO > parts.video",
            "align.frames > paste.frames",
            "render.images > paste.faces",
            "paste.pasted > video.images",
            "video.VIDEO > save.video",
        ),
    ],
    subgraphs=[
        Subgraph(
            "frames",
            "A drawn clip",
            ["latents", "walk", "clip"],
            {"latents.seed": "seed", "walk.frames": "frames"},
            color=TRAINS,
            width=230,
            gives=("frames",),
        ),
        CLIP_BOX,
        training("train", "Train a zombie", ["shift", "adapt"], {"shift.target": "target"}, "adapt"),
    ],
    columns=[
        ["note 0", "note 1"],
        ["guide", "generator", "frames", "own", "parts"],
        ["align", "train"],
        ["new_faces"],
        ["paste"],
        ["video", "save"],
    ],
    groups=[
        Group("1. Generator", ["guide", "generator"]),
        Group("2. Frames", ["frames", "own", "parts"]),
        Group("3. Crop", ["align"]),
        Group("4. Training", ["train"]),
        Group("5. Faces", ["new_faces"]),
        Group("6. Paste", ["paste"]),
        Group("7. Video", ["video", "save"]),
    ],
)

PAIRS = Workflow(
    nodes=[
        Note(
            "# Learn from pairs\n\nAn image model edits the generator's own images; **Adapt to Pairs** trains the "
            "generator to draw the edited images from their latents.\n\nHere the built-in renderer plays the image "
            "model, so that nothing has to be downloaded: it draws the people of 32 latents as statues. The next "
            "template uses a diffusion model.\n\nThe sheet shows other people, whom the generator has not been "
            "trained on.",
            "Start here",
        ),
        generator(),
        node("people", "SampleLatents", SHOWS, "Latents to learn from", seed=100, count=32, psi=1.0),
        node("model", "DrawPortrait", READS, "Image model: the renderer", style="marble statue"),
        GUIDE,
        node("adapt", "AdaptToPairs", TRAINS, room=LARGE, width=320, settings="automatic"),
        faces(3, title="Other people"),
        comparing("photo\nlearned", 3, 330),
    ],
    links=wires(
        "generator.generator > people.generator, latents.generator, adapt.generator",
        "generator.generator > compare.generators.generator_1",
        "people.latents > model.latents, adapt.latents",
        "model.images > adapt.images",
        "guide.guide > adapt.guide",
        "latents.latents > compare.latents",
        "adapt.adapted > compare.generators.generator_2",
    ),
    columns=[["note 0", "generator"], ["people", "guide"], ["model"], ["latents", "adapt"], ["compare"]],
    groups=[
        Group("1. Generator", ["generator"]),
        Group("2. Latents and filter", ["people", "guide"]),
        Group("3. Edit", ["model"]),
        Group("4. Other people", ["latents"]),
        Group("5. Training", ["adapt"]),
        Group("6. Result", ["compare"]),
    ],
)

DIFFUSION = Workflow(
    nodes=[
        Note(
            "# Learn from a diffusion model\n\nSelect a checkpoint and your generator. **Render and restyle** edits 16 "
            "of the generator's images by img2img, all with one seed and one text; **Adapt to Pairs** learns from "
            "them.",
            "Start here",
        ),
        Note(
            "## denoise\n\n0.4 to 0.6 changes the style but keeps pose and crop. Look at the edited images first: a "
            "turned head is learned blurred. Wrong pairs are rejected, and the node says why.\n\n32 pairs are better "
            "than 16: raise **count**. For an edit model, replace the nodes in **Render and restyle**.",
            "Denoise strength",
        ),
        generator(250),
        core("checkpoint", "CheckpointLoaderSimple", READS, width=250),
        node("guide", "LoadGuide", READS, width=250),
        node("people", "SampleLatents", SHOWS, "Latents to learn from", width=220, seed=100, count=16, psi=0.85),
        node("render", "Render", SHOWS, width=200),
        core("scale", "ImageScale", SHOWS, upscale_method="lanczos", width=512, height=512),
        core("encode", "VAEEncode", SHOWS),
        core("positive", "CLIPTextEncode", READS, text="an oil painting of a person, portrait"),
        core("negative", "CLIPTextEncode", READS, text="blurry, text"),
        core("sampler", "KSampler", TRAINS, denoise=0.5, steps=20, cfg=6.0),
        core("decode", "VAEDecode", SHOWS),
        core("edited", "PreviewImage", SHOWS, "Edited images", width=280, room=180),
        faces(3, title="Other people", width=220),
        node("adapt", "AdaptToPairs", TRAINS, room=LARGE, width=280, settings="automatic"),
        comparing("before\nlearned", 3, 280),
    ],
    links=wires(
        "generator.generator > people.generator, render.generator, latents.generator, adapt.generator",
        "generator.generator > compare.generators.generator_1",
        "people.latents > render.latents, adapt.latents",
        "latents.latents > compare.latents",
        "render.images > scale.image",
        "scale.IMAGE > encode.pixels",
        "checkpoint.VAE > encode.vae, decode.vae",
        "checkpoint.CLIP > positive.clip, negative.clip",
        "checkpoint.MODEL > sampler.model",
        "positive.CONDITIONING > sampler.positive",
        "negative.CONDITIONING > sampler.negative",
        "encode.LATENT > sampler.latent_image",
        "sampler.LATENT > decode.samples",
        "decode.IMAGE > edited.images, adapt.images",
        "guide.guide > adapt.guide",
        "adapt.adapted > compare.generators.generator_2",
    ),
    subgraphs=[
        Subgraph(
            "restyle",
            "Render and restyle",
            ["render", "scale", "encode", "positive", "negative", "sampler", "decode"],
            {
                "positive.text": "text",
                "negative.text": "negative text",
                "sampler.seed": "seed",
                "sampler.steps": "steps",
                "sampler.denoise": "denoise",
            },
            color=TRAINS,
            width=250,
        )
    ],
    columns=[
        ["note 0", "note 1"],
        ["generator", "guide", "checkpoint"],
        ["people", "latents"],
        ["restyle"],
        ["edited", "adapt"],
        ["compare"],
    ],
    groups=[
        Group("1. Models", ["generator", "checkpoint", "guide"]),
        Group("2. Latents", ["people"]),
        Group("3. Edit", ["restyle"]),
        Group("Edited images", ["edited"]),
        Group("4. Training", ["adapt"]),
        Group("5. Other people", ["latents"]),
        Group("6. Result", ["compare"]),
    ],
)

#: By file name, which ComfyUI shows as the title of the template; in the order in which a newcomer needs them.
WORKFLOWS = {
    "1 Text to new domain": TEXT_TO_NEW_DOMAIN,
    "2 Your own pictures": YOUR_OWN_PICTURES,
    "3 Pick from a filmstrip": FILMSTRIP,
    "4 Mix domains by strength": DOMAINS_MIXED,
    "5 Sample sheet": SAMPLE_SHEET,
    "6 Latent walk as video": LATENT_WALK,
    "7 Photo to new domains": PHOTO_TO_DOMAINS,
    "8 Your photo": YOUR_PHOTO,
    "9 Naive versus directional": NAIVE_VERSUS_DIRECTIONAL,
    "10 How many layers": HOW_MANY_LAYERS,
    "11 Several guides": SEVERAL_GUIDES,
    "12 Face back into the photo": FACE_BACK,
    "13 Learn from pairs": PAIRS,
    "14 Learn from a diffusion model": DIFFUSION,
    "15 Faces of a video": FACES_OF_A_CLIP,
}

TEXT_BLUEPRINT = Workflow(
    nodes=[
        generator(),
        GUIDE,
        node("shift", "ShiftFromText", READS, source="photo", target="zombie"),
        adapting(),
        comparing("photo\nnew domain", 1),
        node("save", "SaveDomain", SHOWS),
    ],
    links=[
        ("generator.generator", "adapt.generator"),
        *trained("adapt", slots=("guide", "shift")),
        ("generator.generator", "compare.generators.generator_1"),
        ("adapt.adapted", "compare.generators.generator_2"),
        ("adapt.domain", "save.domain"),
    ],
    subgraphs=[
        training(
            "box",
            "Text to new domain (StyleGAN)",
            ["guide", "shift", "adapt"],
            {"guide.guide": "CLIP guide", "shift.source": "source", "shift.target": "target"},
            "adapt",
        )
    ],
    columns=[["generator"], ["box"], ["compare", "save"]],
    about="Fine-tunes a StyleGAN2 generator toward a text with StyleGAN-NADA: CLIP guide, direction and training.",
)

PHOTO_BLUEPRINT = Workflow(
    nodes=[
        generator(),
        node("photo", "DrawPortrait", READS),
        node("align", "AlignFace", READS, size=64, cut="the face, else the middle"),
        node("networks", "LoadLikeness", READS, identity="portraits"),
        node("invert", "InvertImage", TRAINS),
        node("save", "SaveLatents", SHOWS),
        core("sheet", "PreviewImage", SHOWS),
        core("report", "PreviewAny", SHOWS),
    ],
    links=wires(
        "generator.generator > invert.generator",
        "photo.images > align.image",
        "align.aligned > invert.image",
        "networks.similarity_networks > invert.similarity_networks",
        "invert.latents > save.latents",
        "invert.inverted > sheet.images",
        "invert.report > report.source",
    ),
    subgraphs=[
        Subgraph(
            "box",
            "Photo to latents (StyleGAN)",
            ["align", "networks", "invert"],
            {
                "align.size": "size",
                "networks.perceptual": "perceptual",
                "networks.identity": "identity",
                "invert.settings.steps": "steps",
                "invert.seed": "seed",
            },
            color=TRAINS,
        )
    ],
    columns=[["photo", "generator"], ["box"], ["save", "sheet", "report"]],
    about="Aligns photos of faces and finds the latents of a StyleGAN2 generator that reproduce them.",
)

#: By file name, which is the name of the node in ComfyUI's node library.
BLUEPRINTS = {box.subgraphs[0].title: box for box in (TEXT_BLUEPRINT, PHOTO_BLUEPRINT)}
