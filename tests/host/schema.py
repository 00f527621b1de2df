"""The double of `comfy_api.latest.io`: what a node declares, and its entry in /object_info."""

from __future__ import annotations

import dataclasses
from enum import Enum
from types import SimpleNamespace
from typing import Any

from .contract import bind, facts, signature

# Options whose name in /object_info differs from the parameter.
PARAMETERS = {
    "rawLink": "raw_link",
    "widgetType": "widget_type",
    "forceInput": "force_input",
    "display": "display_mode",
    "dynamicPrompts": "dynamic_prompts",
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


class Declared:
    """An input or output. `build_io` makes subclasses with a signature, option keys and a type."""

    io_type: str
    full_name: str
    signature: Any
    option_keys: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name, value in bind(self.signature, self.full_name, args, kwargs).items():
            setattr(self, name, value)

    def get_io_type(self) -> str:
        return self.io_type

    def as_dict(self) -> dict[str, Any]:
        """Return the options that are set, by their names in /object_info."""
        values = {key: getattr(self, PARAMETERS.get(key, key), None) for key in self.option_keys}
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


class DynamicComboInput(Input):
    """A combo whose chosen option has further inputs, with ids such as `settings.steps`."""

    io_type = "COMFY_DYNAMICCOMBO_V3"

    def as_dict(self) -> dict[str, Any]:
        chosen = [{"key": option.key, "inputs": input_sections(option.inputs)} for option in self.options]
        return super().as_dict() | {"options": chosen}


class DynamicComboOption:
    signature: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = bind(self.signature, "io.DynamicCombo.Option", args, kwargs)
        self.key, self.inputs = values["key"], values["inputs"]


class AutogrowInput(Input):
    """An input that grows: sockets with the names of its template, such as `images.image_1`."""

    io_type = "COMFY_AUTOGROW_V3"

    def as_dict(self) -> dict[str, Any]:
        one = self.template
        return super().as_dict() | {
            "template": {"input": input_sections([one.input]), "names": one.names, "min": one.min}
        }


class AutogrowTemplateNames:
    signature: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = bind(self.signature, "io.Autogrow.TemplateNames", args, kwargs)
        self.input, self.names, self.min = values["input"], values["names"], values["min"]
        if isinstance(self.input, WidgetInput):
            raise NotImplementedError("The double does not support widgets that grow.")


class Output(Declared):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.display_name = self.display_name or self.id


class HiddenValues:
    """The value of `cls.hidden`; what the schema does not ask for is None."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        return None


class NodeOutput:
    """The outputs of a node and its ui."""

    signature: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = bind(self.signature, "NodeOutput", args, kwargs)
        self.args: tuple[Any, ...] = values["args"]
        self.ui, self.expand, self.block_execution = values["ui"], values["expand"], values["block_execution"]

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    """The base class of V3 nodes. It is not instantiated; the host calls a locked subclass."""

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
    """Whether a node overrides a function of ComfyNode."""
    return getattr(cls, name).__func__ is not getattr(ComfyNode, name).__func__


def locked(cls: type, hidden: dict[str, Any]) -> type:
    """Return the subclass that the host calls: it has values for `hidden` and rejects changes."""

    class Locked(type(cls)):
        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(f"Cannot modify class attribute '{name}' on locked class '{cls.__name__}'")

    return Locked(cls.__name__, (cls,), {"hidden": HiddenValues(hidden), "__module__": cls.__module__})


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


# ---- the schema ---------------------------------------------------------------------------------------------------


class SchemaBehaviour:
    """The methods of io.Schema; the contract has its fields."""

    def validate(self) -> None:
        for what, declared in (("Input", self.inputs), ("Output", self.outputs)):
            ids = [one.id for one in declared]
            twice = sorted({name for name in ids if ids.count(name) > 1})
            if twice:
                raise ValueError(f"{what} ids must be unique, but {twice} are not.")

    def finalize(self) -> None:
        self.inputs, self.outputs, self.hidden = list(self.inputs or []), list(self.outputs or []), self.hidden or []
        if self.is_output_node:  # output nodes store the workflow in their files
            kind = self.known_hidden
            self.hidden += [one for one in (kind.prompt, kind.extra_pnginfo) if one not in self.hidden]
        for index, output in enumerate(self.outputs):
            if output.id is None:
                output.id = f"_{index}_{output.io_type}_"

    def get_v1_info(self, cls: type) -> dict[str, Any]:
        """Return the entry of /object_info, with the fields of the host's version in their order."""
        sections = input_sections(self.inputs)
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
        # The other fields have the names of the schema, or the double does not support them.
        return {field: known.get(field, getattr(self, field, None)) for field in self.field_names}


def input_sections(inputs: list[Any]) -> dict[str, dict[str, Any]]:
    """Return the inputs as in /object_info: by section and id, as (type, options)."""
    sections: dict[str, dict[str, Any]] = {"required": {}}
    for one in inputs:
        options = one.as_dict()
        options.pop("optional", None)
        sections.setdefault("optional" if one.optional else "required", {})[one.id] = (one.get_io_type(), options)
    return sections


def build_schema(contract: dict[str, Any], hidden: type[Enum]) -> type:
    fields: list[Any] = []
    for name, parameter in signature(contract["schema"]).parameters.items():
        if parameter.default is parameter.empty:
            fields.append((name, Any))
        elif isinstance(parameter.default, list):
            fields.append((name, Any, dataclasses.field(default_factory=list)))
        else:
            fields.append((name, Any, dataclasses.field(default=parameter.default)))
    bases = (type("Methods", (SchemaBehaviour,), {"known_hidden": hidden, "field_names": contract["node_info"]}),)
    return dataclasses.make_dataclass("Schema", fields, bases=bases)


def dynamic_types(contract: dict[str, Any]) -> dict[str, type]:
    """The types of inputs that depend on others: io.DynamicCombo and io.Autogrow."""

    def part(name: str, base: type, without: str = "") -> type:
        facts = {"full_name": f"io.{name}", "signature": signature(contract["calls"][name])}
        if without:
            facts["option_keys"] = [key for key in contract["options"][name] if key != without]
        return type(name.partition(".")[2], (base,), facts)

    combo = {
        "Input": part("DynamicCombo.Input", DynamicComboInput, "options"),
        "Option": part("DynamicCombo.Option", DynamicComboOption),
    }
    grow = {
        "Input": part("Autogrow.Input", AutogrowInput, "template"),
        "TemplateNames": part("Autogrow.TemplateNames", AutogrowTemplateNames),
    }
    return {"DynamicCombo": type("DynamicCombo", (), combo), "Autogrow": type("Autogrow", (), grow)}


def build_io(version: str) -> SimpleNamespace:
    """The names of `comfy_api.latest.io` that the contract has."""
    contract = facts(version)["io"]
    enums = {name: Enum(name, members, type=str) for name, members in contract["enums"].items()}

    def side(kind: str, type_name: str, io_type: str) -> type:
        base = Output if kind == "Output" else WidgetInput if io_type in WIDGETS and type_name != "Custom" else Input
        base = ComboInput if type_name == "Combo" and kind == "Input" else base
        name = f"{type_name}.{kind}"
        return type(
            kind,
            (base,),
            {
                "io_type": io_type,
                "full_name": f"io.{name}",
                "option_keys": contract["options"][name],
                "signature": signature(contract["calls"][name]),
            },
        )

    def declare(type_name: str, io_type: str) -> type:
        sides = {kind: side(kind, type_name, io_type) for kind in ("Input", "Output")}
        return type(type_name, (), {"io_type": io_type, **sides})

    names: dict[str, Any] = {
        **dynamic_types(contract),
        **{name: declare(name, io_type) for name, io_type in contract["types"].items()},
        **enums,
        "Custom": lambda io_type: declare("Custom", io_type),
        "Input": Input,
        "WidgetInput": WidgetInput,
        "Output": Output,
        "ComfyNode": ComfyNode,
        "NodeOutput": type("NodeOutput", (NodeOutput,), {"signature": signature(contract["calls"]["NodeOutput"])}),
        "Schema": build_schema(contract, enums["Hidden"]),
    }
    return SimpleNamespace(**{name: names[name] for name in contract["public"]})
