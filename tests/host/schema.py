"""The double of `comfy_api.latest.io`: what a node declares, and the shape in which /object_info tells it."""

from __future__ import annotations

import dataclasses
from enum import Enum
from types import SimpleNamespace
from typing import Any

from .contract import bind, facts, signature

# Options whose name in /object_info is not the parameter's.
SPELLED = {
    "rawLink": "raw_link",
    "widgetType": "widget_type",
    "forceInput": "force_input",
    "display": "display_mode",
    "dynamicPrompts": "dynamic_prompts",
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


class Declared:
    """An input or output. The subclasses made below know their signature, their option keys and their type."""

    io_type: str
    called: str
    told_signature: Any
    told_options: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name, value in bind(self.told_signature, self.called, args, kwargs).items():
            setattr(self, name, value)

    def get_io_type(self) -> str:
        return self.io_type

    def as_dict(self) -> dict[str, Any]:
        """The options that were given, by the names they have in /object_info."""
        values = {key: getattr(self, SPELLED.get(key, key), None) for key in self.told_options}
        return {key: plain(value) for key, value in values.items() if value is not None}


class Input(Declared):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra_dict = self.extra_dict or {}

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {key: value for key, value in self.extra_dict.items() if value is not None}


class WidgetInput(Input):
    """An input with a widget: Int, Float, String, Boolean and Combo."""


class ComboInput(WidgetInput):
    multiselect = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.options, type) and issubclass(self.options, Enum):
            self.options = [member.value for member in self.options]
        self.default = plain(self.default)

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | ({} if self.upload is None else {self.upload.value: True})


class Output(Declared):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.display_name = self.display_name or self.id


class HiddenValues:
    """What stands in `cls.hidden`; a value that was not asked for is None."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        return None


class NodeOutput:
    """The values a node gives, and what it shows."""

    told_signature: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = bind(self.told_signature, "NodeOutput", args, kwargs)
        self.args: tuple[Any, ...] = given["args"]
        self.ui, self.expand, self.block_execution = given["ui"], given["expand"], given["block_execution"]

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    """The base of all V3 nodes. Classes, never instances: the host runs a locked copy of the class."""

    RELATIVE_PYTHON_MODULE: str | None = None
    hidden: Any = None

    @classmethod
    def define_schema(cls) -> Any:
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, **kwargs: Any) -> bool | str:
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, **kwargs: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def check_lazy_status(cls, **kwargs: Any) -> list[str]:
        return [name for name, value in kwargs.items() if value is None]

    @classmethod
    def VALIDATE_CLASS(cls) -> None:  # noqa: N802 (the host's name)
        for name in ("define_schema", "execute"):
            if not overrides(cls, name):
                raise Exception(f"{cls.__name__} has no {name} of its own")

    @classmethod
    def FINALIZE_SCHEMA(cls) -> Any:  # noqa: N802
        schema = cls.define_schema()
        schema.finalize()
        return schema

    @classmethod
    def GET_SCHEMA(cls) -> Any:  # noqa: N802
        cls.VALIDATE_CLASS()
        schema = cls.FINALIZE_SCHEMA()
        schema.validate()
        return schema

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return cls.FINALIZE_SCHEMA().get_v1_info(cls)["input"]

    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict[str, Any]:  # noqa: N802
        return cls.GET_SCHEMA().get_v1_info(cls)


def overrides(cls: type, name: str) -> bool:
    """Whether a node defines one of the host's functions itself."""
    return getattr(cls, name).__func__ is not getattr(ComfyNode, name).__func__


def locked(cls: type, hidden: dict[str, Any]) -> type:
    """What the host calls instead of the node's class: a subclass with `hidden` filled in that refuses changes."""

    class Locked(type(cls)):
        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(f"Cannot modify class attribute '{name}' on locked class '{cls.__name__}'")

    return Locked(cls.__name__, (cls,), {"hidden": HiddenValues(hidden), "__module__": cls.__module__})


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


# ---- the schema ---------------------------------------------------------------------------------------------------


class SchemaBehaviour:
    """The methods of io.Schema; its fields come from the contract."""

    def validate(self) -> None:
        for what, declared in (("Input", self.inputs), ("Output", self.outputs)):
            ids = [one.id for one in declared]
            twice = sorted({name for name in ids if ids.count(name) > 1})
            if twice:
                raise ValueError(f"{what} ids must be unique, but {twice} are not.")

    def finalize(self) -> None:
        self.inputs, self.outputs, self.hidden = list(self.inputs or []), list(self.outputs or []), self.hidden or []
        if self.is_output_node:  # the workflow goes into what it saves
            kind = self.known_hidden
            self.hidden += [one for one in (kind.prompt, kind.extra_pnginfo) if one not in self.hidden]
        for index, output in enumerate(self.outputs):
            if output.id is None:
                output.id = f"_{index}_{output.io_type}_"

    def get_v1_info(self, cls: type) -> dict[str, Any]:
        """The entry of /object_info, every field of the version in its order."""
        sections: dict[str, dict[str, Any]] = {"required": {}}
        for one in self.inputs:
            options = one.as_dict()
            options.pop("optional", None)
            section = "optional" if one.optional else "required"
            sections.setdefault(section, {})[one.id] = (one.get_io_type(), options)
        if self.hidden:
            sections["hidden"] = {one.name: (one.value,) for one in self.hidden}
        known = {
            "input": sections,
            "input_order": {section: list(inputs) for section, inputs in sections.items()},
            "output": [one.io_type for one in self.outputs],
            "output_is_list": [one.is_output_list for one in self.outputs],
            "output_name": [one.display_name or one.io_type for one in self.outputs],
            "output_tooltips": [one.tooltip or None for one in self.outputs],
            "name": self.node_id,
            "output_node": self.is_output_node,
            "deprecated": self.is_deprecated,
            "experimental": self.is_experimental,
            "dev_only": self.is_dev_only,
            "api_node": self.is_api_node,
            "python_module": cls.RELATIVE_PYTHON_MODULE or "nodes",
            "search_aliases": self.search_aliases or None,
        }
        # The other fields are called as in the schema, or are about things that the double has not got.
        return {field: known.get(field, getattr(self, field, None)) for field in self.told_fields}


def build_schema(told: dict[str, Any], hidden: type[Enum]) -> type:
    fields: list[Any] = []
    for name, parameter in signature(told["schema"]).parameters.items():
        if parameter.default is parameter.empty:
            fields.append((name, Any))
        elif isinstance(parameter.default, list):
            fields.append((name, Any, dataclasses.field(default_factory=list)))
        else:
            fields.append((name, Any, dataclasses.field(default=parameter.default)))
    bases = (type("Methods", (SchemaBehaviour,), {"known_hidden": hidden, "told_fields": told["node_info"]}),)
    return dataclasses.make_dataclass("Schema", fields, bases=bases)


def build_io(version: str) -> SimpleNamespace:
    """The names of `comfy_api.latest.io` that the contract has."""
    told = facts(version)["io"]
    enums = {name: Enum(name, members, type=str) for name, members in told["enums"].items()}

    def side(kind: str, called: str, io_type: str) -> type:
        base = Output if kind == "Output" else WidgetInput if io_type in WIDGETS and called != "Custom" else Input
        base = ComboInput if called == "Combo" and kind == "Input" else base
        name = f"{called}.{kind}"
        return type(
            kind,
            (base,),
            {
                "io_type": io_type,
                "called": f"io.{name}",
                "told_options": told["options"][name],
                "told_signature": signature(told["calls"][name]),
            },
        )

    def declare(called: str, io_type: str) -> type:
        sides = {kind: side(kind, called, io_type) for kind in ("Input", "Output")}
        return type(called, (), {"io_type": io_type, **sides})

    made: dict[str, Any] = {
        **{name: declare(name, io_type) for name, io_type in told["types"].items()},
        **enums,
        "Custom": lambda io_type: declare("Custom", io_type),
        "Input": Input,
        "WidgetInput": WidgetInput,
        "Output": Output,
        "ComfyNode": ComfyNode,
        "NodeOutput": type("NodeOutput", (NodeOutput,), {"told_signature": signature(told["calls"]["NodeOutput"])}),
        "Schema": build_schema(told, enums["Hidden"]),
    }
    return SimpleNamespace(**{name: made[name] for name in told["public"]})
