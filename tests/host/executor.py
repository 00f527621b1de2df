"""Run prompts in API format on the double, with the checks of `guards.py` around every node.

    executor = Executor(host, pack.nodes)
    result = executor.call(LoadGenerator, file="portraits")          # one node, given its values
    generator, layers = result.values
    result = executor.run(api_prompt)                                # a graph; unchanged parts come from the cache
    result["7"], result.ui["9"], result.executed, result.cached, result.error

As in ComfyUI, validation runs before and outside of inference mode and everything else inside of it; fingerprints and
validation get constants, and None for linked inputs; a node gets the inputs of the prompt and nothing else. Unlike
ComfyUI, which runs the valid outputs of a partly invalid prompt, `run` raises for any error. Not supported: lazy
inputs, expansion, blocked execution, growing widgets, concurrent prompts.
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
from .pictures import UIOutput
from .schema import NodeOutput, overrides
from .validation import Facts, NodeError, Refused, Validation, ValueNode, constants, is_link, is_widget, mapped

__all__ = ["Executor", "NodeError", "Refused", "Result", "Violation"]


@dataclass
class Result:
    outputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # node id -> a value for each output
    ui: dict[str, dict[str, Any]] = field(default_factory=dict)  # node id -> the ui sent to the page
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    error: tuple[str, BaseException] | None = None  # node id and exception, also of an interruption

    def __getitem__(self, node_id: str) -> tuple[Any, ...]:
        return self.outputs[node_id]

    @property
    def values(self) -> tuple[Any, ...]:
        """The outputs of the node that ran last."""
        return self.outputs[self.executed[-1]]

    def check(self) -> Result:
        """Return this result, or raise the exception that stopped the run."""
        if self.error is not None:
            raise self.error[1]
        return self


class Executor:
    def __init__(self, host: Host, nodes: Iterable[type]) -> None:
        self.host = host
        self.classes = {cls.GET_NODE_INFO_V1()["name"]: cls for cls in [*core_nodes(host), *nodes]}
        self.cache: dict[Any, tuple[list[list[Any]], dict[str, Any] | None]] = {}

    def object_info(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the result of GET /object_info, after a round trip through JSON."""
        return json.loads(json.dumps({name: self.classes[name].GET_NODE_INFO_V1() for name in (names or self.classes)}))

    def validate(self, prompt: Mapping[str, Any]) -> list[NodeError]:
        """Return the errors with which POST /prompt would reject this prompt."""
        return Validation(self, copy.deepcopy(dict(prompt))).errors()

    def run(self, prompt: Mapping[str, Any], extra_pnginfo: dict[str, Any] | None = None) -> Result:
        """Run every output node and its inputs. Raises Refused; an exception of a node is in `result.error`."""
        validation = Validation(self, copy.deepcopy(dict(prompt)))
        if errors := validation.errors():
            raise Refused(errors)
        return Run(self, validation.prompt, extra_pnginfo).all(validation.targets)

    def call(self, cls: type, **values: Any) -> Result:
        """Run one node with these values and all checks. Raises Refused and the exceptions of the node.

        A number, string or bool for a widget becomes an entry of the prompt; any other value arrives over a link of
        the input's type. As on the page, every required widget needs a value. Tensors are cloned in inference mode,
        as if another node had made them.
        """
        name = cls.GET_NODE_INFO_V1()["name"]
        facts = Facts(cls, cls.GET_NODE_INFO_V1(), values)
        if unknown := values.keys() - facts.inputs.keys():
            raise TypeError(f"Got {', '.join(sorted(unknown))}, expected inputs of {name}: {', '.join(facts.inputs)}.")
        prompt: dict[str, Any] = {"1": {"class_type": name, "inputs": {}}}
        for key, value in values.items():
            io_type = facts.inputs[key][0]
            if is_widget(io_type) and isinstance(value, (int, float, str)):
                prompt["1"]["inputs"][key] = value
            else:
                prompt[f"value:{key}"] = ValueNode(io_type, in_inference_mode(value))
                prompt["1"]["inputs"][key] = [f"value:{key}", 0]
        validation = Validation(self, prompt, targets=["1"])
        if errors := validation.errors():
            raise Refused(errors)
        return Run(self, prompt, None, fresh=True).all(["1"]).check()

    def facts(self, node: Mapping[str, Any]) -> Facts:
        cls = self.classes[node["class_type"]]
        return Facts(cls, cls.GET_NODE_INFO_V1(), node["inputs"])

    def hidden(self, facts: Facts, node_id: str, prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
        known = {"unique_id": node_id, "prompt": prompt, "extra_pnginfo": extra_pnginfo}
        return {name: known.get(name) for name in facts.hidden}


def in_inference_mode(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch.inference_mode():
        return value.clone()


# ---- running ------------------------------------------------------------------------------------------------------


class Failed(Exception):  # noqa: N818
    """An exception of a node, with the node's id."""

    def __init__(self, node_id: str, error: BaseException) -> None:
        super().__init__(node_id)
        self.node_id, self.error = node_id, error


class Run:
    """One run of a prompt."""

    def __init__(self, executor: Executor, prompt: dict[str, Any], extra_pnginfo: Any, fresh: bool = False) -> None:
        self.executor, self.host, self.prompt = executor, executor.host, prompt
        self.extra_pnginfo, self.fresh = extra_pnginfo, fresh
        self.original = copy.deepcopy({key: node for key, node in prompt.items() if not isinstance(node, ValueNode)})
        self.result = Result()
        self.slots: dict[str, list[list[Any]]] = {}  # node id -> output -> its list of values
        self.keys: dict[str, Any] = {}

    def all(self, targets: list[str]) -> Result:
        self.host.interrupted = False  # an interruption before the start does not count
        with torch.inference_mode():
            for node_id in self.prompt:
                self.key(node_id)
            if not self.fresh:
                self.drop_unused()
                self.result.cached = [node_id for node_id, key in self.keys.items() if key in self.executor.cache]
            try:
                for target in targets:
                    self.visit(target)
                self.send_intermediate()
            except Failed as failure:
                self.result.error = (failure.node_id, failure.error)
        return self.result

    def send_intermediate(self) -> None:
        """Send the ui of cached nodes with an intermediate output again, those that no output node needed included."""
        for node_id, key in self.keys.items():
            if node_id not in self.result.ui and key in self.executor.cache:
                info = self.executor.facts(self.prompt[node_id]).info
                ui = self.executor.cache[key][1] if info.get("has_intermediate_output") else None
                if ui is not None:
                    self.result.ui[node_id] = ui

    def drop_unused(self) -> None:
        """Up to 0.22, ComfyUI drops the outputs of nodes that are not in the prompt; later it keeps them."""
        if not self.host.at_least(0, 23):
            used = set(self.keys.values())
            self.executor.cache = {key: entry for key, entry in self.executor.cache.items() if key in used}

    def key(self, node_id: str) -> Any:
        """Return the cache key: class, fingerprint, constants, keys of the inputs, and the id if the node uses it."""
        if node_id in self.keys:
            return self.keys[node_id]
        node = self.prompt[node_id]
        if isinstance(node, ValueNode) or self.fresh:
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
        """Return the outputs of a node, from the cache or by running it after its inputs."""
        if node_id in self.slots:
            return self.slots[node_id]
        node, key = self.prompt[node_id], self.keys[node_id]
        if isinstance(node, ValueNode):
            return [[node.value]]
        facts = self.executor.facts(node)
        if key in self.executor.cache:
            slots, ui = self.executor.cache[key]
            if node_id not in self.result.cached:
                self.result.cached.append(node_id)  # an equal node has just run
            # Of cached nodes, only output nodes send their ui again.
            ui = ui if facts.info["output_node"] or facts.info.get("has_intermediate_output") else None
        else:
            inputs = {}
            for name, value in node["inputs"].items():
                if is_link(value):
                    inputs[name] = self.visit(value[0])[value[1]]
                elif name in facts.inputs:  # unknown constants are dropped without an error
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
        """Run one node and check that it changed neither its inputs nor global state, even if it raised."""
        name = facts.info["name"]
        hidden = self.executor.hidden(facts, node_id, self.original, self.extra_pnginfo)
        before, state = {key: snapshot(values) for key, values in inputs.items()}, global_state()
        raised: BaseException | None = None
        results: list[Any] = []
        self.host.running = node_id
        try:
            self.host.stop_if_interrupted()
            results = mapped(facts, "execute", inputs, hidden)
        except (Exception, self.host.InterruptProcessingException) as error:
            raised = error
        finally:
            self.host.running = None
        changes = [
            f"its input {key}{what}"
            for key, values in inputs.items()
            for what in differences(before[key], snapshot(values))
        ]
        changes += restore(state)
        if changes:
            shown = ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise Violation(f"{name} changed {shown}") from raised
        if raised is not None:
            if self.host.is_oom(raised):
                self.host.unloaded += 1  # ComfyUI unloads its models when a node runs out of memory
            raise Failed(node_id, raised)
        return self.collect(node_id, facts, results)

    def collect(self, node_id: str, facts: Facts, results: list[Any]) -> tuple[list[list[Any]], Any]:
        """Return the values of each output over all calls, and the ui; raise if they do not match the schema."""
        name, types = facts.info["name"], facts.info["output"]
        slots: list[list[Any]] = [[] for _ in types]
        shown: list[dict[str, Any]] = []
        for result in results:
            if isinstance(result, dict):
                raise Violation(f"{name} returned a dict, expected io.NodeOutput(...): old versions accept no dict.")
            if result is None or isinstance(result, tuple):
                result = self.host.io.NodeOutput(*(result or ()))
            if not isinstance(result, NodeOutput):
                raise Failed(node_id, Exception(f"Invalid return type from node: {type(result)}"))
            if result.expand is not None or result.block_execution is not None:
                raise NotImplementedError(
                    f"{name} expands nodes or blocks execution, which the double does not support."
                )
            if len(result.args) != len(types):
                raise Violation(
                    f"{name} returned {len(result.args)} values, expected {len(types)}, the outputs of its schema."
                )
            if result.ui is not None:
                shown.append(result.ui.as_dict() if isinstance(result.ui, UIOutput) else result.ui)
            for index, value in enumerate(result.args):
                values = value if facts.info["output_is_list"][index] else [value]
                for one in values:
                    check_output(one, types[index], f"{name}'s output {facts.info['output_name'][index]}")
                slots[index] += values
        ui = {key: [part for one in shown for part in one[key]] for key in shown[0]} if shown else None
        return slots, ui


def hashable(value: Any) -> Any:
    """Convert a constant for a cache key. An incomparable value gets a unique key, so its node runs every time."""
    if isinstance(value, Mapping):
        return tuple((key, hashable(part)) for key, part in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(hashable(part) for part in value)
    known = isinstance(value, (int, float, str, bytes, type(None))) and value == value  # NaN is not equal to itself
    return value if known else object()
