"""What POST /prompt looks at before a prompt may run, with the traps that ComfyUI's validation has.

Names and wording of the errors are those of `node_errors` in its reply.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .schema import WIDGETS, locked, overrides

if TYPE_CHECKING:
    from .executor import Executor

CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass(frozen=True)
class NodeError:
    """Why ComfyUI would refuse a prompt: `type` and `details` are worded as in its `node_errors`."""

    node_id: str | None
    type: str
    details: str
    input_name: str | None = None


class Refused(Exception):  # noqa: N818
    """The prompt did not pass validation."""

    def __init__(self, errors: list[NodeError]) -> None:
        super().__init__("; ".join(f"node {error.node_id}: {error.type}: {error.details}" for error in errors))
        self.errors = errors


@dataclass
class Facts:
    """A node class as the executor reads it from its own /object_info entry."""

    cls: Any
    info: dict[str, Any]

    def __post_init__(self) -> None:
        sections = self.info["input"]
        self.inputs = {
            name: (spec[0], spec[1] if len(spec) > 1 else {}, section)
            for section in ("required", "optional")
            for name, spec in sections.get(section, {}).items()
        }
        self.hidden = list(sections.get("hidden", {}))
        self.schema = self.cls.FINALIZE_SCHEMA() if overrides(self.cls, "define_schema") else None
        lazy = [name for name, (_, options, _) in self.inputs.items() if options.get("lazy")]
        if lazy:
            raise NotImplementedError(f"{self.info['name']}: the double does not do lazy inputs ({', '.join(lazy)})")

    @property
    def named_by_id(self) -> bool:
        """Whether the node's id belongs to its cache key."""
        return "unique_id" in self.hidden or bool(self.schema and self.schema.not_idempotent)


class Given:
    """A value handed to `call` in place of a link; it stands in the prompt as a node with one output."""

    def __init__(self, io_type: str, value: Any) -> None:
        self.io_type, self.value = io_type, value


def is_link(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2
    return pair and isinstance(value[0], str) and isinstance(value[1], int | float)


def is_widget(io_type: Any) -> bool:
    return isinstance(io_type, list) or io_type in WIDGETS


def fits(sent: Any, wanted: Any) -> bool:
    """Whether a link may be: the types, each a union written with commas, have one in common; * goes everywhere."""
    if sent == wanted or "*" in (sent, wanted):
        return True
    if not isinstance(sent, str) or not isinstance(wanted, str):
        return isinstance(sent, list) and wanted == "COMBO"
    sent_types, wanted_types = ({part.strip() for part in told.split(",")} for told in (sent, wanted))
    return "*" in sent_types | wanted_types or bool(sent_types & wanted_types)


def finished(value: Any) -> Any:
    """The result of a function of a node, which may be `async`."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def mapped(facts: Facts, name: str, inputs: dict[str, list[Any]], hidden: dict[str, Any]) -> list[Any]:
    """Call a function of a node once for every element of its inputs, on a locked copy of its class.

    The last element of a shorter list is repeated; a node with is_input_list gets the lists themselves, once.
    """
    function = getattr(locked(facts.cls, hidden), name)
    if facts.info["is_input_list"] or not inputs:
        return [finished(function(**inputs))]
    longest = max(len(values) for values in inputs.values())
    return [
        finished(function(**{key: values[min(index, len(values) - 1)] for key, values in inputs.items()}))
        for index in range(longest)
    ]


class Validation:
    """What POST /prompt looks at. Converts the constants of `prompt` in place, as ComfyUI does."""

    def __init__(self, executor: Executor, prompt: dict[str, Any], targets: list[str] | None = None) -> None:
        self.executor, self.prompt, self.targets = executor, prompt, targets or []
        self.done: dict[str, list[NodeError]] = {}
        self.path: list[str] = []

    def errors(self) -> list[NodeError]:
        for node_id, node in self.prompt.items():
            if isinstance(node, Given):
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
        if node_id in self.done or isinstance(self.prompt.get(node_id), Given):
            return
        self.path.append(node_id)
        try:
            found = self.check(node_id)
        except Exception as error:  # whatever a node's validation raises makes the prompt invalid, no more
            found = [NodeError(node_id, "exception_during_validation", f"{type(error).__name__}: {error}")]
        self.path.pop()
        self.done[node_id] = [*self.done.get(node_id, []), *found]

    def check(self, node_id: str) -> list[NodeError]:
        node = self.prompt[node_id]
        facts = self.executor.facts(node)
        # The traps of validate_inputs: a named input is no longer checked here, and **kwargs names all of them.
        named: set[str] = set()
        if overrides(facts.cls, "validate_inputs"):
            arguments = inspect.getfullargspec(facts.cls.validate_inputs)
            named = set(facts.inputs) if arguments.varkw else set(arguments.args)
            named |= set(arguments.args)
        found = []
        received = {}
        for name in facts.inputs:
            if name in node["inputs"] and isinstance(node["inputs"][name], list):
                problem = self.check_link(facts, name, node["inputs"][name], received, "input_types" in named)
            else:
                problem = self.check_constant(facts, name, node["inputs"], name in named)
            if problem:
                found.append(NodeError(node_id, *problem, name))
        if named:
            found += self.ask(node_id, facts, named, received)
        return found

    def check_link(
        self, facts: Facts, name: str, link: list[Any], received: dict[str, str], own_types: bool
    ) -> tuple[str, str] | None:
        if len(link) != 2:
            return "bad_linked_input", f"{name}, {link}"
        source = self.prompt[link[0]]
        outputs = [source.io_type] if isinstance(source, Given) else self.executor.facts(source).info["output"]
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

    def ask(self, node_id: str, facts: Facts, named: set[str], received: dict[str, str]) -> list[NodeError]:
        """Call the node's own validation. What it says is told once for each input it named: never if it named none."""
        inputs = {key: values for key, values in constants(facts, self.prompt[node_id]).items() if key in named}
        if "input_types" in named:
            inputs["input_types"] = [received]
        hidden = self.executor.hidden(facts, node_id, {}, None)
        answers = mapped(facts, "validate_inputs", inputs, hidden)
        return [
            NodeError(node_id, "custom_validation_failed", name if answer is False else f"{name} - {answer}", name)
            for name in inputs
            for answer in answers
            if answer is not True
        ]


def constants(facts: Facts, node: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What validation and fingerprints get to see: constants the node knows, None for a link."""
    return {
        name: [None if is_link(value) else value]
        for name, value in node["inputs"].items()
        if is_link(value) or name in facts.inputs
    }
