"""Runs prompts in API format on the double, as ComfyUI would, with the guards of `guards.py` around every node.

    executor = Executor(host, pack.nodes)
    result = executor.call(LoadGenerator, file="portraits")          # one node, given its values
    generator, layers = result.values
    result = executor.run(api_prompt)                                # a graph; unchanged parts come from the cache
    result["7"], result.ui["9"], result.executed, result.cached, result.error

As in ComfyUI: validation runs before and outside of the inference mode, everything else inside of it; fingerprints and
validation see constants only, None for what is linked; a node gets the inputs of the prompt and nothing else. Unlike
ComfyUI, which runs the good outputs of a half-bad prompt, `run` refuses any error. Not here: lazy inputs, expansion,
blocked execution, dynamic inputs, several prompts at a time.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .core_nodes import core_nodes
from .double import Host
from .guards import Violation, check_output, differences, global_state, restore, snapshot
from .pictures import Shown
from .schema import NodeOutput, overrides
from .validation import Facts, Given, NodeError, Refused, Validation, constants, is_link, is_widget, mapped

__all__ = ["Executor", "NodeError", "Refused", "Result", "Violation"]


@dataclass
class Result:
    outputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # node id -> one value an output
    ui: dict[str, dict[str, Any]] = field(default_factory=dict)  # node id -> what the page got
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    error: tuple[str, BaseException] | None = None  # node id and exception; an interruption is one too

    def __getitem__(self, node_id: str) -> tuple[Any, ...]:
        return self.outputs[node_id]

    @property
    def values(self) -> tuple[Any, ...]:
        """The outputs of the node that was run last; of the node, where there is one."""
        return self.outputs[self.executed[-1]]

    def check(self) -> Result:
        """This result if all went well; else raises what stopped the run."""
        if self.error is not None:
            raise self.error[1]
        return self


class Executor:
    def __init__(self, host: Host, nodes: Iterable[type]) -> None:
        self.host = host
        self.classes = {cls.GET_NODE_INFO_V1()["name"]: cls for cls in [*core_nodes(host), *nodes]}
        self.cache: dict[Any, tuple[list[list[Any]], dict[str, Any] | None]] = {}

    # ---- what a test calls ----

    def object_info(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """GET /object_info: what the page and comfy-cli know of the nodes. Goes through JSON, as it does there."""
        told = {name: self.classes[name].GET_NODE_INFO_V1() for name in (names or self.classes)}
        return json.loads(json.dumps(told))

    def validate(self, prompt: Mapping[str, Any]) -> list[NodeError]:
        """Why POST /prompt would refuse this prompt; nothing if it would not."""
        return Validation(self, copy.deepcopy(dict(prompt))).errors()

    def run(self, prompt: Mapping[str, Any], extra_pnginfo: dict[str, Any] | None = None) -> Result:
        """Run every output node and what it needs. Raises Refused; an exception of a node is in `result.error`."""
        validation = Validation(self, copy.deepcopy(dict(prompt)))
        if errors := validation.errors():
            raise Refused(errors)
        return Run(self, validation.prompt, extra_pnginfo).all(validation.targets)

    def call(self, cls: type, **values: Any) -> Result:
        """Run one node with these values under all the rules. Raises what the node raises, and Refused.

        A number, text or truth value for a widget goes into the prompt as the user's entry; anything else arrives
        over a link of the input's type. As on the page, every required widget needs a value; nothing has a default.
        A tensor is copied to be what tensors from other nodes are: made in inference mode.
        """
        name = cls.GET_NODE_INFO_V1()["name"]
        facts = Facts(cls, cls.GET_NODE_INFO_V1())
        if unknown := values.keys() - facts.inputs.keys():
            raise TypeError(f"{name} has no input {', '.join(sorted(unknown))}; it has {', '.join(facts.inputs)}")
        prompt: dict[str, Any] = {"1": {"class_type": name, "inputs": {}}}
        for key, value in values.items():
            io_type = facts.inputs[key][0]
            if is_widget(io_type) and isinstance(value, (int, float, str)):
                prompt["1"]["inputs"][key] = value
            else:
                prompt[f"given:{key}"] = Given(io_type, as_from_a_node(value))
                prompt["1"]["inputs"][key] = [f"given:{key}", 0]
        validation = Validation(self, prompt, targets=["1"])
        if errors := validation.errors():
            raise Refused(errors)
        return Run(self, prompt, None, fresh=True).all(["1"]).check()

    # ---- what both parts below need ----

    def facts(self, node: Mapping[str, Any]) -> Facts:
        cls = self.classes[node["class_type"]]
        return Facts(cls, cls.GET_NODE_INFO_V1())

    def hidden(self, facts: Facts, node_id: str, prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
        known = {"unique_id": node_id, "prompt": prompt, "extra_pnginfo": extra_pnginfo}
        return {name: known.get(name) for name in facts.hidden}


def as_from_a_node(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch.inference_mode():
        return value.clone()


# ---- running ------------------------------------------------------------------------------------------------------


class Failed(Exception):  # noqa: N818
    """A node raised; carries its id up to the run."""

    def __init__(self, node_id: str, error: BaseException) -> None:
        super().__init__(node_id)
        self.node_id, self.error = node_id, error


class Run:
    """One prompt on its way through the executor."""

    def __init__(self, executor: Executor, prompt: dict[str, Any], extra_pnginfo: Any, fresh: bool = False) -> None:
        self.executor, self.host, self.prompt = executor, executor.host, prompt
        self.extra_pnginfo, self.fresh = extra_pnginfo, fresh
        self.original = copy.deepcopy({key: node for key, node in prompt.items() if not isinstance(node, Given)})
        self.result = Result()
        self.slots: dict[str, list[list[Any]]] = {}  # node id -> output -> its list of values
        self.keys: dict[str, Any] = {}

    def all(self, targets: list[str]) -> Result:
        self.host.interrupted = False  # a click before the start does not count
        with torch.inference_mode():
            for node_id in self.prompt:
                self.key(node_id)
            if not self.fresh:
                self.forget()
                self.result.cached = [node_id for node_id, key in self.keys.items() if key in self.executor.cache]
            try:
                for target in targets:
                    self.visit(target)
            except Failed as failure:
                self.result.error = (failure.node_id, failure.error)
        return self.result

    def forget(self) -> None:
        """Up to 0.22 the outputs of nodes that are not in the prompt go at once; since then while memory lasts."""
        if not self.host.at_least(0, 23):
            used = set(self.keys.values())
            self.executor.cache = {key: entry for key, entry in self.executor.cache.items() if key in used}

    def key(self, node_id: str) -> Any:
        """What a node's outputs depend on: class, fingerprint, its id if it asks for that, constants, ancestors."""
        if node_id in self.keys:
            return self.keys[node_id]
        node = self.prompt[node_id]
        if isinstance(node, Given) or self.fresh:
            key: Any = object()  # equal to nothing else
        else:
            facts = self.executor.facts(node)
            inputs = [
                (name, (self.key(value[0]), value[1]) if is_link(value) else hashable(value))
                for name, value in sorted(node["inputs"].items())
            ]
            own = node_id if facts.named_by_id else None
            key = (node["class_type"], self.fingerprint(node_id, facts), own, tuple(inputs))
        self.keys[node_id] = key
        return key

    def fingerprint(self, node_id: str, facts: Facts) -> Any:
        if not overrides(facts.cls, "fingerprint_inputs"):
            return None
        hidden = self.executor.hidden(facts, node_id, {}, self.extra_pnginfo)
        try:
            return hashable(mapped(facts, "fingerprint_inputs", constants(facts, self.prompt[node_id]), hidden))
        except Exception as error:
            logging.warning("fingerprint_inputs of %s raised %r; it runs every time now", facts.info["name"], error)
            return object()

    def visit(self, node_id: str) -> list[list[Any]]:
        """The outputs of a node, from the cache or by running it and first what it needs."""
        if node_id in self.slots:
            return self.slots[node_id]
        node, key = self.prompt[node_id], self.keys[node_id]
        if isinstance(node, Given):
            return [[node.value]]
        facts = self.executor.facts(node)
        if key in self.executor.cache:
            slots, ui = self.executor.cache[key]
            if node_id not in self.result.cached:
                self.result.cached.append(node_id)  # its twin has just been run
            # The page gets the ui of a cached node again only if that is what the node is for.
            ui = ui if facts.info["output_node"] or facts.info.get("has_intermediate_output") else None
        else:
            inputs = {}
            for name, value in node["inputs"].items():
                if is_link(value):
                    inputs[name] = self.visit(value[0])[value[1]]
                elif name in facts.inputs:  # a constant that the node does not know is dropped in silence
                    inputs[name] = [value]
            slots, ui = self.execute(node_id, facts, inputs)
            if not self.fresh:
                self.executor.cache[key] = (slots, ui)
            self.result.executed.append(node_id)
        self.slots[node_id] = slots
        lists = facts.info["output_is_list"]
        self.result.outputs[node_id] = tuple(
            values if is_list or len(values) != 1 else values[0] for values, is_list in zip(slots, lists, strict=True)
        )
        if ui is not None:
            self.result.ui[node_id] = ui
        return slots

    def execute(self, node_id: str, facts: Facts, inputs: dict[str, list[Any]]) -> tuple[list[list[Any]], Any]:
        """Run one node and see that it kept the rules, also when it raised."""
        name = facts.info["name"]
        hidden = self.executor.hidden(facts, node_id, self.original, self.extra_pnginfo)
        before, state = {key: snapshot(values) for key, values in inputs.items()}, global_state()
        raised: BaseException | None = None
        answers: list[Any] = []
        try:
            self.host.stop_if_interrupted()
            answers = mapped(facts, "execute", inputs, hidden)
        except (Exception, self.host.InterruptProcessingException) as error:
            raised = error
        broken = [
            f"its input {key}{what}"
            for key, values in inputs.items()
            for what in differences(before[key], snapshot(values))
        ]
        broken += restore(state)
        if broken:
            shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
            raise Violation(f"{name} changed {shown}") from raised
        if raised is not None:
            if self.host.is_oom(raised):
                self.host.unloaded += 1  # ComfyUI throws out its models when a node runs out of memory
            raise Failed(node_id, raised)
        return self.sorted_out(node_id, facts, answers)

    def sorted_out(self, node_id: str, facts: Facts, answers: list[Any]) -> tuple[list[list[Any]], Any]:
        """The values of each output over all calls, and the ui; arity and types are those of the schema."""
        name, types = facts.info["name"], facts.info["output"]
        slots: list[list[Any]] = [[] for _ in types]
        shown: list[dict[str, Any]] = []
        for answer in answers:
            if isinstance(answer, dict):
                raise Violation(f"{name} gave a dict; old versions cannot take it, return io.NodeOutput(...)")
            if answer is None or isinstance(answer, tuple):
                answer = self.host.io.NodeOutput(*(answer or ()))
            if not isinstance(answer, NodeOutput):
                raise Failed(node_id, Exception(f"Invalid return type from node: {type(answer)}"))
            if answer.expand is not None or answer.block_execution is not None:
                raise NotImplementedError(f"{name}: the double neither expands nodes nor blocks execution")
            if len(answer.args) != len(types):
                raise Violation(f"{name} gave {len(answer.args)} values, its schema has {len(types)} outputs")
            if answer.ui is not None:
                shown.append(answer.ui.as_dict() if isinstance(answer.ui, Shown) else answer.ui)
            for index, value in enumerate(answer.args):
                values = value if facts.info["output_is_list"][index] else [value]
                for one in values:
                    check_output(one, types[index], f"{name}'s output {facts.info['output_name'][index]}")
                slots[index] += values
        ui = {key: [part for one in shown for part in one[key]] for key in shown[0]} if shown else None
        return slots, ui


def hashable(value: Any) -> Any:
    """A constant as part of a key; what cannot be compared is equal to nothing, so its node runs every time."""
    if isinstance(value, Mapping):
        return tuple((key, hashable(part)) for key, part in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(hashable(part) for part in value)
    known = isinstance(value, (int, float, str, bytes, type(None))) and value == value  # NaN is unlike itself
    return value if known else object()
