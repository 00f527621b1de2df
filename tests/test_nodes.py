"""The nodes in a test double of ComfyUI: contract, widgets, behavior and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host.double import install, load_pack
from host.executor import Executor, Refused, Result
from host.guards import differences, snapshot
from pack_world import AUTOGROW, CONTRACT, DYNAMIC, PREFIX, QUICK, World
from PIL import Image
from tiny import DIM, Encoder, rng, tokenize
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]

FROZEN = (
    "is not what was released. Node ids, input ids and their order, and outputs never change, because saved "
    "workflows keep widget values by position; new inputs and outputs go to the end, and then into this table."
)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(state(one), state(other), **tolerance)


def tree(root: Path) -> dict[str, int]:
    """Sizes of all files and folders below `root`."""
    return {str(path.relative_to(root)): path.stat().st_size if path.is_file() else -1 for path in root.rglob("*")}


def ran(result: Result) -> set[str]:
    result.check()
    return set(result.executed)


# ---- the contract -------------------------------------------------------------------------------------------------


def contract_of(one: Any) -> list[str]:
    """The lines of CONTRACT for an input."""
    if one.io_type == AUTOGROW:
        return [one.id, f"{one.id}={one.template.min} or more: {' '.join(one.template.names)}"]
    options = one.options if one.io_type == DYNAMIC else ()
    return [one.id, *(f"{one.id}={o.key}: {' '.join(i.id for i in o.inputs)}" for o in options if o.inputs)]


def test_node_contract_is_frozen(either: World) -> None:
    contract = {}
    for cls in either.pack.nodes:
        schema = cls.GET_SCHEMA()
        assert schema.node_id.startswith(PREFIX) and schema.category.startswith("StyleGAN-NADA/")
        contract[schema.node_id.removeprefix(PREFIX)] = (
            schema.category.removeprefix("StyleGAN-NADA/"),
            [line for one in schema.inputs for line in contract_of(one)],
            [(one.id, one.io_type) for one in schema.outputs],
        )
    for name, released in CONTRACT.items():
        assert contract.get(name) == released, f"{name} {FROZEN}"
    assert contract.keys() == CONTRACT.keys(), f"{contract.keys() - CONTRACT.keys()} are new: add them to this table"


def test_nodes_have_description_tooltips_and_help(either: World) -> None:
    for name, entry in either.executor.object_info([PREFIX + name for name in CONTRACT]).items():
        schema = either.executor.classes[name].GET_SCHEMA()
        assert len(entry["description"]) > 40 and entry["search_aliases"], name
        hidden = [i for one in schema.inputs if one.io_type == DYNAMIC for o in one.options for i in o.inputs]
        for one in (*schema.inputs, *hidden, *schema.outputs):
            assert one.tooltip and one.tooltip.endswith("."), f"{name}: {one.id} has no tooltip"
        assert (ROOT / "web" / "docs" / name / "en.md").stat().st_size > 200, f"{name} has no help page"
    names = [cls.GET_SCHEMA().display_name for cls in either.pack.nodes]
    assert len(set(names)) == len(names) == len(CONTRACT)


def test_defaults_survive_frontend_rounding(either: World) -> None:
    for name in CONTRACT:
        for key, (kind, options) in either.widgets(name).items():
            where, default = f"{name}.{key}", options.get("default")
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= default <= options["max"], where
                assert options["step"] > 0 and type(default) is (int if kind == "INT" else float), where
            if kind == "INT":
                assert options["max"] < 2**53 and (default - options["min"]) % options["step"] == 0, where
            if kind == "FLOAT":
                ticks = default / options["round"]
                assert options["round"] <= options["step"] and abs(ticks - round(ticks)) < 1e-6, where
            if kind == "COMBO":
                assert options["options"] and (default is None or default in options["options"]), where
            if kind in ("STRING", "BOOLEAN"):
                assert type(default) is {"STRING": str, "BOOLEAN": bool}[kind], where


def test_nodes_show_at_most_eight_widgets_at_first(either: World) -> None:
    # The classic renderer shows advanced widgets, too.
    shown = {}
    for name in CONTRACT:
        first = {key for key in either.widgets(name) if "." not in key}
        for key, (kind, options) in either.widgets(name).items():
            if kind == DYNAMIC:
                sections = options["options"][0]["inputs"].values()
                first |= {f"{key}.{one}" for section in sections for one in section}
        shown[name] = len(first)
    assert {name: count for name, count in shown.items() if count > 8} == {}


# ---- widgets and settings -----------------------------------------------------------------------------------------


@pytest.fixture
def config_of(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the AdaptConfig that Adapt Generator builds from widget values."""

    class ConfigCaptured(Exception):  # noqa: N818
        pass

    def capture(source: Any, guides: Any, shift: Any, config: Any, **_: Any) -> None:
        raise ConfigCaptured(config)

    def config(**values: Any) -> Any:
        given = {"generator": world.stranger, "guide": world.guide, "shift": world.shift, **values}
        with pytest.raises(ConfigCaptured) as captured:
            world.call("AdaptGenerator", **given)
        return captured.value.args[0]

    monkeypatch.setattr(world.module("nodes._training"), "adapt", capture)
    monkeypatch.setattr(world.module("nodes._training"), "_preview", lambda *_: None)
    return config


def test_default_widgets_give_the_recommended_settings(world: World, config_of: Callable[..., Any]) -> None:
    from nada_core.portraits import RECIPE

    assert config_of() == world.core.AdaptConfig(layers=replace(world.core.LayerChoice(), count=12))
    assert repr(config_of(generator=world.generator)) == repr(RECIPE)
    by_hand, (layers,) = {"settings": "by hand"}, world.call("ChooseLayers")
    assert config_of(generator=world.generator, **by_hand, **world.options(views=-1)) == config_of(
        generator=world.generator
    )
    assert layers == {"mode": "adaptive"}
    adaptive = config_of(generator=world.generator, layers=layers).layers
    assert repr(adaptive) == repr(replace(RECIPE.layers, mode="adaptive"))
    assert config_of(layers=layers).layers.count == 5, "an automatic count is at most the layers of this generator"


def test_settings_have_widgets_with_the_same_limits(world: World) -> None:
    describe = world.module("nada_core.runtime.config").describe
    nodes = {"AdaptGenerator": world.core.AdaptConfig, "ChooseLayers": world.core.LayerChoice}
    for name, cls in nodes.items():
        widgets = world.widgets(name) | (world.widgets("TrainingOptions") if name == "AdaptGenerator" else {})
        widgets = {(key.partition(".")[2] or key).removeprefix("measure_"): spec for key, spec in widgets.items()}
        for item in describe(cls):
            # The node writes no files; Choose Layers has one widget for both, and some with options of their own.
            if item.name in ("autosave_every", "rgb", "noise", "mode", "train", "names") and "noise" != item.name:
                continue
            if (name, item.name) == ("ChooseLayers", "noise"):
                continue
            keys = [f"{term}_loss" for term in world.core.TERMS] if item.kind is dict else [item.name]
            for key in keys:
                assert key in widgets, f"{name} has no widget for {cls.__name__}.{item.name}: put it to the end"
                kind, options = widgets[key]
                if kind in ("INT", "FLOAT"):
                    assert options["min"] == (0 if key == "seed" else -1), key
                    assert options["default"] == options["min"], key
                    assert options["max"] == (2**31 - 1 if item.high is None else item.high), key
                    assert item.step is None or options["step"] == item.step, key
                if kind == "COMBO":
                    choices = item.choices or ("on", "off")
                    assert options["options"] == ["automatic", *choices] and options["default"] == "automatic", key
                if item.kind is not dict and key != "seed":
                    assert item.help[1:] in options["tooltip"], key


def test_widget_values_map_to_settings(world: World, config_of: Callable[..., Any]) -> None:
    assert config_of(**world.options(label=-1)).label is None and config_of(**world.options(label=3)).label == 3
    rare = world.options(schedule="cosine", noise="const", psi=0.25, mirror="on", views=2)
    config = config_of(steps=7, lr=0.5, **rare)
    assert (config.steps, config.lr, config.schedule, config.noise) == (7, 0.5, "cosine", "const")
    assert (config.psi, config.mirror, config.views, config.batch) == (0.25, True, 2, 2)
    assert config_of(angle_loss=0.5).terms == {"direction": 1.0, "angle": 0.5}
    assert config_of(direction_loss=0.0, global_loss=2.0).terms == {"global": 2.0}, "a term of weight 0 is left out"
    terms = config_of(generator=world.generator, **world.options(covariance_loss=20.0)).terms
    assert terms == {"direction": 1.0, "angle": 0.25, "covariance": 20.0}
    (layers,) = world.call("ChooseLayers", mode="named", names="b4.conv1, b8.conv0\nb8.conv1", extra="both")
    assert layers == {"mode": "named", "names": ("b4.conv1", "b8.conv0", "b8.conv1"), "rgb": True, "noise": True}
    assert config_of(layers=layers).layers == world.core.LayerChoice(**layers)
    (layers,) = world.call("ChooseLayers", every=4, measure_chunk=2, train="low-rank", rank=2)
    assert layers == {"mode": "adaptive", "every": 4, "chunk": 2, "train": "low-rank", "rank": 2}


def test_invalid_settings_are_rejected(world: World) -> None:
    with pytest.raises(ValueError, match="weights of all loss terms are 0"):
        world.adapt(direction_loss=0.0)
    with pytest.raises(ValueError, match="names"):
        world.call("ChooseLayers", mode="named")
    with pytest.raises(ValueError, match=r"b4\.cnov1"):
        world.adapt(layers=world.call("ChooseLayers", mode="named", names="b4.cnov1")[0])
    with pytest.raises(ValueError, match="Got steps 0, expected"):
        world.adapt(steps=0)
    with pytest.raises(Refused, match=r"settings\.steps: -2 smaller than -1"):
        world.adapt(steps=-2)
    with pytest.raises(ValueError, match="Got count 11 in Choose Layers.* 9 layers"):
        world.adapt(layers=world.call("ChooseLayers", count=11)[0])


def test_angle_loss_with_one_latent_is_rejected(world: World) -> None:
    with pytest.raises(ValueError, match=r"^batch is 1, but the terms angle") as caught:
        world.adapt(batch=1, angle_loss=0.5)
    assert type(caught.value) is ValueError and "set batch to 2 or more" in str(caught.value)


def test_node_errors_name_the_widget_without_its_class(world: World) -> None:
    with pytest.raises(ValueError, match=r"^mirror is True, but views is 0"):
        world.adapt(mirror="on", views=0)


def test_builtin_recipe_fits_the_widgets(world: World) -> None:
    """The frontend rounds to `round`, so recommended values must be multiples of it."""
    from nada_core.portraits import RECIPE

    nodes = (("AdaptGenerator", RECIPE), ("TrainingOptions", RECIPE), ("ChooseLayers", RECIPE.layers))
    for name, settings in nodes:
        for key, (kind, options) in world.widgets(name).items():
            field = key.partition(".")[2]
            term = field.removesuffix("_loss")
            value = RECIPE.terms.get(term, 0.0) if field.endswith("_loss") else getattr(settings, field, None)
            if kind == "FLOAT":
                value = getattr(settings, field.removeprefix("measure_")) if value is None else value
                ticks = value / options["round"]
                assert abs(ticks - round(ticks)) < 1e-6 and options["min"] <= value <= options["max"], key


# ---- loading the pack ---------------------------------------------------------------------------------------------


def test_import_writes_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = install(monkeypatch, tmp_path / "comfy")
    before = tree(tmp_path)
    with load_pack(ROOT, host) as pack:
        Executor(host, pack.nodes).object_info()
        assert tree(tmp_path) == before


def test_import_loads_no_heavy_modules(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from host.double import install, load_pack\n"
        "host = install(sys.modules, Path(sys.argv[1]))\n"
        f"with load_pack(Path({str(ROOT)!r}), host) as pack:\n"
        "    first = {name.split('.')[0] for name in sys.modules}\n"
        "    sys.stdout.write(json.dumps([len(pack.nodes), sorted(first)]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", program, str(tmp_path / "comfy")]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    count, loaded = json.loads(answer.stdout)
    assert count == len(CONTRACT) and "torch" in loaded
    assert not {"PIL", "open_clip", "lpips", "torchvision", "scipy", "matplotlib", "tyro"} & set(loaded)


@pytest.mark.parametrize("endings", [[".foo"], {".foo", ".pt"}, set()], ids=["list", "set", "empty set"])
def test_existing_folder_registrations_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endings: Any) -> None:
    host = install(monkeypatch, tmp_path / "comfy")
    theirs = tmp_path / "theirs"
    ours = str(host.models_dir / "stylegan_nada")
    theirs.mkdir()
    for name in ("a.foo", "b.safetensors"):
        (theirs / name).touch()
    known = host.folder_paths.folder_names_and_paths
    known["stylegan_nada"] = ([str(theirs), ours], endings)
    with load_pack(ROOT, host) as pack:
        room = sys.modules[f"{pack.module.__name__}.nodes._host"]
        paths, now = known["stylegan_nada"]
        assert paths[:2] == [str(theirs), ours] and paths.count(ours) == 1 and len(paths) == 5
        assert now >= {".pkl", ".pt", ".pth", ".safetensors", *endings}
        assert set(room.files("stylegan_nada")) == {"a.foo", "b.safetensors"} - ({"a.foo"} if not endings else set())
        assert room.find("stylegan_nada", "b.safetensors") == theirs / "b.safetensors"


# ---- StyleGAN Loader -----------------------------------------------------------------------------------------


def test_load_generator_builtin(either: World) -> None:
    generator, layers, info = either.call("LoadGenerator", file="portraits")
    assert generator.resolution == 64 and layers.splitlines() == [layer.name for layer in generator.layers()]
    assert either.host.texts[-1] == ("1", info) and "64 x 64 pixels" in info and "license: MIT" in info
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())
    assert {p.device.type for p in generator.parameters()} == {"cpu"}


def test_load_generator_lists_four_folders(either: World) -> None:
    places = [
        ("models", "stylegan_nada", "a.safetensors"),
        ("models", "stylegan", "b.safetensors"),
        ("models", "stylegan2", "sub", "c.safetensors"),
        ("output", "stylegan_nada", "d.safetensors"),
    ]
    made = {os.path.join(*place[2:]): either.stranger_from(seed) for seed, place in enumerate(places)}
    for place, name in zip(places, made, strict=True):
        either.save(made[name], *place[:2], name)
    for other in (
        ("models", "stylegan_nada", "guides", "g.safetensors"),
        ("models", "stylegan_nada", "domains", "h.safetensors"),
        ("output", "stylegan_nada", "domains", "i.safetensors"),
    ):
        either.save(either.stranger, *other)
    (either.host.models_dir / "stylegan_nada" / "readme.txt").touch()
    assert either.widgets("LoadGenerator")["file"][1]["options"] == ["portraits", *sorted(made)]
    for name, generator in made.items():
        assert same(either.call("LoadGenerator", file=name)[0], generator)
    assert either.widgets("LoadGuide")["guide.file"][1]["options"] == ["g.safetensors"]
    assert either.widgets("LoadDomain")["file"][1]["options"] == ["h.safetensors", "i.safetensors"]


@pytest.mark.parametrize(
    ("name", "widget", "folder"),
    [("LoadGenerator", "file", "stylegan_nada"), ("LoadDomain", "file", "stylegan_nada/domains")],
)
def test_missing_file_is_rejected_at_its_widget(either: World, name: str, widget: str, folder: str) -> None:
    linked = {"generator": "load.0"} if name == "LoadDomain" else {}
    nodes = {
        "load": ("LoadGenerator", {}),
        "it": (name, {widget: "gone.pt", **linked}),
        "show": ("PreviewAny", {"source": "it.0"}),
    }
    with pytest.raises(Refused) as refused:
        either.executor.run(either.prompt(**nodes))
    (error,) = refused.value.errors
    assert (error.node_id, error.input_name, error.type) == ("it", widget, "custom_validation_failed")
    for part in ("'gone.pt' was not found", str(either.host.models_dir / folder), "press R"):
        assert part in error.details


def test_missing_guide_file_is_rejected_at_its_widget(either: World) -> None:
    own = {"guide": "own file", "file": "gone.pt"}
    prompt = either.prompt(it=("LoadGuide", own), show=("PreviewAny", {"source": "it.0"}))
    with pytest.raises(Refused) as refused:
        either.executor.run(prompt)
    (error,) = refused.value.errors
    assert (error.input_name, error.type) == ("guide.file", "value_not_in_list") and "gone.pt" in error.details
    result = either.executor.run({**prompt, "it": {**prompt["it"], "inputs": {"guide": "gone.pt"}}})
    with pytest.raises(ValueError, match="guide of this workflow"):
        result.check()


def test_file_names_accept_both_separators(world: World) -> None:
    world.save(world.stranger, "models", "stylegan_nada", "of", "friends.safetensors")
    for name in ("of/friends.safetensors", "of\\friends.safetensors"):
        assert same(world.call("LoadGenerator", file=name)[0], world.stranger)


def test_find_rejects_a_deleted_file(world: World) -> None:
    with pytest.raises(ValueError, match="gone.pkl"):
        world.room.find("stylegan_nada", "gone.pkl")


def test_file_stamp_includes_the_config(world: World) -> None:
    weights = world.host.models_dir / "stylegan_nada" / "guides" / "own.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x")
    first = world.room.file_stamp("stylegan_nada_guides", "own.safetensors")
    weights.with_suffix(".json").write_text("{}")
    assert world.room.file_stamp("stylegan_nada_guides", "own.safetensors") != first


def test_changed_generator_file_is_reloaded(either: World) -> None:
    path = either.save(either.stranger_from(0), "models", "stylegan_nada", "mine.safetensors")
    prompt = either.prompt(
        load=("LoadGenerator", {"file": "mine.safetensors"}),
        latents=("SampleLatents", {"generator": "load.0", "count": 1}),
        draw=("Render", {"generator": "load.0", "latents": "latents.0"}),
        show=("PreviewImage", {"images": "draw.0"}),
    )
    before = either.executor.run(prompt).check()["draw"][0]
    assert not ran(either.executor.run(prompt))
    stamp = path.stat().st_mtime_ns
    either.save(either.stranger_from(5), "models", "stylegan_nada", "mine.safetensors")
    os.utime(path, ns=(stamp + 10**9, stamp + 10**9))
    result = either.executor.run(prompt)
    assert ran(result) == set(prompt) and not torch.equal(result["draw"][0], before)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("LoadGenerator", "stylegan_nada"),
        ("LoadGuide", "stylegan_nada/guides"),
        ("LoadDomain", "stylegan_nada/domains"),
    ],
)
def test_fingerprint_follows_time_and_size(world: World, name: str, folder: str) -> None:
    path = world.host.models_dir / folder / "a.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"12")

    def stamp() -> Any:
        values = {**world.defaults(name), next(iter(world.widgets(name))): path.name}
        if name == "LoadGuide":
            values = {"guide": {"guide": "own file", "file": path.name}}
        stamp = world.node(name).fingerprint_inputs(**values)
        os.utime(path, ns=(0, 10**9))
        return stamp

    first, second = stamp(), stamp()
    assert first != second == stamp()
    path.write_bytes(b"1234")
    os.utime(path, ns=(0, 10**9))
    assert stamp() != second


# ---- guides -------------------------------------------------------------------------------------------------------


def test_load_guide_from_file(either: World) -> None:
    from nada_core.io.checkpoint_file import BUILTIN

    folder = either.host.models_dir / "stylegan_nada" / "guides"
    folder.mkdir(parents=True)
    name = f"own-guide-{either.host.version}"
    shutil.copy(BUILTIN / "guide.safetensors", folder / f"{name}.safetensors")
    own = {"guide": "own file", "file": f"{name}.safetensors", "architecture": "RN50-quickgelu"}
    assert either.widgets("LoadGuide")["guide.file"][1]["options"] == [f"{name}.safetensors"]
    with pytest.raises(ValueError, match="RN50-quickgelu"):
        either.call("LoadGuide", **own)
    shutil.copy(BUILTIN / "guide.json", folder / f"{name}.json")
    ((guide, weight),) = either.call("LoadGuide", **own)[0]
    ((built_in, _),) = either.guide
    image = torch.rand(1, 3, 64, 64, generator=rng()) * 2 - 1
    assert weight == 1.0 and guide.name != built_in.name == "portraits"
    assert torch.equal(guide.encode_images(image), built_in.encode_images(image))


def test_combine_guides_multiplies_weights(world: World) -> None:
    ((one, _),) = world.guide
    (pair,) = world.call("CombineGuides", guides=[world.guide] * 2, guide_weights="3 1")
    (three,) = world.call("CombineGuides", guides=[pair, world.guide], guide_weights="0.5, 2")
    assert pair == ((one, 3.0), (one, 1.0)) and three == ((one, 1.5), (one, 0.5), (one, 2.0))
    assert world.call("CombineGuides", guides=[world.guide] * 8) == (((one, 1.0),) * 8,)
    for weights in ("1", "1 2 3", "1 0", "1 -1", "1 nan", "1 inf", "1 one"):
        with pytest.raises(ValueError, match=f"'{weights}'"):
            world.call("CombineGuides", guides=[world.guide] * 2, guide_weights=weights)
    with pytest.raises(Refused, match=r"guides\.guide_2"):
        world.call("CombineGuides", guides=[world.guide])


def test_adapt_with_guides_of_different_sizes(world: World) -> None:
    """Train with a guide of 16 pixels and another embedding size, together with the built-in one."""
    small = world.core.ClipGuide("small", Encoder(0), tokenize, DIM)
    (both,) = world.call("CombineGuides", guides=[world.guide, ((small, 1.0),)])
    assert small.size != world.guide[0][0].size and small.dim != world.guide[0][0].dim
    assert not same(world.adapt(guide=both, views=1)[0], world.generator)


# ---- directions ---------------------------------------------------------------------------------------------------


def test_invalid_texts_are_rejected(either: World) -> None:
    with pytest.raises(Refused, match="target - Got ' '"):
        either.call("ShiftFromText", target=" ")
    with pytest.raises(Refused, match="Got 'photo' and 'Photo '"):
        either.call("ShiftFromText", source="photo", target="Photo ")
    (shift,) = either.call("ShiftFromText", target="quokka")
    with pytest.raises(ValueError, match=r"'quokka'.*zombie"):
        either.adapt(shift=shift)


def test_wording_selects_the_templates(world: World) -> None:
    (bare,), (full,) = (world.call("ShiftFromText", wording=wording) for wording in ("bare", "templates"))
    assert len(bare.templates) == 1 and len(full.templates) == 79
    assert full == world.core.TextShift("photo", "zombie")


def test_shift_from_images(world: World) -> None:
    images = torch.rand(10, 16, 16, 4, generator=rng())
    (shift,) = world.call("ShiftFromImages", images=images)
    assert type(shift) is world.core.ImageShift
    torch.testing.assert_close(shift.images, images[..., :3].permute(0, 3, 1, 2) * 2 - 1)
    with pytest.raises(ValueError, match=r"\[11, 3, 16, 16\]"):
        world.call("ShiftFromImages", images=torch.zeros(11, 16, 16, 3))


# ---- Adapt Generator ----------------------------------------------------------------------------------------------


def test_adapt_outputs(either: World) -> None:
    adapted, domain, training = either.trained
    assert not same(adapted, either.generator) and adapted.space() == either.generator.space()
    assert not adapted.training and not any(p.requires_grad for p in adapted.parameters())
    assert_close(domain.apply(either.generator), adapted, rtol=0, atol=1e-6)
    assert len(training["loss"]) == QUICK["steps"] and training.keys() == {"loss", "layers"}
    assert training["layers"].keys() == {layer.name for layer in either.generator.layers()}
    assert training["layers"]["b4.conv1"] == [1.0, 1.0] and training["layers"]["b4.torgb"] == [1.0, 1.0]
    assert domain.provenance


def test_preview_shows_source_and_current_state(either: World) -> None:
    either.adapt(steps=3, lr=0.1)
    (bar,) = either.host.bars
    assert [value for value, _, _ in bar.ticks] == [1, 2, 3] and bar.total == 3 and bar.shown[-1] == 3
    first, last = bar.previews[0], bar.previews[-1]
    assert len(bar.previews) >= 2 and (first[0], first[2]) == ("JPEG", 512) and isinstance(first[1], Image.Image)
    width, height = first[1].size
    assert 1.8 < width / height < 2.2, "four latents, two rows"
    upper, lower = (0, 0, width, height // 2), (0, height // 2, width, height)
    assert first[1].crop(upper).tobytes() == last[1].crop(upper).tobytes(), "the row of before stands still"
    assert first[1].crop(lower).tobytes() != last[1].crop(lower).tobytes(), "the row of now moves"
    drawn = either.core.render(either.generator, either.latents(4))
    above = either.module("nada_core.io.images").to_pil(either.core.grid(drawn, columns=4))
    assert (
        first[1].crop((8, 8, width - 8, height // 2 - 8)).tobytes()
        == above.crop((8, 8, width - 8, height // 2 - 8)).tobytes()
    )


def test_preview_takes_at_most_a_tenth_of_the_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def previews(seconds_a_look: float) -> int:
        def picture() -> Tensor:
            nonlocal now
            now += seconds_a_look
            return torch.zeros(1, 3, 8, 8)

        nonlocal now
        tick = world.module("nodes._server").watch(1000)
        for step in range(1000):
            now += 0.01
            tick(step + 1, picture)
        return len(world.host.bars[-1].previews)

    monkeypatch.setattr(world.module("nodes._server"), "time", SimpleNamespace(perf_counter=lambda: now))
    assert 15 <= previews(0.0) <= 22, "ten seconds, twice a second"
    assert 3 <= previews(0.3) <= 6, "a preview of 0.3 s is worth 3 s of work"
    tick = world.module("nodes._server").watch(2)
    tick(1)
    tick(2)
    assert world.host.bars[-1].previews == [], "nothing to show"


def test_adapt_depends_on_the_seed(world: World) -> None:
    assert same(world.adapt()[0], world.trained[0])
    assert not same(world.adapt(seed=1)[0], world.trained[0])


def test_adapted_generator_can_be_adapted_again(either: World) -> None:
    again, domain, _ = either.adapt(generator=either.trained[0])
    assert not same(again, either.trained[0])
    assert_close(domain.apply(either.trained[0]), again, rtol=0, atol=1e-6)


def changed_layers(world: World, domain: Any) -> set[str]:
    names = {name: layer.name for layer in world.generator.layers() for name in layer.parameters}
    return {names[name] for name in domain.changes}


def test_unselected_layers_are_unchanged(either: World) -> None:
    (layers,) = either.call("ChooseLayers", mode="named", names="b32.conv1 b64.conv0")
    _, domain, training = either.adapt(layers=layers)
    assert changed_layers(either, domain) == {"b32.conv1", "b64.conv0"}
    assert {name for name, trained in training["layers"].items() if any(trained)} == {"b32.conv1", "b64.conv0"}


def test_adapt_with_an_image_shift(world: World) -> None:
    (images,) = world.call("Render", generator=world.trained[0], latents=world.latents(2, seed=40))
    (shift,) = world.call("ShiftFromImages", images=images)
    adapted, _, training = world.adapt(shift=shift)
    assert not same(adapted, world.generator) and not same(adapted, world.trained[0]) and len(training["loss"]) == 2


def test_each_loss_term_has_a_curve(world: World) -> None:
    training = world.adapt(batch=2, angle_loss=0.5)[2]
    assert training.keys() == {"loss", "direction", "angle", "layers"}
    weighed = [a + 0.5 * b for a, b in zip(training["direction"], training["angle"], strict=True)]
    assert training["loss"] == pytest.approx(weighed)


@pytest.mark.parametrize("checks", [0, 3], ids=["at the first step", "later"])
def test_adapt_can_be_cancelled(either: World, checks: int) -> None:
    before, source = tree(either.host.root), snapshot(either.generator)
    expected = either.trained[0]
    either.host.interrupt_after(checks)
    with pytest.raises(either.host.InterruptProcessingException):
        either.adapt(steps=100)
    done = [value for value, _, _ in either.host.bars[-1].ticks]
    assert len(done) < 5 and tree(either.host.root) == before
    assert not differences(source, snapshot(either.generator))
    assert same(either.adapt()[0], expected), "the next run is as if nothing had happened"


def test_adapt_can_be_cancelled_within_a_step(world: World) -> None:
    world.adapt(steps=1)
    assert world.host.checks > 50, "one step asks at every layer, not once"
    world.reset()
    world.host.interrupt_after(30)
    with pytest.raises(world.host.InterruptProcessingException):
        world.adapt(steps=1)


def hooks(module: nn.Module) -> int:
    return sum(len(layer._forward_pre_hooks) for layer in module.modules())


def test_cancel_checks_lent_modules_only_and_leaves_no_hook(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other, inside = nn.Linear(1, 1), []
    adapt = world.module("nodes._training").adapt

    def watched(source: Any, *given: Any, **options: Any) -> Any:
        checks = world.host.checks
        other(torch.zeros(1, 1))
        inside.append((world.host.checks - checks, hooks(source), len(nn.modules.module._global_forward_pre_hooks)))
        return adapt(source, *given, **options)

    monkeypatch.setattr(world.module("nodes._training"), "adapt", watched)
    adapted = world.adapt(steps=1)[0]
    ((checks, hooked, everywhere),) = inside
    assert checks == everywhere == 0 < hooked
    assert hooks(adapted) == hooks(world.generator) == hooks(world.guide[0][0]) == 0
    (tuned,) = world.call("ApplyDomain", generator=world.generator, domain=world.trained[1], strength=0.5)
    assert hooks(tuned) == 0


def test_inspect_layers_can_be_cancelled(world: World) -> None:
    (layers,) = world.call("ChooseLayers", measure_steps=100, measure_batch=4)
    world.host.interrupt_after(60)
    given = {"generator": world.generator, "guide": world.guide, "shift": world.shift, "layers": layers}
    with pytest.raises(world.host.InterruptProcessingException):
        world.call("InspectLayers", **given)


def test_render_can_be_cancelled(world: World) -> None:
    world.host.interrupt_after(1)
    with pytest.raises(world.host.InterruptProcessingException):
        world.call("Render", generator=world.generator, latents=world.latents(3), batch=1)


# ---- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture
def room_for(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Limit memory to a number of images per forward pass."""

    def limited(act: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
        def acts(self: Any, given: Tensor, *rest: Any, **more: Any) -> Tensor:
            if len(given) > count:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return act(self, given, *rest, **more)

        return acts

    def limit(count: int) -> None:
        for owner, name in ((type(world.generator), "synthesize"), (world.core.ClipGuide, "encode_images")):
            monkeypatch.setattr(owner, name, limited(getattr(owner, name), count))

    return limit


def test_adapt_retries_smaller_batches_when_memory_runs_out(world: World, room_for: Callable[[int], None]) -> None:
    (layers,) = world.call("ChooseLayers", count=3, measure_batch=4)
    given = {"layers": layers, "batch": 4, "angle_loss": 0.5}
    _, whole, losses = world.adapt(**given)
    asked, _, _ = world.adapt(**given, chunk=1)
    room_for(1)
    given_up, parts, curves = world.adapt(**given)
    assert same(given_up, asked), "as if the user had known"
    assert curves["loss"] == pytest.approx(losses["loss"], abs=1e-4) and curves["layers"] == losses["layers"]
    assert parts.changes.keys() == whole.changes.keys()
    one, other = (torch.cat([change.flatten() for change in it.changes.values()]) for it in (parts, whole))
    # Adam makes a whole step of the smallest gradient, also where rounding turned it around.
    assert (one - other).norm() < 0.05 * other.norm()


def test_render_retries_smaller_batches_when_memory_runs_out(world: World, room_for: Callable[[int], None]) -> None:
    latents = world.latents(5)
    (whole,) = world.call("Render", generator=world.generator, latents=latents)
    room_for(1)
    (parts,) = world.call("Render", generator=world.generator, latents=latents)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_out_of_memory_error_names_the_remedy(
    world: World, room_for: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = training_prompt(world)
    room_for(0)
    monkeypatch.setattr(world.module("nodes._training"), "_preview", lambda *_: None)
    result = world.executor.run(nodes)
    node_id, error = result.error
    assert node_id == "adapt" and isinstance(error, torch.cuda.OutOfMemoryError) and world.host.unloaded == 1
    assert "Memory ran out with one latent at a time" in str(error) and "Use a smaller CLIP model" in str(error)
    assert same(result["load"][0], world.generator)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Memory ran out .* 64 pixels on the CPU"):
        world.call("Render", generator=world.generator, latents=world.latents(1))


# ---- devices ------------------------------------------------------------------------------------------------------


def weight(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def places(*modules: nn.Module) -> set[str]:
    return {tensor.device.type for module in modules for tensor in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("fails", [False, True], ids=["goes well", "fails"])
def test_on_device_copies_and_releases(world: World, fails: bool) -> None:
    generator, ((guide, _),) = world.stranger, world.guide
    world.host.device = torch.device("meta")
    before, released = snapshot([generator, guide]), []
    try:
        with torch.inference_mode(), world.room.normal_mode():
            with world.room.on_device(generator, guide, need=1000) as lent:
                assert world.host.freed == [(weight(generator) + weight(guide) + 1000, torch.device("meta"))]
                assert places(*lent) == {"meta"} and world.host.emptied == 0
                assert [type(one) for one in lent] == [type(generator), type(guide)]
                assert lent[0].spec() == generator.spec() and not any(p.requires_grad for p in lent[0].parameters())
                for one in lent:
                    one.to_empty = lambda one=one, **where: released.append((one, where))
                if fails:
                    raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert released == [(one, {"device": "meta"}) for one in lent] and world.host.emptied == 1
    assert not differences(before, snapshot([generator, guide])) and places(generator, guide) == {"cpu"}


def test_on_device_error_keeps_no_tensors_alive(world: World) -> None:
    made: list[weakref.ref[Tensor]] = []

    def work() -> None:
        activations = torch.ones(3)
        made.append(weakref.ref(activations))
        raise ZeroDivisionError

    world.host.device = torch.device("meta")
    with pytest.raises(ZeroDivisionError) as caught, world.room.on_device(world.stranger):
        work()
    assert caught.value.__traceback__ is not None and made[0]() is None


def test_on_device_copies_a_repeated_module_once(world: World) -> None:
    world.host.device = torch.device("meta")
    with world.room.on_device(world.stranger, world.stranger) as (one, other):
        assert one is other and one is not world.stranger
    assert world.host.freed[0][0] == weight(world.stranger)


def test_on_device_copies_nothing_on_the_cpu(world: World) -> None:
    with world.room.on_device(world.stranger, need=1) as lent:
        assert lent == (world.stranger,)
    assert world.host.freed == [] and world.host.emptied == 0


def test_for_training_frees_all_memory(world: World) -> None:
    ((guide, _),) = world.guide
    world.host.device = torch.device("meta")
    with world.room.for_training(world.stranger, ((guide, 0.25), (guide, 4.0))) as (lent, guides):
        assert [weight for _, weight in guides] == [0.25, 4.0] and places(lent, *(one for one, _ in guides)) == {"meta"}
    ((asked, _),) = world.host.freed
    assert asked > 1 << 59


@pytest.fixture
def elsewhere(world: World, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Simulate a device other than the CPU; return the copies made for it."""
    copies: list[nn.Module] = []
    lending = world.module("nada_core.runtime.lending")
    made = lending.copy_to

    def copy(module: nn.Module, device: torch.device) -> nn.Module:
        assert device == torch.device("meta")
        with monkeypatch.context() as patch:  # `to` would hand the very tensors on, not copies
            patch.setattr(Tensor, "to", lambda self, *where, **more: self.clone())
            copies.append(made(module, torch.device("cpu")))
        return copies[-1]

    world.host.device = torch.device("meta")
    monkeypatch.setattr(lending, "copy_to", copy)
    return copies


def test_outputs_hold_no_device_memory(world: World, elsewhere: list[nn.Module]) -> None:
    """Device copies are freed after every node, so outputs must not use them."""
    adapted, domain, _ = world.adapt()
    assert len(elsewhere) == 2 and places(*elsewhere) == {"meta"} and world.host.emptied == 1
    assert places(adapted) == {"cpu"} and {change.device.type for change in domain.changes.values()} == {"cpu"}
    latents = world.latents(2)
    (images,) = world.call("Render", generator=adapted, latents=latents)
    (chart, _) = world.call("InspectLayers", generator=adapted, guide=world.guide, shift=world.shift)
    assert places(*elsewhere) == {"meta"} and world.host.emptied == 3 == len(world.host.freed)
    world.host.device = torch.device("cpu")
    assert same(adapted, world.trained[0])
    assert torch.equal(images, world.call("Render", generator=adapted, latents=latents)[0])


def test_cancelled_training_releases_the_device(world: World, elsewhere: list[nn.Module]) -> None:
    world.host.interrupt_after(2)
    with pytest.raises(world.host.InterruptProcessingException):
        world.adapt(steps=50)
    assert places(*elsewhere) == {"meta"} and world.host.emptied == 1


# ---- latents and pictures -----------------------------------------------------------------------------------------


def test_sample_latents(either: World) -> None:
    three = either.latents(3, seed=5)
    assert three.ws.shape == (3, either.generator.num_ws, either.generator.w_dim)
    torch.testing.assert_close(three[1].ws, either.latents(1, seed=6).ws, rtol=0, atol=1e-5)
    same_psi = either.call("SampleLatents", generator=either.generator, seed=5, count=3, psi=0.0)[0]
    torch.testing.assert_close(same_psi.ws[0], same_psi.ws[1])
    (cut,) = either.call("SampleLatents", generator=either.generator, seed=5, count=3, psi=0.0, cutoff=2)
    assert torch.equal(cut.ws[:, :2], same_psi.ws[:, :2]) and not torch.equal(cut.ws[:, 2:], same_psi.ws[:, 2:])
    assert torch.equal(either.latents(3, seed=5, generator=either.trained[0]).ws, three.ws), "adapting keeps them"


def test_sample_latents_conditional(world: World) -> None:
    generator = world.stranger_from(0, c_dim=3)
    (one,), (two,) = (world.call("SampleLatents", generator=generator, count=1, label=label) for label in (0, 2))
    assert not torch.equal(one.ws, two.ws)
    for label in (-1, 3):
        with pytest.raises(ValueError, match="label"):
            world.call("SampleLatents", generator=generator, label=label)
    with pytest.raises(ValueError, match="label"):
        world.call("SampleLatents", generator=world.stranger, label=0)


def test_mix_latents(world: World) -> None:
    first, second = world.latents(2), world.latents(1, seed=9)
    (mixed,) = world.call("MixLatents", first=first, second=second, from_row=4)
    assert torch.equal(mixed.ws[:, :4], first.ws[:, :4])
    torch.testing.assert_close(mixed.ws[:, 4:], second.ws[:, 4:].expand(2, -1, -1))
    (some,) = world.call("MixLatents", first=first, second=second, from_row=1, to_row=2, amount=0.5)
    torch.testing.assert_close(some.ws[:, 1], (first.ws[:, 1] + second.ws[:, 1]) / 2)
    assert torch.equal(some.ws[:, 2:], first.ws[:, 2:])
    with pytest.raises(ValueError, match="rows"):
        world.call("MixLatents", first=first, second=second, from_row=3, to_row=2)
    with pytest.raises(ValueError, match="2 and 3"):
        world.call("MixLatents", first=first, second=world.latents(3))


def test_interpolate_latents(world: World) -> None:
    latents = world.latents(3)
    (walk,) = world.call("InterpolateLatents", latents=latents, frames=4)
    (loop,) = world.call("InterpolateLatents", latents=latents, frames=4, loop=True)
    assert (len(walk), len(loop)) == (9, 12) and torch.equal(walk.ws[[0, 4, 8]], latents.ws)
    with pytest.raises(ValueError, match="latent"):
        world.call("InterpolateLatents", latents=world.latents(1))


def test_render(either: World) -> None:
    latents = either.latents(3)
    (images,) = either.call("Render", generator=either.generator, latents=latents)
    assert images.shape == (3, 64, 64, 3) and images.dtype == torch.float32 and images.std() > 0.05
    (large,) = either.call("Render", generator=either.generator, latents=latents, batch=64)
    (small,) = either.call("Render", generator=either.generator, latents=latents, batch=1)
    torch.testing.assert_close(large, images, rtol=0, atol=1e-4)
    torch.testing.assert_close(small, images, rtol=0, atol=1e-4)
    assert [bar.ticks[-1][:2] for bar in either.host.bars] == [(3, 3)] * 3
    expected = ((either.core.render(either.generator, latents) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


def test_image_conversion_round_trip(world: World) -> None:
    image = torch.rand(2, 5, 7, 4, generator=rng())
    inside = world.room.from_image(image)
    assert inside.shape == (2, 3, 5, 7) and inside.is_contiguous() and -1 <= inside.min() < -0.9 and inside.max() <= 1
    torch.testing.assert_close(world.room.to_image(inside), image[..., :3])
    inside.zero_()
    assert image.min() < 0.5 < image.max(), "a tensor of our own"
    beyond = world.room.to_image(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1))
    assert beyond.flatten().tolist() == [0.0, 0.5, 1.0]
    grown = world.room.to_image(torch.zeros(1, 3, 2, 2, requires_grad=True) * 1)
    assert not grown.requires_grad


def test_compare(either: World) -> None:
    latents, (adapted, _, _) = either.latents(2), either.trained
    generators = [either.generator, adapted]
    (two,) = either.call("Compare", latents=latents, generators=generators)
    (four,) = either.call("Compare", latents=latents, generators=generators * 2, labels="a\nb\nc\n d ", title="All")
    assert two.shape[0] == four.shape[0] == 1 and four.shape[2] > 1.8 * two.shape[2] and four.shape[1] > two.shape[1]
    given = {f"generators.generator_{number}": adapted for number in (1, 2, 4)}
    (gap,) = either.call("Compare", latents=latents, **given, labels="a\nb\nc")
    assert two.shape[2] < gap.shape[2] < four.shape[2], "a socket in between may stay empty"
    (eight,) = either.call("Compare", latents=latents, generators=generators * 4, labels="\n".join("abcdefgh"))
    assert eight.shape[2] > four.shape[2]
    for labels in ("before", "a\nb\nc", "same\nsame", ""):
        with pytest.raises(ValueError, match="for 2 generators"):
            either.call("Compare", latents=latents, generators=generators, labels=labels)


def test_plot_training(either: World) -> None:
    (ours,) = either.call("PlotTraining", training=either.trained[2])
    (theirs,) = either.call("PlotTraining", training={"loss": [torch.tensor(0.5), torch.tensor(0.25)]}, smoothing=0.0)
    assert ours.shape[0] == theirs.shape[0] == 1 and ours.shape[2] == theirs.shape[2]
    assert ours.shape[1] > theirs.shape[1], "no layers, no second plot"
    same_numbers = {"loss": [0.5, 0.25]}
    assert torch.equal(theirs, either.call("PlotTraining", training=same_numbers, smoothing=0.0)[0])
    (one,) = either.call("PlotTraining", training={"loss": [1.0]})
    assert one.shape == theirs.shape


@pytest.mark.parametrize("rgb", [False, True])
def test_inspect_layers_output_selects_the_trained_layers(world: World, rgb: bool) -> None:
    (choice,) = world.call("ChooseLayers", count=2, measure_batch=1, extra="ToRGB" if rgb else "nothing")
    given = {"generator": world.generator, "guide": world.guide, "shift": world.shift}
    chart, chosen = world.call("InspectLayers", **given, layers=choice)
    settings = replace(world.core.AdaptConfig().layers, **choice)
    moves = world.core.inspect_layers(world.generator, world.guide, world.shift, settings)
    most = {layer.name for layer, _ in sorted(moves, key=lambda pair: -pair[1])[:2]}
    torgb = {layer.name for layer in world.generator.layers() if layer.kind == "rgb"} if rgb else set()
    assert chart.ndim == 4 and chosen["mode"] == "named" and set(chosen["names"]) == most | torgb and len(most) == 2
    assert changed_layers(world, world.adapt(layers=chosen, steps=1)[1]) == most | torgb


def test_inspect_layers_without_a_choice(world: World) -> None:
    _, chosen = world.call("InspectLayers", generator=world.generator, guide=world.guide, shift=world.shift)
    assert len(set(chosen["names"])) == 5 + 5, "the count that the generator recommends, and the ToRGB layers"


# ---- files --------------------------------------------------------------------------------------------------------


def save(world: World, what: str, **values: Any) -> Path:
    given = {"generator": world.trained[0]} if what == "Generator" else {"domain": world.trained[1]}
    return Path(world.call(f"Save{what}", **{**given, **values})[0])


@pytest.mark.parametrize("what", ["Generator", "Domain"])
def test_saved_files_are_numbered_and_listed(either: World, what: str) -> None:
    own = either.host.output / "stylegan_nada" / ("" if what == "Generator" else "domains")
    stem = "adapted" if what == "Generator" else "domain"
    assert [save(either, what) for _ in range(2)] == [own / f"{stem}_0000{n}_.safetensors" for n in (1, 2)]
    (own / f"{stem}_00002_.safetensors").rename(own / f"{stem}_00007_.safetensors")
    assert save(either, what).name == f"{stem}_00008_.safetensors", "never one that was there"
    deep = save(either, what, filename_prefix="sub/of/x_%year%")
    assert deep == own / "sub" / "of" / f"x_{time.localtime().tm_year}_00001_.safetensors" and deep.is_file()
    options = either.widgets(f"Load{what}")["file"][1]["options"]
    assert {f"{stem}_00001_.safetensors", str(deep.relative_to(own))} <= set(options)


@pytest.mark.parametrize(
    ("what", "module", "writer"),
    [
        ("Generator", "save", "save_generator"),
        ("Domain", "save", "save_domain"),
        ("Latents", "latents_io", "save_latents"),
        ("Directions", "latents_io", "save_directions"),
    ],
)
def test_number_that_another_process_takes_meanwhile_is_left_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str, module: str, writer: str
) -> None:
    room = world.module(f"nodes.{module}")
    write, others = getattr(room, writer), []

    def slow(saved: Any, path: Path, *values: Any) -> None:
        others.append(path.parent / f"x_0000{len(others) + 1}_.safetensors")
        others[-1].write_bytes(b"of another process")
        write(saved, path, *values)

    monkeypatch.setattr(room, writer, slow)
    given = {
        "Generator": {"generator": world.stranger},
        "Domain": {"domain": world.trained[1]},
        "Latents": {"latents": world.latents()},
        "Directions": {"directions": world.call("FindDirections", generator=world.generator, count=1)[0]},
    }[what]
    path = Path(world.call(f"Save{what}", **given, filename_prefix="x")[0])
    assert path.name == "x_00002_.safetensors" and path.stat().st_size > 100
    assert others == [path.with_name("x_00001_.safetensors")] and others[0].read_bytes() == b"of another process"
    assert {one.name for one in path.parent.iterdir() if one.is_file()} == {path.name, others[0].name}


@pytest.mark.parametrize("what", ["Generator", "Domain"])
@pytest.mark.parametrize("prefix", ["../x", "a/../../x", "", "  ", ".", "a\nb", "a:b", "ABSOLUTE"])
def test_save_path_stays_in_the_output_folder(either: World, what: str, prefix: str) -> None:
    prefix = str(either.host.root / "elsewhere" / "x") if prefix == "ABSOLUTE" else prefix
    before = tree(either.host.root)
    with pytest.raises(ValueError, match="Got filename_prefix"):
        save(either, what, filename_prefix=prefix)
    assert tree(either.host.root) == before


def test_save_generator_rejects_unlisted_folders(world: World) -> None:
    with pytest.raises(ValueError, match="subfolder domains"):
        save(world, "Generator", filename_prefix="domains/x")
    assert save(world, "Domain", filename_prefix="domains/x").is_file()


def test_saved_files_contain_no_local_paths(world: World) -> None:
    own = world.save(world.stranger, "models", "stylegan_nada", "own.safetensors")
    assert str(world.host.root) not in world.node("LoadGenerator").fingerprint_inputs(file=own.name)
    node = {"class_type": "X", "inputs": {"a": 1}, "is_changed": [str(own)], "_meta": {}}  # as ComfyUI hands it out
    metadata_of = world.room.metadata(SimpleNamespace(prompt={"1": node}))
    assert metadata_of == {"comfyui_prompt": {"1": {"class_type": "X", "inputs": {"a": 1}}}}


def test_generator_save_load_round_trip(either: World) -> None:
    source = either.stranger_from(3, z_dim=5)
    forms = ("safetensors", "safetensors float16", "rosinality pt")
    paths = {form: save(either, "Generator", generator=source, format=form) for form in forms}
    back = {form: either.call("LoadGenerator", file=path.name)[0] for form, path in paths.items()}
    assert same(back["safetensors"], source) and paths["rosinality pt"].suffix == ".pt"
    assert_close(back["safetensors float16"], source, rtol=1e-3, atol=1e-3)
    assert not same(back["safetensors float16"], source) and back["safetensors float16"].space() == source.space()
    latents = either.latents(1, generator=source)
    drawn = [either.core.render(generator, replace(latents, space="")) for generator in back.values()]
    torch.testing.assert_close(drawn[2], drawn[0], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="rosinality"):
        save(either, "Generator", format="rosinality pt")
    whole, half = (save(either, "Generator", format=form).stat().st_size for form in forms[:2])
    assert half < 0.6 * whole


def test_domain_save_load_round_trip(either: World) -> None:
    adapted, domain, _ = either.trained
    exact, half = (save(either, "Domain", precision=form) for form in ("float32", "float16"))
    assert half.stat().st_size < 0.6 * exact.stat().st_size
    loaded, domain_loaded = either.call("LoadDomain", generator=either.generator, file=exact.name)
    assert_close(loaded, adapted, rtol=0, atol=1e-6)
    assert domain_loaded.space == domain.space and all(
        torch.equal(domain_loaded.changes[n], c) for n, c in domain.changes.items()
    )
    assert_close(either.call("LoadDomain", generator=either.generator, file=half.name)[0], adapted, rtol=0, atol=1e-3)


def test_apply_domain_strength(either: World) -> None:
    adapted, domain, _ = either.trained
    none, half, all_of_it = (
        either.call("ApplyDomain", generator=either.generator, domain=domain, strength=strength)[0]
        for strength in (0.0, 0.5, 1.0)
    )
    assert same(none, either.generator) and not same(half, either.generator)
    assert_close(all_of_it, adapted, rtol=0, atol=1e-6)
    (twice,) = either.call("ApplyDomain", generator=half, domain=domain, strength=0.5)
    assert_close(twice, adapted, rtol=0, atol=1e-6)


def test_saved_files_contain_the_workflow(either: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata_in(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        nodes = {
            "save": ("SaveDomain", {"domain": "adapt.1", "filename_prefix": name}),
            "whole": ("SaveGenerator", {"generator": "adapt.0", "filename_prefix": name}),
        }
        prompt = training_prompt(either, **nodes)
        result = either.executor.run(prompt).check()
        domain = either.core.read_domain(result["save"][0])
        return prompt, [domain.provenance, either.core.read_provenance(result["whole"][0])]

    prompt, (domain, generator) = metadata_in("open")
    assert domain["comfyui_prompt"] == generator["comfyui_prompt"] == prompt
    assert domain["version"] == generator["version"] == either.core.__version__
    monkeypatch.setattr(either.host.args, "disable_metadata", True)
    _, (secret, other) = metadata_in("secret")
    assert "comfyui_prompt" not in {**secret, **other} and secret.keys() == domain.keys() - {"comfyui_prompt"}
    assert len(secret) > 2, "what the core tells of the training does not name the graph"


def test_load_domain_rejects_other_files(either: World) -> None:
    folder = either.host.output / "stylegan_nada" / "domains"
    sound = save(either, "Domain")
    (folder / "damaged.safetensors").write_bytes(sound.read_bytes()[:-2000])
    either.save(either.stranger, "models", "stylegan_nada", "domains", "whole.safetensors")
    for file, words in (("damaged.safetensors", "Copy it again"), ("whole.safetensors", "load it as a generator")):
        with pytest.raises(ValueError, match=words):
            either.call("LoadDomain", generator=either.generator, file=file)
    with pytest.raises(ValueError, match="another generator"):
        either.call("LoadDomain", generator=either.stranger, file=sound.name)
    with pytest.raises(ValueError, match="another generator"):
        either.call("ApplyDomain", generator=either.stranger, domain=either.trained[1])


def test_load_domain_without_files(either: World) -> None:
    (placeholder,) = either.widgets("LoadDomain")["file"][1]["options"]
    assert placeholder == "(no domain found)"
    with pytest.raises(Refused, match="no domain found"):
        either.call("LoadDomain", generator=either.generator)


def test_changed_domain_file_is_reloaded(world: World) -> None:
    path = save(world, "Domain")
    prompt = world.prompt(
        load=("LoadGenerator", {}),
        domain=("LoadDomain", {"generator": "load.0"}),
        save=("SaveDomain", {"domain": "domain.1", "filename_prefix": "copy"}),
    )
    assert ran(world.executor.run(prompt)) == set(prompt) and not ran(world.executor.run(prompt))
    for stamp in (path.stat().st_mtime_ns + 10**9, 10**9):  # 10**9: the clock was set back
        os.utime(path, ns=(stamp, stamp))
        assert ran(world.executor.run(prompt)) == {"domain", "save"}


# ---- whole graphs -------------------------------------------------------------------------------------------------


def training_prompt(world: World, /, **more: Any) -> dict[str, Any]:
    """Load, train, sample, render and show; `more` replaces or adds nodes."""
    nodes = {
        "load": ("LoadGenerator", {}),
        "guide": ("LoadGuide", {}),
        "shift": ("ShiftFromText", {"wording": "bare"}),
        "layers": ("ChooseLayers", {"mode": "all"}),
        "adapt": (
            "AdaptGenerator",
            {"generator": "load.0", "guide": "guide.0", "shift": "shift.0", "layers": "layers.0", **QUICK},
        ),
        "apply": ("ApplyDomain", {"generator": "load.0", "domain": "adapt.1", "strength": 0.5}),
        "latents": ("SampleLatents", {"generator": "load.0", "count": 2}),
        "draw": ("Render", {"generator": "apply.0", "latents": "latents.0"}),
        "show": ("PreviewImage", {"images": "draw.0"}),
    }
    return world.prompt(**{**nodes, **more})


def changed(prompt: Mapping[str, Any], node: str, **values: Any) -> dict[str, Any]:
    return {**prompt, node: {**prompt[node], "inputs": {**prompt[node]["inputs"], **values}}}


def test_cache_reruns_only_changed_nodes(either: World) -> None:
    prompt, run = training_prompt(either), either.executor.run
    assert ran(run(prompt)) == set(prompt) and len(either.host.previews) == 3  # one of Adapt Generator
    assert ran(run(prompt)) == set()
    assert ran(run(changed(prompt, "latents", seed=7))) == {"latents", "draw", "show"}
    assert ran(run(changed(prompt, "latents", seed=7))) == set()
    stronger = changed(changed(prompt, "latents", seed=7), "apply", strength=1.5)
    assert ran(run(stronger)) == {"apply", "draw", "show"}, "no training for another strength"
    assert "adapt" in ran(run(changed(stronger, "adapt", seed=1)))


def test_only_sampling_seeds_change_after_a_run(either: World) -> None:
    """A training seed that changed after every run would start a new training each time."""
    assert not either.widgets("AdaptGenerator")["seed"][1].get("control_after_generate")
    assert not either.widgets("InspectLayers")["seed"][1].get("control_after_generate")
    assert either.widgets("SampleLatents")["seed"][1]["control_after_generate"]


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown word": ("adapt", {"shift": ("ShiftFromText", {"target": "quokka", "wording": "bare"})}, "quokka"),
    "a misspelt layer": ("adapt", {"layers": ("ChooseLayers", {"mode": "named", "names": "b4conv"})}, "b4conv"),
    "latents of another generator": (
        "draw",
        {
            "other": ("LoadGenerator", {"file": "other.safetensors"}),
            "latents": ("SampleLatents", {"generator": "other.0", "count": 1}),
        },
        "another generator",
    ),
    "a domain of another generator": (
        "apply",
        {
            "other": ("LoadGenerator", {"file": "other.safetensors"}),
            "apply": ("ApplyDomain", {"generator": "other.0", "domain": "adapt.1"}),
        },
        "another generator",
    ),
    "a damaged generator": (
        "load",
        {"load": ("LoadGenerator", {"file": "damaged.safetensors"})},
        "damaged.safetensors",
    ),
    "a guide as generator": ("load", {"load": ("LoadGenerator", {"file": "guide.safetensors"})}, "a CLIP model"),
    "a class for a generator without": (
        "adapt",
        {
            "options": ("TrainingOptions", {"label": 1}),
            "adapt": (
                "AdaptGenerator",
                {"generator": "load.0", "guide": "guide.0", "shift": "shift.0", **QUICK, "options": "options.0"},
            ),
        },
        "label",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_graph_fails_at_the_right_node(world: World, case: str) -> None:
    from nada_core.io.checkpoint_file import BUILTIN

    where, nodes, words = BAD[case]
    path = world.save(world.stranger, "models", "stylegan_nada", "other.safetensors")
    path.with_name("damaged.safetensors").write_bytes(path.read_bytes()[:-500])
    shutil.copy(BUILTIN / "guide.safetensors", path.with_name("guide.safetensors"))
    result = world.executor.run(training_prompt(world, **nodes))
    assert result.error is not None
    node_id, error = result.error
    assert node_id == where and isinstance(error, ValueError)
    with pytest.raises(ValueError, match=words):
        result.check()


def test_link_colors_cover_the_socket_types(world: World) -> None:
    script = (ROOT / "web" / "link_colors.js").read_text(encoding="utf-8")
    kinds = {one.io_type for cls in world.pack.nodes for one in cls.GET_SCHEMA().outputs}
    colors = dict(re.findall(r"^  (\w+): '(#[0-9a-f]{6})'", script, re.MULTILINE))
    assert colors.keys() == {kind for kind in kinds if kind.startswith("NADA_")}
    assert len(set(colors.values())) == len(colors)


#: What a user types into the node search, and the node that is meant.
SEARCHES = {
    "stylegan": "LoadGenerator",
    "nada": "AdaptGenerator",
    "train stylegan": "AdaptGenerator",
    "finetune gan": "AdaptGenerator",
    "latent walk video": "InterpolateLatents",
    "face inversion": "InvertImage",
}


@pytest.mark.parametrize("words", SEARCHES)
def test_search_words_are_an_alias_of_one_node(either: World, words: str) -> None:
    entries = either.executor.object_info([PREFIX + name for name in CONTRACT])
    found = [name for name, entry in entries.items() if words in entry["search_aliases"]]
    assert found == [PREFIX + SEARCHES[words]]
