"""Read facts about a ComfyUI source tree into contract.json: `python tests/host/make_contract.py PATH_TO_COMFYUI`.

The tree is parsed and not imported. The facts are names, parameters, defaults and option keys; a signature is stored as
the text between its parentheses, without `self` and annotations. The lists below select the names.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTRACT = Path(__file__).with_name("contract.json")

TYPES = ["Int", "Float", "String", "Boolean", "Combo", "Image", "Mask", "Latent", "LossMap", "AnyType"]
TYPES += ["ClipVision", "Conditioning"]
ENUMS = ["Hidden", "FolderType", "NumberDisplay", "UploadType", "ControlAfterGenerate"]
HOOKS = ["define_schema", "execute", "validate_inputs", "fingerprint_inputs", "check_lazy_status"]
UI = ["PreviewImage", "PreviewText", "SavedResult", "SavedImages"]
SAVERS = [
    "save_images",
    "get_save_images_ui",
    "save_animated_png",
    "get_save_animated_png_ui",
    "save_animated_webp",
    "get_save_animated_webp_ui",
]
FOLDERS = [
    "add_model_folder_path",
    "exists_annotated_filepath",
    "filter_files_content_types",
    "get_annotated_filepath",
    "get_directory_by_type",
    "get_filename_list",
    "get_folder_paths",
    "get_full_path",
    "get_full_path_or_raise",
    "get_input_directory",
    "get_output_directory",
    "get_save_image_path",
    "get_temp_directory",
]
MANAGEMENT = [
    "free_memory",
    "get_free_memory",
    "get_torch_device",
    "intermediate_device",
    "interrupt_current_processing",
    "is_oom",
    "processing_interrupted",
    "soft_empty_cache",
    "throw_exception_if_processing_interrupted",
    "unload_all_models",
]
CORE = {
    "LoadImage": "nodes.py",
    "PreviewImage": "nodes.py",
    "SaveImage": "nodes.py",
    "PreviewAny": "comfy_extras/nodes_preview_any.py",
}


class Source:
    """A parsed file; classes have dotted names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.body = ast.parse(path.read_text(encoding="utf-8")).body

    def named(self, name: str, kind: type[ast.stmt] | tuple[type[ast.stmt], ...]) -> Any:
        """Return the last definition of a class or function; `Int.Input` is the class Input in the class Int."""
        *outer, last = name.split(".")
        body = self.body if not outer else self.named(".".join(outer), ast.ClassDef).body
        matches = [node for node in body if isinstance(node, kind) and getattr(node, "name", None) == last]
        if not matches:
            raise LookupError(f"{self.path} has no {name}")
        return matches[-1]

    def has(self, name: str) -> bool:
        try:
            return bool(self.named(name, ast.ClassDef))
        except LookupError:
            return False

    def cls(self, name: str) -> ast.ClassDef:
        return self.named(name, ast.ClassDef)

    def signature(self, name: str) -> str:
        """Return the parameters of a function, or of a method without the first one."""
        node = self.named(name, (ast.FunctionDef, ast.AsyncFunctionDef))
        static = any(ast.unparse(mark) == "staticmethod" for mark in node.decorator_list)
        return parameters(node.args, drop_first="." in name and not static)

    def value(self, name: str) -> Any:
        """Return the literal that the module assigns to a name."""
        for node in self.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return ast.literal_eval(node.value)
        raise LookupError(f"{self.path} does not assign {name}")

    def ancestry(self, name: str) -> Iterator[str]:
        """Yield a class and its first bases in this file; a type without an Input inherits that of its base."""
        while True:
            while not self.has(name):
                outer, _, last = name.rpartition(".")
                name = f"{self.first_base(outer)}.{last}"
            yield name
            # In a class body, a base with the name of the nested class is the one at module level.
            base = self.first_base(name)
            if base is None or not self.has(base):
                return
            name = base

    def first_base(self, name: str) -> str | None:
        bases = self.cls(name).bases
        return ast.unparse(bases[0]) if bases else None

    def constructor(self, name: str) -> str:
        """Return the parameters of the nearest __init__."""
        for ancestor in self.ancestry(name):
            if any(getattr(node, "name", None) == "__init__" for node in self.cls(ancestor).body):
                return self.signature(f"{ancestor}.__init__")
        raise LookupError(f"{name} has no __init__")

    def option_keys(self, name: str) -> list[str]:
        """Return the constant keys that as_dict writes, those of the bases first."""
        keys: list[str] = []
        for ancestor in reversed(list(self.ancestry(name))):
            for node in self.cls(ancestor).body:
                if isinstance(node, ast.FunctionDef) and node.name == "as_dict":
                    dicts = (part for part in ast.walk(node) if isinstance(part, ast.Dict))
                    keys += [key.value for part in dicts for key in part.keys if isinstance(key, ast.Constant)]
        return list(dict.fromkeys(keys))

    def fields(self, name: str) -> str:
        """Return the fields of a dataclass as a signature; `default_factory=list` becomes []."""
        fields = []
        for node in self.cls(name).body:
            if isinstance(node, ast.AnnAssign):
                default = "" if node.value is None else "=" + ast.unparse(node.value)
                fields.append(ast.unparse(node.target) + default.replace("field(default_factory=list)", "[]"))
        return ", ".join(fields)

    def assignments(self, name: str) -> dict[str, Any]:
        """Return the literals assigned in a class body: the members of an enum."""
        members = {}
        for node in self.cls(name).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                members[ast.unparse(node.targets[0])] = node.value.value
        return members


def parameters(args: ast.arguments, drop_first: bool) -> str:
    args = copy.deepcopy(args)
    if drop_first:
        del (args.posonlyargs or args.args)[0]
    for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if arg is not None:
            arg.annotation = None
    return ast.unparse(args)


def io_facts(source: Source) -> dict[str, Any]:
    public = set(source.value("__all__"))
    calls, options, types = {}, {}, {}
    for name in TYPES:
        mark = next(m for m in source.cls(name).decorator_list if isinstance(m, ast.Call))
        types[name] = ast.literal_eval(mark.keywords[0].value)
        for side in ("Input", "Output"):
            calls[f"{name}.{side}"] = source.constructor(f"{name}.{side}")
            options[f"{name}.{side}"] = source.option_keys(f"{name}.{side}")
    for side in ("Input", "Output"):
        calls[f"Custom.{side}"] = source.constructor(side)
        options[f"Custom.{side}"] = source.option_keys(side)
    calls |= {f"DynamicCombo.{part}": source.constructor(f"DynamicCombo.{part}") for part in ("Input", "Option")}
    calls |= {f"Autogrow.{part}": source.constructor(f"Autogrow.{part}") for part in ("Input", "TemplateNames")}
    options |= {name: source.option_keys(name) for name in ("DynamicCombo.Input", "Autogrow.Input")}
    return {
        "public": sorted(
            public
            & {
                *TYPES,
                *ENUMS,
                "Custom",
                "Autogrow",
                "DynamicCombo",
                "Input",
                "WidgetInput",
                "Output",
                "Schema",
                "ComfyNode",
                "NodeOutput",
            }
        ),
        "types": types,
        "enums": {name: source.assignments(name) for name in ENUMS},
        "calls": calls | {"Custom": source.signature("Custom"), "NodeOutput": source.constructor("NodeOutput")},
        "options": options,
        "schema": source.fields("Schema"),
        "node_info": [part.split("=")[0] for part in source.fields("NodeInfoV1").split(", ")],
        "hooks": {name: source.signature(f"ComfyNode.{name}") for name in HOOKS},
    }


def core_facts(root: Path) -> dict[str, Any]:
    """Return the facts about the core nodes that their source has as literals."""
    nodes = {}
    for name, file in CORE.items():
        source = Source(root / file)
        facts: dict[str, Any] = {"inputs": [], "outputs": [], "output_node": False}
        for ancestor in reversed(list(source.ancestry(name))):
            for node in source.cls(ancestor).body:
                target = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else getattr(node, "name", "")
                if target == "RETURN_TYPES":
                    # A name such as IO.STRING is the type STRING.
                    facts["outputs"] = [ast.unparse(part).split(".")[-1].strip("'") for part in node.value.elts]
                elif target == "OUTPUT_NODE":
                    facts["output_node"] = ast.literal_eval(node.value)
                elif target == "INPUT_TYPES":
                    inputs = next(part for part in ast.walk(node) if isinstance(part, ast.Dict))
                    sections = {ast.literal_eval(k): v for k, v in zip(inputs.keys, inputs.values, strict=True)}
                    facts["inputs"] = [ast.literal_eval(key) for key in sections["required"].keys]
        nodes[name] = facts
    return nodes


def version(root: Path) -> str:
    return Source(root / "comfyui_version.py").value("__version__")


def facts(root: Path) -> dict[str, Any]:
    """Return all facts about one ComfyUI tree."""
    node_io, ui = Source(root / "comfy_api/latest/_io.py"), Source(root / "comfy_api/latest/_ui.py")
    folders, tools = Source(root / "folder_paths.py"), Source(root / "comfy/utils.py")
    management, flags = Source(root / "comfy/model_management.py"), Source(root / "comfy/cli_args.py")
    server, context = Source(root / "server.py"), Source(root / "comfy_execution/utils.py")
    flag_names = [
        ast.literal_eval(node.args[0])
        for node in ast.walk(ast.Module(flags.body, []))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument"
    ]
    if "--disable-metadata" not in flag_names:
        raise LookupError(f"{flags.path} has no --disable-metadata")
    return {
        "io": io_facts(node_io),
        "ui": {name: ui.constructor(name) for name in UI}
        | {f"ImageSaveHelper.{name}": ui.signature(f"ImageSaveHelper.{name}") for name in SAVERS},
        "folder_paths": {name: folders.signature(name) for name in FOLDERS},
        "supported_pt_extensions": sorted(folders.value("supported_pt_extensions")),
        "utils": {"ProgressBar": tools.constructor("ProgressBar")}
        | {f"ProgressBar.{name}": tools.signature(f"ProgressBar.{name}") for name in ("update_absolute", "update")},
        "throttle": {
            "seconds": tools.value("PROGRESS_THROTTLE_MIN_INTERVAL"),
            "percent": tools.value("PROGRESS_THROTTLE_MIN_PERCENT"),
        },
        "model_management": {name: management.signature(name) for name in MANAGEMENT},
        "server": {"send_progress_text": server.signature("PromptServer.send_progress_text")},
        "comfy_execution": {"get_executing_context": context.signature("get_executing_context")},
        "interrupt_base": management.first_base("InterruptProcessingException"),
        "cli_args": {"disable_metadata": False},
        "core_nodes": core_facts(root),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a ComfyUI folder")
    root = parser.parse_args().root
    contract = json.loads(CONTRACT.read_text(encoding="utf-8")) if CONTRACT.exists() else {}
    contract[version(root)] = facts(root)
    CONTRACT.write_text(json.dumps(contract, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
