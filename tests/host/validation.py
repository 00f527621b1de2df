"""The checks of POST /prompt before a prompt runs, with the pitfalls of ComfyUI's validation.

The types and texts of the errors are those of `node_errors` in its response.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .schema import WIDGETS, locked, overrides

if TYPE_CHECKING:
    from .executor import Executor

DYNAMIC, AUTOGROW = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"
CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass(frozen=True)
class NodeError:
    """A validation error; `type` and `details` are those of ComfyUI's `node_errors`."""

    node_id: str | None
    type: str
    details: str
    input_name: str | None = None


class Refused(Exception):  # noqa: N818
    """The prompt did not pass validation."""

    def __init__(self, errors: list[NodeError]) -> None:
        super().__init__("; ".join(f"node {error.node_id}: {error.type}: {error.details}" for error in errors))
        self.errors = errors


def expanded(
    sections: Mapping[str, Any], sent: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, dict[str, Any], str]]:
    """Return id -> (type, options, section) of all inputs, with those of the chosen option of each dynamic combo.

    As in ComfyUI, a dynamic combo without a value, or with one that is no option, is no input at all; an input that
    grows is all of its sockets, of which the first `min` are required.
    """
    inputs: dict[str, tuple[Any, dict[str, Any], str]] = {}
    for section in ("required", "optional"):
        for name, spec in sections.get(section, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            if spec[0] == AUTOGROW:
                inputs |= grown(options["template"], f"{prefix}{name}.")
            elif spec[0] != DYNAMIC:
                inputs[prefix + name] = (spec[0], options, section)
            for option in options.get("options", []) if spec[0] == DYNAMIC else []:
                if sent.get(prefix + name) == option["key"]:
                    inputs[prefix + name] = (DYNAMIC, options, section)
                    inputs |= expanded(option["inputs"], sent, f"{prefix}{name}.")
    return inputs


def grown(template: Mapping[str, Any], prefix: str) -> dict[str, tuple[Any, dict[str, Any], str]]:
    """Return the sockets of an input that grows, as `expanded` does."""
    ((section, inputs),) = ((section, inputs) for section, inputs in template["input"].items() if inputs)
    ((io_type, options),) = inputs.values()
    return {
        prefix + name: (io_type, options, section if index < template["min"] else "optional")
        for index, name in enumerate(template["names"])
    }


def nested(values: Mapping[str, Any], dynamic: set[str]) -> dict[str, Any]:
    """Return the arguments of a node: {"a": "x", "a.b": 1} becomes {"a": {"a": "x", "b": 1}} for a dynamic combo a."""
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = [*name.split("."), name.split(".")[-1]] if name in dynamic else name.split(".")
        place = arguments
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return arguments


@dataclass
class Facts:
    """A node class, its /object_info entry and the values that a prompt has for its inputs."""

    cls: Any
    info: dict[str, Any]
    sent: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sections = self.info["input"]
        self.inputs = expanded(sections, self.sent)
        self.hidden = list(sections.get("hidden", {}))
        self.schema = self.cls.FINALIZE_SCHEMA() if overrides(self.cls, "define_schema") else None
        lazy = [name for name, (_, options, _) in self.inputs.items() if options.get("lazy")]
        if lazy:
            raise NotImplementedError(
                f"{self.info['name']} has the lazy inputs {', '.join(lazy)}, which the double does not support."
            )

    @property
    def named_by_id(self) -> bool:
        """Whether the cache key includes the node's id."""
        return "unique_id" in self.hidden or bool(self.schema and self.schema.not_idempotent)


class ValueNode:
    """A value passed to `Executor.call` for a linked input: a node of the prompt with one output."""

    def __init__(self, io_type: str, value: Any) -> None:
        self.io_type, self.value = io_type, value


def is_link(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2
    return pair and isinstance(value[0], str) and isinstance(value[1], int | float)


def is_widget(io_type: Any) -> bool:
    return isinstance(io_type, list) or io_type in (*WIDGETS, DYNAMIC)


def fits(sent: Any, expected: Any) -> bool:
    """Whether an output may be linked to an input: the types, unions separated by commas, overlap; * matches all."""
    if sent == expected or "*" in (sent, expected):
        return True
    if not isinstance(sent, str) or not isinstance(expected, str):
        return isinstance(sent, list) and expected == "COMBO"
    sent_types, expected_types = ({part.strip() for part in types.split(",")} for types in (sent, expected))
    return "*" in sent_types | expected_types or bool(sent_types & expected_types)


def finished(value: Any) -> Any:
    """Return the result of a node's function, which may be a coroutine."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def mapped(facts: Facts, name: str, inputs: dict[str, list[Any]], hidden: dict[str, Any]) -> list[Any]:
    """Call a function of a node, on its locked subclass, for every element of its input lists.

    Shorter lists repeat their last element. A node with is_input_list is called once, with the lists.
    """
    function = getattr(locked(facts.cls, hidden), name)
    dynamic = {key for key, (io_type, _, _) in facts.inputs.items() if io_type == DYNAMIC}
    if facts.info["is_input_list"] or not inputs:
        return [finished(function(**nested(inputs, dynamic)))]
    longest = max(len(values) for values in inputs.values())
    return [
        finished(
            function(**nested({key: values[min(index, len(values) - 1)] for key, values in inputs.items()}, dynamic))
        )
        for index in range(longest)
    ]


class Validation:
    """The validation of one prompt. Converts the constants of `prompt` in place, as ComfyUI does."""

    def __init__(self, executor: Executor, prompt: dict[str, Any], targets: list[str] | None = None) -> None:
        self.executor, self.prompt, self.targets = executor, prompt, targets or []
        self.done: dict[str, list[NodeError]] = {}
        self.path: list[str] = []

    def errors(self) -> list[NodeError]:
        for node_id, node in self.prompt.items():
            if isinstance(node, ValueNode):
                continue
            if node.get("class_type") not in self.executor.classes:
                return [NodeError(node_id, "missing_node_type", str(node.get("class_type")))]
        self.targets = self.targets or [
            node_id for node_id, node in self.prompt.items() if self.executor.facts(node).info["output_node"]
        ]
        if not self.targets:
            return [NodeError(None, "prompt_no_outputs", "the prompt has no output node")]
        for target in self.targets:
            self.visit(target)
        return [error for errors in self.done.values() for error in errors]

    def visit(self, node_id: str) -> None:
        if node_id in self.path:
            around = " -> ".join([*self.path[self.path.index(node_id) :], node_id])
            self.done[node_id] = [NodeError(node_id, "dependency_cycle", around)]
        if node_id in self.done or isinstance(self.prompt.get(node_id), ValueNode):
            return
        self.path.append(node_id)
        try:
            errors = self.check(node_id)
        except Exception as error:  # as in ComfyUI, any exception makes the prompt invalid
            errors = [NodeError(node_id, "exception_during_validation", f"{type(error).__name__}: {error}")]
        self.path.pop()
        self.done[node_id] = [*self.done.get(node_id, []), *errors]

    def check(self, node_id: str) -> list[NodeError]:
        node = self.prompt[node_id]
        facts = self.executor.facts(node)
        # Pitfalls of validate_inputs: an input that it names is not checked here, and **kwargs names all of them.
        named: set[str] = set()
        if overrides(facts.cls, "validate_inputs"):
            arguments = inspect.getfullargspec(facts.cls.validate_inputs)
            named = set(facts.inputs) if arguments.varkw else set(arguments.args)
            named |= set(arguments.args)
        errors = []
        received = {}
        for name in facts.inputs:
            if name in node["inputs"] and isinstance(node["inputs"][name], list):
                problem = self.check_link(facts, name, node["inputs"][name], received, "input_types" in named)
            else:
                problem = self.check_constant(facts, name, node["inputs"], name in named)
            if problem:
                errors.append(NodeError(node_id, *problem, name))
        if named:
            errors += self.validate_inputs(node_id, facts, named, received)
        return errors

    def check_link(
        self, facts: Facts, name: str, link: list[Any], received: dict[str, str], own_types: bool
    ) -> tuple[str, str] | None:
        if len(link) != 2:
            return "bad_linked_input", f"{name}, {link}"
        source = self.prompt[link[0]]
        outputs = [source.io_type] if isinstance(source, ValueNode) else self.executor.facts(source).info["output"]
        received[name] = outputs[link[1]]
        if not own_types and not fits(received[name], facts.inputs[name][0]):
            return "return_type_mismatch", (
                f"{name}, received_type({received[name]}) mismatch input_type({facts.inputs[name][0]})"
            )
        self.visit(link[0])
        return None

    def check_constant(self, facts: Facts, name: str, inputs: dict[str, Any], named: bool) -> tuple[str, str] | None:
        io_type, options, section = facts.inputs[name]
        if name not in inputs:
            return ("required_input_missing", name) if section == "required" else None
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        try:
            if isinstance(io_type, str) and io_type in CONVERSIONS:
                value = inputs[name] = CONVERSIONS[io_type](value)
        except (OverflowError, TypeError, ValueError) as error:
            return "invalid_input_type", f"{name}, {value}, {error}"
        if named:
            return None
        if "min" in options and value < options["min"]:
            return "value_smaller_than_min", f"{name}: {value} smaller than {options['min']}"
        if "max" in options and value > options["max"]:
            return "value_bigger_than_max", f"{name}: {value} bigger than {options['max']}"
        if isinstance(io_type, list) or io_type == "COMBO":
            choices = io_type if isinstance(io_type, list) else options.get("options", [])
            if value not in choices:
                return "value_not_in_list", f"{name}: {value!r} not in {choices}"
        return None

    def validate_inputs(self, node_id: str, facts: Facts, named: set[str], received: dict[str, str]) -> list[NodeError]:
        """Call the node's validate_inputs. Each input that it names gets its message; without names it is lost."""
        inputs = {key: values for key, values in constants(facts, self.prompt[node_id]).items() if key in named}
        if "input_types" in named:
            inputs["input_types"] = [received]
        hidden = self.executor.hidden(facts, node_id, {}, None)
        results = mapped(facts, "validate_inputs", inputs, hidden)
        return [
            NodeError(node_id, "custom_validation_failed", name if result is False else f"{name} - {result}", name)
            for name in inputs
            for result in results
            if result is not True
        ]


def constants(facts: Facts, node: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the arguments of validation and fingerprints: known constants, and None for a link."""
    return {
        name: [None if is_link(value) else value]
        for name, value in node["inputs"].items()
        if is_link(value) or name in facts.inputs
    }
