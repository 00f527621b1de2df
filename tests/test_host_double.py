"""The double of ComfyUI has the signatures of real versions and enforces their rules."""

from __future__ import annotations

import copy
import inspect
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host import make_contract
from host.contract import VERSIONS, facts, signature
from host.core_nodes import ENTRIES
from host.double import Host, install, load_pack
from host.executor import Executor, Refused, Violation
from PIL import Image
from torch import nn

NEWEST, OLDEST = "0.33.0", "0.20.1"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    return install(monkeypatch, tmp_path / "comfy", NEWEST)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    return install(monkeypatch, tmp_path / "comfy", OLDEST)


def node(
    host: Host, inputs: Any = (), outputs: Any = (), name: str = "Node", schema: Any = (), **functions: Any
) -> Any:
    """A node class; the functions take `cls` first."""

    def define_schema(cls: Any) -> Any:
        return host.io.Schema(node_id=name, inputs=list(inputs), outputs=list(outputs), **dict(schema))

    functions = {"execute": lambda cls: None, "define_schema": define_schema} | functions
    methods = {key: classmethod(function) for key, function in functions.items()}
    return type(name, (host.io.ComfyNode,), methods)


def call(host: Host, cls: Any, **values: Any) -> Any:
    return Executor(host, [cls]).call(cls, **values)


def pictures(count: int = 1, size: int = 4) -> torch.Tensor:
    return torch.linspace(0, 1, count * size * size * 3).reshape(count, size, size, 3)


NET = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))  # made here because it uses the global random state


@dataclass
class Thing:
    """A value of a custom type."""

    net: nn.Module = field(default_factory=lambda: copy.deepcopy(NET))
    table: dict[str, Any] = field(default_factory=lambda: {"rows": [torch.zeros(2)], "name": "thing", "history": []})


# ---- the contract -------------------------------------------------------------------------------------------------


def test_contract_equals_the_real_tree() -> None:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set")
    version = make_contract.version(Path(path))
    assert version in VERSIONS, f"{version} is not in contract.json: run tests/host/make_contract.py"
    assert make_contract.facts(Path(path)) == VERSIONS[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_functions_have_the_signatures_of_the_version(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = install(monkeypatch, tmp_path / "comfy", version)
    import comfy.model_management
    import comfy.utils
    import folder_paths
    from comfy.cli_args import args
    from comfy_api.latest import ComfyExtension, io, ui

    contract = facts(version)
    for module, group in ((folder_paths, "folder_paths"), (comfy.model_management, "model_management")):
        for name, text in contract[group].items():
            assert inspect.signature(getattr(module, name)) == signature(text), name
    for name, text in contract["ui"].items():
        if name.startswith("ImageSaveHelper."):
            assert inspect.signature(getattr(ui.ImageSaveHelper, name.split(".")[1])) == signature(text)
    assert set(vars(io)) == set(contract["io"]["public"])
    assert io.Int.io_type == "INT" and io.Hidden.prompt.value == "PROMPT"
    assert issubclass(io.Int.Input, io.WidgetInput) and not issubclass(io.Image.Input, io.WidgetInput)
    assert args.disable_metadata is False and inspect.iscoroutinefunction(ComfyExtension.get_node_list)
    assert comfy.model_management.InterruptProcessingException is host.InterruptProcessingException
    assert comfy.utils.ProgressBar(3).bar is host.bars[0]
    hooks = {name: str(inspect.signature(getattr(io.ComfyNode, name))) for name in contract["io"]["hooks"]}
    assert all("kwargs" in hooks[name] for name, text in contract["io"]["hooks"].items() if "kwargs" in text)


def test_unknown_names_and_keywords_raise(host: Host) -> None:
    import comfy.model_management

    io = host.io
    for wrong in (
        lambda: io.Int.Input("a", minimum=1),
        lambda: io.Float.Input("a", label_on="x"),
        lambda: io.Image.Input(),
        lambda: io.Combo.Input("a", choices=[]),
        lambda: io.Custom("T").Output("a", optional=True),
        lambda: io.Schema(node_id="a", loop_boundary=True),
        lambda: io.Schema(),
        lambda: io.NodeOutput(1, preview=2),
        lambda: host.ui.ImageSaveHelper.save_images(pictures(), "a"),
        lambda: host.ui.PreviewText("a", "b"),
        lambda: comfy.model_management.free_memory(1, "cpu", forced=True),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError, match="make_contract"):
        _ = comfy.model_management.load_models_gpu
    with pytest.raises(ValueError, match="ComfyUI 0.1,"):
        facts("0.1")
    mapping: dict[str, Any] = {}
    assert install(mapping, host.root / "again").modules.keys() == mapping.keys()
    assert not hasattr(io.Hidden, "comfy_usage") and hasattr(io.Hidden, "comfy_usage_source")


@pytest.mark.parametrize("version", VERSIONS)
def test_object_info_has_the_shape_of_the_version(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = install(monkeypatch, tmp_path / "comfy", version)
    io = host.io
    cls = node(
        host,
        name="Shown",
        schema={"hidden": [io.Hidden.unique_id], "is_output_node": True, "category": "a/b"},
        inputs=[
            io.Custom("THING").Input("thing", optional=True, tooltip="t"),
            io.Int.Input(
                "seed", default=1, min=0, max=9, control_after_generate=True, display_mode=io.NumberDisplay.slider
            ),
            io.String.Input("text", multiline=True, dynamic_prompts=False, force_input=True),
            io.Combo.Input("mode", options=["a", "b"], upload=io.UploadType.image),
        ],
        outputs=[io.Image.Output(), io.String.Output("words", tooltip="w")],
    )
    info = Executor(host, [cls]).object_info()["Shown"]
    assert list(info) == VERSIONS[version]["io"]["node_info"]
    assert info["input"] == {
        "required": {
            "seed": ["INT", {"default": 1, "min": 0, "max": 9, "control_after_generate": True, "display": "slider"}],
            "text": ["STRING", {"multiline": True, "dynamicPrompts": False, "forceInput": True}],
            "mode": ["COMBO", {"multiselect": False, "options": ["a", "b"], "image_upload": True}],
        },
        "optional": {"thing": ["THING", {"tooltip": "t"}]},
        "hidden": {"unique_id": ["UNIQUE_ID"], "prompt": ["PROMPT"], "extra_pnginfo": ["EXTRA_PNGINFO"]},
    }
    assert info["input_order"]["required"] == ["seed", "text", "mode"]
    assert (info["output"], info["output_name"]) == (["IMAGE", "STRING"], ["IMAGE", "words"])
    assert info["output_node"] and info["category"] == "a/b" and info["search_aliases"] is None
    contract = facts(version)["core_nodes"]
    for name, entry in Executor(host, []).object_info().items():
        assert entry["output"] == contract[name]["outputs"] and entry["output_node"] == contract[name]["output_node"]
        assert list(ENTRIES[name]["input"]["required"]) == contract[name]["inputs"]


def test_invalid_schemas_raise(host: Host) -> None:
    twice = node(host, inputs=[host.io.Int.Input("a"), host.io.Int.Input("a")])
    with pytest.raises(ValueError, match="Input ids must be unique"):
        twice.GET_SCHEMA()
    with pytest.raises(Exception, match="execute"):
        type("Bare", (host.io.ComfyNode,), {"define_schema": classmethod(lambda cls: None)}).GET_SCHEMA()


# ---- rules for nodes -----------------------------------------------------------------------------------------------


def test_nodes_run_in_inference_mode(host: Host) -> None:
    modes = []
    thing = host.io.Custom("THING")

    def execute(cls: Any, image: Any) -> Any:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), image.is_inference()))
        return host.io.NodeOutput(Thing())

    bad = node(host, [host.io.Image.Input("image")], [thing.Output("thing")], execute=execute)
    with pytest.raises(Violation, match="weight.* was made in inference mode"):
        call(host, bad, image=pictures())
    assert modes == [(True, False, True)]
    good = node(host, [], [thing.Output("thing")], execute=torch.inference_mode(False)(lambda cls: (Thing(),)))
    call(host, good)


def test_node_class_is_a_locked_subclass_with_hidden_values(host: Host) -> None:
    hidden = host.io.Hidden

    def execute(cls: Any, number: int) -> Any:
        known = cls.hidden
        inputs = known.prompt["1"]["inputs"]
        return host.io.NodeOutput(f"{known.unique_id} {known.extra_pnginfo} {inputs} {known.dynprompt}")

    asks = node(
        host,
        [host.io.Int.Input("number")],
        [host.io.String.Output("text")],
        execute=execute,
        schema={"hidden": [hidden.unique_id, hidden.prompt], "is_output_node": True},
    )
    result = Executor(host, [asks]).run({"1": {"class_type": "Node", "inputs": {"number": 3}}}, {"workflow": 1})
    assert result["1"] == ("1 {'workflow': 1} {'number': 3} None",) and asks.hidden is None

    def keeps(cls: Any) -> None:
        cls.state = 1

    with pytest.raises(AttributeError, match="locked class"):
        call(host, node(host, execute=keeps))


def test_nodes_get_only_the_inputs_of_the_prompt(host: Host) -> None:
    inputs = [host.io.Int.Input("a", default=5), host.io.Image.Input("b", optional=True)]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        call(host, node(host, inputs, execute=lambda cls, a, b: None), a=1)
    call(host, node(host, inputs, execute=lambda cls, a, b=None: None), a=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'b'"):
        call(host, node(host, inputs, execute=lambda cls, a: None), a=1, b=pictures())


def test_input_and_output_may_have_the_same_id(host: Host) -> None:
    both = node(host, [host.io.Int.Input("a")], [host.io.Int.Output("a")], execute=lambda cls, a: (a,))
    assert call(host, both, a=1).values == (1,)


def test_return_value_must_be_a_node_output(host: Host) -> None:
    with pytest.raises(Violation, match="dict"):
        call(host, node(host, execute=lambda cls: {"result": ()}))
    with pytest.raises(Exception, match="Invalid return type"):
        call(host, node(host, execute=lambda cls: [1]))


def test_validation_and_fingerprint_get_constants_only(host: Host) -> None:
    received: dict[str, Any] = {}

    def validate(cls: Any, number: Any, linked: Any, absent: Any = "not passed") -> bool:
        received["validate"] = (number, linked, absent, torch.is_inference_mode_enabled())
        return True

    def fingerprint(cls: Any, **values: Any) -> str:
        received["fingerprint"] = (values, torch.is_inference_mode_enabled())
        return "same"

    io = host.io
    inputs = [io.Int.Input("number"), io.String.Input("linked"), io.Int.Input("absent", optional=True)]
    asks = node(
        host,
        inputs,
        execute=lambda cls, number, linked: None,
        validate_inputs=validate,
        fingerprint_inputs=fingerprint,
        schema={"is_output_node": True},
    )
    prompt = {
        "1": {"class_type": "Node", "inputs": {"number": "3", "linked": ["2", 0], "unknown": 1}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": "text"}},
    }
    executor = Executor(host, [asks])
    assert executor.run(prompt).check().executed == ["2", "1"]
    assert received == {
        "validate": (3, None, "not passed", False),
        "fingerprint": ({"number": 3, "linked": None}, True),
    }


@pytest.mark.parametrize("base", [None, Exception])
def test_interruption_passes_except_exception(base: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = install(monkeypatch, tmp_path / "comfy", OLDEST, interrupt_base=base)
    import comfy.model_management as management

    def swallows(cls: Any) -> Any:
        try:
            for _ in range(5):
                management.throw_exception_if_processing_interrupted()
        except Exception:  # a node must not do this
            return host.io.NodeOutput("swallowed")
        return host.io.NodeOutput("finished")

    cls = node(host, [], [host.io.String.Output("text")], execute=swallows, schema={"is_output_node": True})
    executor, prompt = Executor(host, [cls]), {"1": {"class_type": "Node", "inputs": {}}}
    host.interrupt_after(2)
    result = executor.run(prompt)
    assert host.checks == 3
    if base is Exception:
        assert result["1"] == ("swallowed",)
    else:
        assert result.error is not None and result.error[0] == "1" and not result.executed
        assert isinstance(result.error[1], host.InterruptProcessingException)
        assert executor.run(prompt)["1"] == ("finished",), (
            "an interruption stops one prompt and its nodes are not cached"
        )


BAD_OUTPUTS = {
    "one value more": ("STRING", lambda: ("a", "b"), "2 values.*1"),
    "none at all": ("STRING", lambda: None, "0 values.*1"),
    "None": ("STRING", lambda: (None,), "is None"),
    "channels first": ("IMAGE", lambda: (torch.zeros(1, 3, 8, 8),), "channels at the end"),
    "one picture": ("IMAGE", lambda: (torch.zeros(8, 8, 3),), "float32 tensor .B, H, W, C."),
    "half": ("IMAGE", lambda: (pictures().half(),), "float16"),
    "range": ("IMAGE", lambda: (pictures() * 2 - 1,), "values in 0..1, got -1"),
    "nan": ("IMAGE", lambda: (pictures() * float("nan"),), "values in 0..1"),
    "elsewhere": ("IMAGE", lambda: (pictures().to("meta"),), "is on meta"),
    "numpy": ("IMAGE", lambda: (pictures().numpy(),), "got ndarray"),
    "mask": ("MASK", lambda: (torch.zeros(1, 4, 4, 1),), "float32 tensor .B, H, W."),
    "text": ("STRING", lambda: (1,), "expected str, got int"),
    "a flag as number": ("INT", lambda: (True,), "expected int, got bool"),
    "losses": ("LOSS_MAP", lambda: ({"loss": [torch.tensor(1.0)]},), "finite numbers"),
    "deep elsewhere": ("THING", lambda: (Thing(table={"rows": [torch.zeros(2, device="meta")]}),), "rows.*is on meta"),
    "deep with grad": ("THING", lambda: (Thing(table={"rows": [with_grad()]}),), "rows.* requires grad"),
}


def with_grad() -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_outputs_must_match_the_schema(host: Host, case: str) -> None:
    io_type, make, message = BAD_OUTPUTS[case]
    bad = node(
        host, [], [host.io.Custom(io_type).Output("out")], execute=torch.inference_mode(False)(lambda cls: make())
    )
    with pytest.raises(Violation, match=message):
        call(host, bad)


def change_content(thing: Thing) -> None:
    thing.net[0].weight.data.add_(1)


def change_buffer(thing: Thing) -> None:
    thing.net[1].running_mean.add_(1)


def change_flags(thing: Thing) -> None:
    thing.net.requires_grad_(False)


def change_mode(thing: Thing) -> None:
    thing.net.eval()


def change_list(thing: Thing) -> None:
    thing.table["rows"].append(torch.ones(1))


def change_history(thing: Thing) -> None:
    thing.table["history"].append(3)


def change_name(thing: Thing) -> None:
    thing.table["name"] = "other"


def change_cache(thing: Thing) -> None:
    thing.table["kernel"] = torch.ones(1)


def change_parameter(thing: Thing) -> None:
    thing.net[0].weight = nn.Parameter(thing.net[0].weight.clone())


CHANGES = {
    change_content: "weight.*content",
    change_buffer: "running_mean.*content",
    change_flags: "requires_grad",
    change_mode: "training.*value changed",
    change_list: "rows.*changed",
    change_history: "history.*changed",
    change_cache: "kernel.*is new",
    change_name: "name.*value changed",
    change_parameter: "weight.*inference mode",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("and_raise", [False, True])
def test_inputs_must_not_change(host: Host, change: Any, and_raise: bool) -> None:
    def execute(cls: Any, thing: Thing) -> None:
        change(thing)
        if and_raise:
            raise ValueError("and then it failed")

    bad = node(host, [host.io.Custom("THING").Input("thing")], execute=execute)
    with pytest.raises(Violation, match=f"changed its input thing.*{CHANGES[change]}"):
        call(host, bad, thing=Thing())


def test_input_check_allows_reading_and_covers_images_and_generators(host: Host) -> None:
    thing = Thing()

    def execute(cls: Any, thing: Thing) -> Any:
        thing.table["sum"] = thing.net[0].weight.sum().item()
        return host.io.NodeOutput(thing)

    kind = host.io.Custom("THING")
    same = node(host, [kind.Input("thing")], [kind.Output("same")], execute=execute)
    assert call(host, same, thing=thing).values == (thing,), "a new number in a dict is allowed"
    bad = node(host, [host.io.Image.Input("image")], execute=lambda cls, image: (image.mul_(0.5), None)[1])
    with pytest.raises(Violation, match="changed its input image"):
        call(host, bad, image=pictures())
    draws = node(
        host, [host.io.Custom("RNG").Input("rng")], execute=lambda cls, rng: (torch.rand(1, generator=rng), None)[1]
    )
    with pytest.raises(Violation, match="random state"):
        call(host, draws, rng=torch.Generator())


def test_required_widgets_need_values(host: Host) -> None:
    cls = node(host, [host.io.Int.Input("steps", default=5)], execute=lambda cls, steps=5: None)
    with pytest.raises(Refused, match="required_input_missing: steps"):
        call(host, cls)
    with pytest.raises(TypeError, match="Got step"):
        call(host, cls, step=1)


GLOBAL_CHANGES = {
    "torch's random state": lambda: torch.rand(1),
    "Python's random state": lambda: random.random(),
    "numpy's random state": lambda: np.random.rand(),
    "the grad mode": lambda: torch.set_grad_enabled(True),
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "the matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
}


@pytest.mark.parametrize("what", GLOBAL_CHANGES)
def test_global_state_must_not_change_and_is_restored(host: Host, what: str) -> None:
    before = torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    with pytest.raises(Violation, match=what):
        call(host, node(host, execute=lambda cls: (GLOBAL_CHANGES[what](), None)[1]))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2:] == (torch.get_default_dtype(), torch.get_float32_matmul_precision())
    assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic


# ---- validation ---------------------------------------------------------------------------------------------------


def errors(host: Host, cls: Any, **inputs: Any) -> list[tuple[str, str | None]]:
    prompt = {
        "1": {"class_type": "Node", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": "x"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    return [(error.type, error.input_name) for error in Executor(host, [cls]).validate(prompt)]


def limited(host: Host, **functions: Any) -> Any:
    io = host.io
    return node(
        host,
        [
            io.Float.Input("lr", min=0, max=1),
            io.Combo.Input("file", options=["a"]),
            io.Custom("THING").Input("thing", optional=True),
        ],
        [io.String.Output("text")],
        execute=lambda cls, **_: ("x",),
        **functions,
    )


def test_validation_errors_of_the_host(host: Host) -> None:
    cls = limited(host)
    assert errors(host, cls, lr="0.5", file="a") == []
    assert errors(host, cls, lr=-5, file="b") == [("value_smaller_than_min", "lr"), ("value_not_in_list", "file")]
    assert errors(host, cls, lr=5, file="a") == [("value_bigger_than_max", "lr")]
    assert errors(host, cls, lr="much", file="a") == [("invalid_input_type", "lr")]
    assert errors(host, cls, file="a", unknown=1) == [("required_input_missing", "lr")]
    assert errors(host, cls, lr=1, file="a", thing=["2", 0]) == [("return_type_mismatch", "thing")]
    assert errors(host, cls, lr=1, file="a", thing=[1, 2, 3]) == [("bad_linked_input", "thing")]
    assert errors(host, cls, lr=1, file="a", thing=["9", 0]) == [("exception_during_validation", None)]
    assert errors(host, cls, lr=1, file=["3", 0])[0] == ("return_type_mismatch", "file")
    executor = Executor(host, [cls])
    assert [e.type for e in executor.validate({"1": {"class_type": "Gone", "inputs": {}}})] == ["missing_node_type"]
    assert [e.type for e in executor.validate({"1": {"class_type": "Node", "inputs": {}}})] == ["prompt_no_outputs"]
    loop = {"1": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}
    assert [e.type for e in executor.validate(loop)] == ["dependency_cycle"]
    with pytest.raises(Refused, match="node 1: missing_node_type: Gone"):
        executor.run({"1": {"class_type": "Gone", "inputs": {}}})


def test_validate_inputs_replaces_the_checks_of_the_host(host: Host) -> None:
    named = limited(host, validate_inputs=lambda cls, lr: True)
    assert errors(host, named, lr=-5, file="b") == [("value_not_in_list", "file")], (
        "an input that it names is not checked"
    )
    everything = limited(host, validate_inputs=lambda cls, **_: True)
    assert errors(host, everything, lr=-5, file="b") == []
    complains = limited(host, validate_inputs=lambda cls, lr, file: "no")
    assert errors(host, complains, lr=0, file="a") == [
        ("custom_validation_failed", "lr"),
        ("custom_validation_failed", "file"),
    ]
    nameless = limited(host, validate_inputs=lambda cls: "a message without an input")
    assert errors(host, nameless, lr=0, file="a") == []
    raises = limited(host, validate_inputs=lambda cls, thing: True)
    assert errors(host, raises, lr=0, file="a") == [("exception_during_validation", None)], (
        "a missing input is not passed"
    )


# ---- running ------------------------------------------------------------------------------------------------------


def counted(host: Host, **functions: Any) -> tuple[Any, list[int]]:
    runs: list[int] = []
    cls = node(
        host,
        [host.io.Int.Input("seed")],
        [host.io.String.Output("text")],
        execute=lambda cls, seed: (runs.append(seed), (str(seed),))[1],
        **functions,
    )
    return cls, runs


def prompt_of(seed: int, name: str = "1") -> dict[str, Any]:
    return {
        name: {"class_type": "Node", "inputs": {"seed": seed}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": [name, 0]}},
    }


def test_cache_skips_unchanged_nodes(host: Host) -> None:
    cls, runs = counted(host)
    executor = Executor(host, [cls])
    first = executor.run(prompt_of(1)).check()
    assert (first.executed, first.cached, first["1"], first.ui) == (["1", "2"], [], ("1",), {"2": {"text": ["1"]}})
    again = executor.run(prompt_of(1))
    assert (again.executed, again.cached, runs) == ([], ["1", "2"], [1]) and again.ui == first.ui
    assert executor.run(prompt_of(1, "7")).executed == [], "the id is not part of the key"
    assert executor.run(prompt_of(2)).executed == ["1", "2"]
    assert executor.run(prompt_of(1)).executed == [], "since 0.23 replaced outputs stay in the cache"
    twins = prompt_of(3) | {
        "3": {"class_type": "Node", "inputs": {"seed": 3}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    assert (result := executor.run(twins)).executed == ["1", "2"] and result.cached == ["4"]


def test_cache_of_old_versions_drops_unused_nodes(old: Host) -> None:
    cls, _ = counted(old)
    executor = Executor(old, [cls])
    for seed in (1, 2, 1):
        assert executor.run(prompt_of(seed)).executed == ["1", "2"]


def test_cache_key_includes_fingerprint_and_used_id(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    stamp = ["a"]
    cls, _ = counted(host, fingerprint_inputs=lambda cls, seed: stamp[0])
    executor = Executor(host, [cls])
    executor.run(prompt_of(1))
    assert executor.run(prompt_of(1)).executed == []
    stamp[0] = "b"
    assert executor.run(prompt_of(1)).executed == ["1", "2"]

    cls, _ = counted(host, schema={"hidden": [host.io.Hidden.unique_id]})
    executor = Executor(host, [cls])
    executor.run(prompt_of(1))
    assert executor.run(prompt_of(1)).executed == [] and executor.run(prompt_of(1, "7")).executed == ["7", "2"]

    cls, _ = counted(host, fingerprint_inputs=lambda cls: 1)  # does not take the input's name
    executor = Executor(host, [cls])
    executor.run(prompt_of(1))
    assert executor.run(prompt_of(1)).executed == ["1", "2"] and "runs every time" in caplog.text


def test_failing_node_stops_the_run_and_keeps_the_cache(host: Host) -> None:
    def fails(cls: Any, text: str) -> None:
        raise host.OOM_EXCEPTION("full") if text == "1" else ValueError(text)

    bad = node(host, [host.io.String.Input("text")], name="Bad", execute=fails, schema={"is_output_node": True})
    cls, _ = counted(host)
    executor = Executor(host, [cls, bad])
    prompt = prompt_of(1) | {"2": {"class_type": "Bad", "inputs": {"text": ["1", 0]}}}
    result = executor.run(prompt)
    assert result.error is not None and result.error[0] == "2" and result.executed == ["1"] and host.unloaded == 1
    with pytest.raises(host.OOM_EXCEPTION, match="full"):
        result.check()
    assert executor.run(prompt).cached == ["1"]


def test_list_outputs_run_the_next_node_per_element(host: Host) -> None:
    io = host.io
    many = node(host, [], [io.Int.Output("n", is_output_list=True)], name="Many", execute=lambda cls: ([1, 2, 3],))
    double = node(
        host,
        [io.Int.Input("n"), io.Int.Input("by")],
        [io.Int.Output("n")],
        name="Double",
        execute=lambda cls, n, by: (n * by,),
    )
    total = node(
        host,
        [io.Int.Input("n")],
        [io.Int.Output("n")],
        name="Sum",
        execute=lambda cls, n: (sum(n),),
        schema={"is_input_list": True, "is_output_node": True},
    )
    result = (
        Executor(host, [many, double, total])
        .run(
            {
                "1": {"class_type": "Many", "inputs": {}},
                "2": {"class_type": "Double", "inputs": {"n": ["1", 0], "by": 2}},
                "3": {"class_type": "Sum", "inputs": {"n": ["2", 0]}},
            }
        )
        .check()
    )
    assert (result["1"], result["2"], result["3"]) == (([1, 2, 3],), ([2, 4, 6],), (12,))


def test_unsupported_features_raise(host: Host) -> None:
    with pytest.raises(NotImplementedError, match="lazy"):
        call(host, node(host, [host.io.Int.Input("a", lazy=True)], execute=lambda cls, a: None), a=1)
    with pytest.raises(NotImplementedError, match="blocks execution"):
        call(host, node(host, execute=lambda cls: host.io.NodeOutput(block_execution="stop")))


# ---- the rest of the host -----------------------------------------------------------------------------------------


def test_progress_bar_is_throttled_and_checks_for_interruption(host: Host) -> None:
    import comfy.utils

    bar = comfy.utils.ProgressBar(1000)
    for step in range(1, 101):
        bar.update_absolute(step)
    preview = ("JPEG", Image.new("RGB", (4, 4)), 512)
    bar.update_absolute(101, 1000, preview)
    bar.update(5000)
    record = host.bars[0]
    assert len(record.ticks) == 102 and record.ticks[-1] == (1000, 1000, None) and record.previews == [preview]
    assert record.shown[0] == 1 and record.shown[-2:] == [101, 1000] and len(record.shown) < 20
    assert host.checks == len(record.shown), "only displayed calls check for an interruption"
    with pytest.raises(TypeError, match="Got preview"):
        bar.update_absolute(1, 10, pictures())
    host.interrupt_after(0)
    with pytest.raises(host.InterruptProcessingException):
        bar.update_absolute(1000)


def test_memory_requests_are_recorded(host: Host) -> None:
    import comfy.model_management as management

    management.free_memory(100, management.get_torch_device())
    management.soft_empty_cache()
    management.unload_all_models()
    management.interrupt_current_processing()
    assert host.freed == [(100, torch.device("cpu"))] and (host.emptied, host.unloaded) == (1, 1)
    assert management.get_free_memory() == host.free_bytes and management.processing_interrupted()
    assert management.is_oom(host.OOM_EXCEPTION("x")) and not management.is_oom(ValueError("out of memory"))
    # Without torch.AcceleratorError, which torch 2.6 lacks, ComfyUI goes by the message.
    assert management.is_oom(RuntimeError("out of memory")) != hasattr(torch, "AcceleratorError")
    assert management.intermediate_device() == torch.device("cpu")


def test_model_folders(host: Host) -> None:
    import folder_paths

    one, two = host.models_dir / "one", host.root / "two"
    for path in (one / "b.pt", one / "sub" / "a.PT", one / "readme.txt", one / ".git" / "c.pt", two / "b.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(KeyError):
        folder_paths.get_filename_list("mine")
    folder_paths.add_model_folder_path("mine", str(one))
    nested = os.path.join("sub", "a.PT")
    assert folder_paths.get_filename_list("mine") == ["b.pt", "readme.txt", nested], "no extensions: every file"
    folder_paths.folder_names_and_paths["mine"] = ([str(one), str(two)], {".pt"})
    assert folder_paths.get_filename_list("mine") == ["b.pt", nested]
    assert folder_paths.get_full_path("mine", "b.pt") == str(one / "b.pt")
    folder_paths.add_model_folder_path("mine", str(two), is_default=True)
    assert folder_paths.get_folder_paths("mine") == [str(two), str(one)]
    assert folder_paths.get_full_path("mine", "../one/b.pt") is None and folder_paths.get_full_path("no", "b") is None
    with pytest.raises(FileNotFoundError, match="'mine' with filename 'c.pt' not found"):
        folder_paths.get_full_path_or_raise("mine", "c.pt")
    assert isinstance(folder_paths.folder_names_and_paths["configs"][1], list), "some kinds have a list"
    assert ".safetensors" in folder_paths.supported_pt_extensions


def test_paths_of_files(host: Host) -> None:
    import folder_paths

    output = folder_paths.get_output_directory()
    folder, name, counter, below, prefix = folder_paths.get_save_image_path("a/run_%width%", output, 64)
    assert (folder, name, counter, below, prefix) == (os.path.join(output, "a"), "run_64", 1, "a", "a/run_64")
    for taken in ("run_64_00007_.safetensors", "run_64_x_.png", "other_00009_.png"):
        Path(folder, taken).touch()
    assert folder_paths.get_save_image_path("a/run_64", output)[2] == 8
    with pytest.raises(Exception, match="outside the output folder"):
        folder_paths.get_save_image_path("../up", output)
    assert folder_paths.get_annotated_filepath("a.png") == str(host.input / "a.png")
    assert folder_paths.get_annotated_filepath("a.png [output]") == str(host.output / "a.png")
    with pytest.raises(ValueError, match="Invalid file path"):
        folder_paths.get_annotated_filepath("../a.png")
    assert folder_paths.get_directory_by_type("temp") == str(host.temp)
    assert folder_paths.get_directory_by_type("models") is None


def test_path_traversal_is_allowed_before_0_28(old: Host) -> None:
    import folder_paths

    assert folder_paths.get_annotated_filepath("../a.png").endswith("../a.png")


def test_core_nodes_load_save_and_preview_images(host: Host) -> None:
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(host.input / "a.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "out/x"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }
    executor = Executor(host, [])
    assert executor.object_info(["LoadImage"])["LoadImage"]["input"]["required"]["image"][0] == ["a.png"]
    result = executor.run(prompt, {"workflow": {"nodes": []}}).check()
    assert result["1"][0].shape == (1, 4, 4, 3) and result["1"][1].shape == (1, 64, 64)
    assert result.ui["2"] == {"images": [{"filename": "x_00001_.png", "subfolder": "out", "type": "output"}]}
    assert host.saved == [host.output / "out" / "x_00001_.png"] and host.previews[0].parent == host.temp
    with Image.open(host.saved[0]) as saved:
        assert np.array_equal(np.asarray(saved), np.arange(48).reshape(4, 4, 3))
        assert saved.text.keys() == {"prompt", "workflow"}
    Image.new("RGB", (4, 4)).save(host.input / "a.png")
    assert executor.run(prompt).executed == ["1", "2", "3", "4"], "another image with the same name"
    wrong = prompt | {"1": {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}}
    assert [error.type for error in executor.validate(wrong)] == ["custom_validation_failed"]


def test_animated_savers_write_files(host: Host) -> None:
    helper, kind = host.ui.ImageSaveHelper, host.io.FolderType.output
    host.args.disable_metadata = True
    webp = helper.get_save_animated_webp_ui(pictures(2), "film", cls=None, fps=8, lossless=True, quality=80, method=0)
    assert webp.as_dict() == {
        "images": [{"filename": "film_00001_.webp", "subfolder": "", "type": "output"}],
        "animated": (True,),
    }
    png = helper.save_animated_png(pictures(2), "film", kind, None, 8, compress_level=1)
    assert png.filename == "film_00002_.png" and (host.output / png.filename).exists() and len(host.saved) == 2
    assert host.ui.PreviewText("words").as_dict() == {"text": ("words",)}
    assert host.ui.SavedImages([host.ui.SavedResult("a", "b", kind)]).as_dict()["images"][0]["type"] == "output"


def test_pack_is_loaded_under_its_path(host: Host, tmp_path: Path) -> None:
    root, name = tmp_path / "pack", "/x/custom_nodes/a-pack"
    (root / "nodes").mkdir(parents=True)
    (root / "__init__.py").write_text("from .nodes import comfy_entrypoint\n")
    (root / "nodes" / "__init__.py").write_text(
        "from comfy_api.latest import ComfyExtension, io\n"
        "class Node(io.ComfyNode):\n"
        "    @classmethod\n"
        "    def define_schema(cls):\n"
        "        return io.Schema(node_id='A')\n"
        "    @classmethod\n"
        "    def execute(cls): ...\n"
        "class Extension(ComfyExtension):\n"
        "    async def get_node_list(self):\n"
        "        return [Node]\n"
        "async def comfy_entrypoint():\n"
        "    return Extension()\n"
    )
    before = set(sys.modules)
    with load_pack(root, host, name) as pack:
        assert pack.nodes[0].__module__ == f"{name}.nodes" and f"{name}.nodes" in sys.modules
        assert Executor(host, pack.nodes).object_info()["A"]["python_module"] == "custom_nodes.a-pack"
    assert set(sys.modules) == before
    (root / "__init__.py").write_text("from .nodes import comfy_entrypoint\nNODE_CLASS_MAPPINGS = {}\n")
    with pytest.raises(TypeError, match="NODE_CLASS_MAPPINGS"), load_pack(root, host, name):
        pass
    assert set(sys.modules) == before


# ---- with comfy-cli -----------------------------------------------------------------------------------------------


def graph_node(id: int, kind: str, links: list[tuple[str, int]], out: list[int], values: Any, mode: int = 0) -> Any:
    """A node as the page stores it in a workflow; mode 4 is bypassed."""
    return {
        "id": id,
        "type": kind,
        "pos": [0, 0],
        "size": [200, 100],
        "flags": {},
        "order": id,
        "mode": mode,
        "inputs": [{"name": name, "type": "IMAGE", "link": link} for name, link in links],
        "outputs": [{"name": "images", "type": "IMAGE", "links": out}],
        "properties": {},
        "widgets_values": values,
    }


WORKFLOW = {
    "version": 0.4,
    "last_node_id": 5,
    "last_link_id": 3,
    "groups": [],
    "config": {},
    "extra": {},
    "nodes": [
        graph_node(1, "Draw", [], [1], [7, "fixed", "a\n{b|c} // d"]),
        graph_node(2, "Draw", [("image", 1)], [2], [8, "randomize", "e"]),
        graph_node(3, "Pass", [("image", 2)], [3], [0.5], mode=4),
        graph_node(4, "PreviewImage", [("images", 3)], [], []),
        graph_node(5, "MarkdownNote", [], [], ["# Read me"]),
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"]],
}


def test_workflow_of_the_page_becomes_a_prompt(host: Host) -> None:
    from comfy_cli.workflow_to_api import convert_ui_to_api  # GPL-3: for tests only

    io = host.io
    calls: list[Any] = []

    def draw(cls: Any, seed: int, text: str, image: Any = None) -> Any:
        calls.append((seed, text, image is not None))
        return host.io.NodeOutput(pictures())

    inputs = [
        io.Int.Input("seed", min=0, max=2**32 - 1, control_after_generate=True),
        io.String.Input("text", multiline=True),
        io.Image.Input("image", optional=True),
    ]
    source = node(host, inputs, [io.Image.Output("images")], name="Draw", execute=draw)
    inputs = [io.Image.Input("image"), io.Float.Input("strength", min=0, max=1)]
    bypassed = node(
        host, inputs, [io.Image.Output("images")], name="Pass", execute=lambda cls, image, strength: (image,)
    )
    executor = Executor(host, [source, bypassed])
    prompt = convert_ui_to_api(WORKFLOW, executor.object_info())
    assert {id: (entry["class_type"], entry["inputs"]) for id, entry in prompt.items()} == {
        "1": ("Draw", {"seed": 7, "text": "a\n{b|c} // d"}),
        "2": ("Draw", {"seed": 8, "text": "e", "image": ["1", 0]}),
        "4": ("PreviewImage", {"images": ["2", 0]}),
    }
    assert executor.validate(prompt) == []
    executor.run(prompt).check()
    assert calls == [(7, "a\n{b|c} // d", False), (8, "e", True)] and len(host.previews) == 1
