"""The pack in the double of ComfyUI, and objects that many tests of its nodes share."""

from __future__ import annotations

import shutil
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from host.double import Host, Pack
from host.executor import Executor
from tiny import rng

NEWEST, OLDEST = "0.33.0", "0.20.1"
PREFIX = "StyleGANNADA_"
DYNAMIC, AUTOGROW = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)

#: Node -> category, inputs in their order, outputs. "a=b: c d": with the option b, the dynamic combo a has inputs c, d.
#: "a=2 or more: c d e": the input a grows from two sockets, c and d.
CONTRACT = {
    "LoadGenerator": ("load", ["file"], [("generator", "NADA_GENERATOR"), ("layers", "STRING"), ("info", "STRING")]),
    "LoadGuide": (
        "load",
        ["guide", "guide=own file: file architecture", "guide=another open_clip model: model"],
        [("guide", "NADA_GUIDE")],
    ),
    "CombineGuides": (
        "load",
        [
            "guides",
            "guides=2 or more: guide_1 guide_2 guide_3 guide_4 guide_5 guide_6 guide_7 guide_8",
            "guide_weights",
        ],
        [("guide", "NADA_GUIDE")],
    ),
    "ShiftFromText": ("direction", ["source", "target", "wording"], [("shift", "NADA_SHIFT")]),
    "ShiftFromImages": ("direction", ["images"], [("shift", "NADA_SHIFT")]),
    "ChooseLayers": (
        "train",
        [
            "mode",
            "mode=adaptive: count",
            "mode=adaptive in detail: count every measure_steps measure_batch measure_chunk measure_rate",
            "mode=named: names",
            "train",
            "train=low-rank: rank",
            "extra",
        ],
        [("layers", "NADA_LAYERS")],
    ),
    "InspectLayers": (
        "train",
        ["generator", "guide", "shift", "layers", "seed", "label"],
        [("chart", "IMAGE"), ("chosen", "NADA_LAYERS")],
    ),
    "AdaptGenerator": (
        "train",
        [
            "generator",
            "guide",
            "shift",
            "layers",
            "settings",
            "settings=automatic: steps",
            "settings=kind of target: kind steps",
            "settings=by hand: steps batch lr direction_loss global_loss angle_loss",
            "settings=recipe file: recipe steps",
            "seed",
            "snapshot_every",
            "judge",
            "similarity_networks",
            "options",
        ],
        [
            ("generator", "NADA_GENERATOR"),
            ("domain", "NADA_DOMAIN"),
            ("training", "LOSS_MAP"),
            ("chosen_because", "STRING"),
            ("snapshots", "NADA_SNAPSHOTS"),
        ],
    ),
    "FindSettings": (
        "train",
        [
            "generator",
            "guide",
            "shift",
            "judge",
            "layers",
            "settings",
            "settings=automatic: steps",
            "settings=kind of target: kind steps",
            "settings=by hand: steps batch lr direction_loss global_loss angle_loss",
            "settings=recipe file: recipe steps",
            "trials",
            "minutes",
            "over",
            "seed",
            "filename_prefix",
            "similarity_networks",
            "options",
        ],
        [("recipe", "NADA_OPTIONS"), ("table", "STRING"), ("plot", "IMAGE"), ("strips", "IMAGE")],
    ),
    "PickSnapshot": (
        "train",
        ["generator", "snapshots", "latents", "pick", "pick=by step: step", "judge", "shift"],
        [("generator", "NADA_GENERATOR"), ("domain", "NADA_DOMAIN"), ("filmstrip", "IMAGE"), ("figures", "STRING")],
    ),
    "PlotTraining": ("train", ["training", "smoothing"], [("plot", "IMAGE")]),
    "SampleLatents": (
        "latents",
        ["generator", "seed", "count", "psi", "cutoff", "label"],
        [("latents", "NADA_LATENTS")],
    ),
    "MixLatents": ("latents", ["first", "second", "amount", "from_row", "to_row"], [("latents", "NADA_LATENTS")]),
    "InterpolateLatents": ("latents", ["latents", "frames", "loop"], [("latents", "NADA_LATENTS")]),
    "Render": ("latents", ["generator", "latents", "batch"], [("images", "IMAGE")]),
    "Compare": (
        "latents",
        [
            "latents",
            "generators",
            "generators=2 or more: generator_1 generator_2 generator_3 generator_4 generator_5 generator_6 generator_7 "
            "generator_8",
            "labels",
            "title",
        ],
        [("sheet", "IMAGE")],
    ),
    "SaveGenerator": ("save", ["generator", "filename_prefix", "format"], [("path", "STRING")]),
    "SaveDomain": ("save", ["domain", "filename_prefix", "precision"], [("path", "STRING")]),
    "LoadDomain": (
        "load",
        ["generator", "file", "strength"],
        [("generator", "NADA_GENERATOR"), ("domain", "NADA_DOMAIN")],
    ),
    "ApplyDomain": ("train", ["generator", "domain", "strength"], [("generator", "NADA_GENERATOR")]),
    "AlignFace": (
        "photos",
        ["image", "size", "face", "points", "cut", "landmarks", "smoothing"],
        [("aligned", "IMAGE"), ("frames", "NADA_FACE_FRAMES")],
    ),
    "PasteFace": (
        "photos",
        ["image", "faces", "frames", "region", "feather", "detail", "color_match"],
        [("pasted", "IMAGE"), ("mask", "MASK")],
    ),
    "DrawPortrait": ("photos", ["seed", "count", "style", "latents"], [("images", "IMAGE")]),
    "LoadLikeness": ("load", ["perceptual", "identity"], [("similarity_networks", "NADA_SIMILARITY")]),
    "InvertImage": (
        "photos",
        [
            "generator",
            "image",
            "similarity_networks",
            "start",
            "settings",
            "settings=automatic: steps",
            "settings=by hand: space steps lr mse lpips id optimize_noise stop_psnr batch coarse delta w_steps_share "
            "lr_rampup lr_rampdown initial_noise_factor noise_ramp_length noise_reg patience",
            "seed",
        ],
        [("latents", "NADA_LATENTS"), ("inverted", "IMAGE"), ("report", "STRING")],
    ),
    "PivotalTuning": (
        "photos",
        [
            "generator",
            "image",
            "latents",
            "similarity_networks",
            "settings",
            "settings=automatic: steps",
            "settings=by hand: steps lr mse lpips id locality stop_psnr stop_lpips batch lr_rampdown distance psi "
            "num_neighbours",
            "seed",
        ],
        [("generator", "NADA_GENERATOR"), ("domain", "NADA_DOMAIN"), ("drawn", "IMAGE"), ("report", "STRING")],
    ),
    "LoadEncoder": ("load", ["file"], [("encoder", "NADA_ENCODER"), ("generator", "NADA_GENERATOR")]),
    "EncodeImage": ("photos", ["encoder", "image", "generator", "iterations"], [("latents", "NADA_LATENTS")]),
    "FindDirections": (
        "editing",
        ["generator", "method", "count", "from_row", "to_row"],
        [("directions", "NADA_DIRECTIONS"), ("names", "STRING")],
    ),
    "EditLatents": (
        "editing",
        ["latents", "directions", "direction", "strength", "from_row", "to_row", "per_row"],
        [("latents", "NADA_LATENTS")],
    ),
    "EditByText": (
        "editing",
        [
            "generator",
            "latents",
            "guide",
            "shift",
            "similarity_networks",
            "settings",
            "settings=automatic: steps l2 id",
            "settings=by hand: objective space steps lr l2 id clip views first_row last_row batch lr_rampup "
            "lr_rampdown",
            "seed",
        ],
        [("latents", "NADA_LATENTS")],
    ),
    "SaveLatents": ("save", ["latents", "filename_prefix"], [("path", "STRING")]),
    "LoadLatents": ("load", ["generator", "file"], [("latents", "NADA_LATENTS")]),
    "SaveDirections": ("save", ["directions", "filename_prefix"], [("path", "STRING")]),
    "TrainingOptions": (
        "train",
        [
            "subject",
            "subject=images: views mirror psi noise label",
            "subject=similarity: relation_loss covariance_loss lpips id weight_reg fisher_samples",
            "subject=optimizer: schedule warmup beta1 beta2 grad_clip ema",
            "subject=judge: keep_every patience",
            "subject=memory: chunk precision checkpointing pool",
            "options",
        ],
        [("changed", "NADA_OPTIONS")],
    ),
    "MixShifts": ("direction", ["first", "second", "share"], [("shift", "NADA_SHIFT")]),
    "CheckPrompts": ("direction", ["guide", "shift"], [("doubts", "STRING")]),
    "GuideFromClipVision": ("load", ["clip_vision"], [("guide", "NADA_GUIDE")]),
    "ShiftFromConditioning": ("direction", ["guide", "source", "target"], [("shift", "NADA_SHIFT")]),
    "ShiftFromPairs": ("direction", ["before", "after"], [("shift", "NADA_SHIFT")]),
    "AdaptToPairs": (
        "train",
        [
            "generator",
            "latents",
            "images",
            "guide",
            "shift",
            "layers",
            "settings",
            "settings=automatic: steps",
            "settings=by hand: steps batch lr l1 edges lpips focus align locality hold_out min_direction max_rank",
            "seed",
            "snapshot_every",
            "similarity_networks",
            "options",
        ],
        [
            ("generator", "NADA_GENERATOR"),
            ("domain", "NADA_DOMAIN"),
            ("training", "LOSS_MAP"),
            ("report", "STRING"),
            ("snapshots", "NADA_SNAPSHOTS"),
        ],
    ),
    "LoadDirections": ("load", ["generator", "file"], [("directions", "NADA_DIRECTIONS"), ("names", "STRING")]),
}

#: A training that takes a fraction of a second.
QUICK = {"steps": 2, "batch": 1, "angle_loss": 0.0}


class World:
    """The pack loaded into the double of one version, and cached objects for tests."""

    def __init__(self, host: Host, pack: Pack) -> None:
        self.host, self.pack = host, pack
        self.executor = Executor(host, pack.nodes)

    def module(self, path: str) -> Any:
        """A module of the pack. Its nada_core is not the module of `import nada_core`."""
        return sys.modules[f"{self.pack.module.__name__}.{path}"]

    @property
    def core(self) -> Any:
        return self.module("nada_core")

    @property
    def room(self) -> Any:
        return self.module("nodes._host")

    def node(self, name: str) -> Any:
        return self.executor.classes[PREFIX + name]

    def widgets(self, name: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """The widgets of a node in their order, as (type, options), with those of all options: `settings.steps`."""
        result: dict[str, tuple[str, dict[str, Any]]] = {}
        for key, (kind, options) in self._inputs(name).items():
            if kind in WIDGETS:
                result[key] = (kind, options)
            for option in options["options"] if kind == DYNAMIC else ():
                result |= {f"{key}.{one}": tuple(spec) for one, spec in _inputs_of(option["inputs"]).items()}
        return result

    def _inputs(self, name: str) -> dict[str, tuple[str, dict[str, Any]]]:
        inputs = _inputs_of(self.executor.object_info([PREFIX + name])[PREFIX + name]["input"])
        order = [one for one in CONTRACT[name][1] if "=" not in one]
        return {key: tuple(inputs[key]) for key in order}

    def arranged(self, name: str, **values: Any) -> dict[str, Any]:
        """The values of all widgets: the given ones, and defaults.

        A value without a prefix belongs to the dynamic combo that has it. If that combo has no value, its first option
        with all of these inputs is chosen. A list for an input that grows belongs to its first sockets.
        """
        result = dict(values)
        for key, (kind, options) in self._inputs(name).items():
            if kind == DYNAMIC:
                own = {one["key"]: _inputs_of(one["inputs"]) for one in options["options"]}
                asked = {one for inputs in own.values() for one in inputs if one in values}
                key_of = (one for one, inputs in own.items() if asked <= inputs.keys())
                result.setdefault(key, next(key_of, None))
                for one, (_, about) in own.get(result[key], {}).items():
                    result.setdefault(f"{key}.{one}", result.pop(one, _default(about)))
            elif kind == AUTOGROW and isinstance(result.get(key), list):
                names = options["template"]["names"]
                result |= {f"{key}.{one}": value for one, value in zip(names, result.pop(key), strict=False)}
            elif kind in WIDGETS:
                result.setdefault(key, _default(options))
        return result

    def defaults(self, name: str) -> dict[str, Any]:
        """The widget values of a new node on the page."""
        return self.arranged(name)

    def call(self, name: str, **values: Any) -> tuple[Any, ...]:
        """Run one node and return its outputs; other widgets have their defaults."""
        return self.executor.call(self.node(name), **self.arranged(name, **values)).values

    def options(self, **values: Any) -> Any:
        """The output of StyleGAN Training Options nodes, one for each subject of these values; None without values."""
        options: dict[str, Any] = {}
        for one in self._inputs("TrainingOptions")["subject"][1]["options"]:
            if own := {key: value for key, value in values.items() if key in _inputs_of(one["inputs"])}:
                (options["options"],) = self.call("TrainingOptions", subject=one["key"], **own, **options)
        return options

    def prompt(self, **nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        """Build a prompt in API format from name=(node, inputs); the link "other.1" is output 1 of `other`."""
        prompt: dict[str, Any] = {}
        for key, (name, inputs) in nodes.items():
            ours = name in CONTRACT
            values = self.arranged(name, **inputs) if ours else inputs
            linked = {
                one: [value.partition(".")[0], int(value.partition(".")[2] or 0)]
                for one, value in values.items()
                if not ours or one not in self.widgets(name)
            }
            prompt[key] = {"class_type": PREFIX + name if ours else name, "inputs": {**values, **linked}}
        return prompt

    @cached_property
    def generator(self) -> Any:
        return self.call("LoadGenerator")[0]

    @cached_property
    def guide(self) -> Any:
        return self.call("LoadGuide")[0]

    @cached_property
    def shift(self) -> Any:
        return self.call("ShiftFromText", wording="bare")[0]

    @cached_property
    def trained(self) -> tuple[Any, Any, Any]:
        """The outputs of Adapt Generator after two steps."""
        return self.adapt()

    def adapt(self, **values: Any) -> tuple[Any, Any, Any]:
        inputs = self.training(**values)
        generator, domain, training, *_ = self.call("AdaptGenerator", **inputs)
        return generator, domain, training

    def training(self, **values: Any) -> dict[str, Any]:
        """The inputs of a short training; settings of StyleGAN Training Options become its input `options`."""
        given = {"generator": self.generator, "guide": self.guide, "shift": self.shift, **QUICK, **values}
        subjects = {key.partition(".")[2] for key in self.widgets("TrainingOptions")}
        rare = {key: given.pop(key) for key in subjects & given.keys()}
        return {**given, **self.options(**rare)}

    def latents(self, count: int = 2, seed: int = 0, generator: Any = None) -> Any:
        return self.call("SampleLatents", generator=generator or self.generator, count=count, seed=seed)[0]

    @cached_property
    def stranger(self) -> Any:
        """A generator with another mapping network, 16 pixels wide."""
        return self.stranger_from(0)

    def stranger_from(self, seed: int, **changes: Any) -> Any:
        settings = {"resolution": 16, "z_dim": 6, "w_dim": 5, "mapping_layers": 2, "widths": [8, 7, 4], **changes}
        return (
            self.module("nada_core.models.stylegan2").StyleGAN2(**settings, rng=rng(seed)).eval().requires_grad_(False)
        )

    def save(self, generator: Any, *path: str) -> Path:
        """Save a generator below the host's folder and return the path."""
        place = self.host.root.joinpath(*path)
        place.parent.mkdir(parents=True, exist_ok=True)
        self.core.save_generator(generator, place, {})
        return place

    def reset(self) -> None:
        """Restore the state after loading."""
        for folder in (self.host.models_dir, self.host.output, self.host.input, self.host.temp):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for record in (self.host.bars, self.host.freed, self.host.previews, self.host.saved, self.host.texts):
            record.clear()
        self.module("nodes._runs").recent.clear()
        self.host.emptied = self.host.unloaded = self.host.checks = 0
        self.host.device, self.host.interrupted, self.host._countdown = torch.device("cpu"), False, None
        self.executor = Executor(self.host, self.pack.nodes)


def _inputs_of(sections: Any) -> dict[str, Any]:
    return {**sections.get("required", {}), **sections.get("optional", {})}


def _default(options: Any) -> Any:
    return options.get("default", (options.get("options") or [None])[0])
