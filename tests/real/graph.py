"""API prompts for tests, from a workflow file or as a chain of nodes connected by type."""

from __future__ import annotations

import copy
from typing import Any

Prompt = dict[str, dict[str, Any]]
Info = dict[str, Any]  # the result of /object_info

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_api(workflow: dict[str, Any], info: Info) -> Prompt:
    """Convert a UI-format workflow to an API prompt with comfy-cli."""
    from comfy_cli.workflow_to_api import convert_ui_to_api

    return bare(convert_ui_to_api(workflow, info))


def bare(prompt: Prompt) -> Prompt:
    """Remove titles, which do not affect a run."""
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}


def find(prompt: Prompt, class_type: str) -> list[str]:
    """The ids of the nodes of a class."""
    return [key for key, node in prompt.items() if node["class_type"] == class_type]


def changed(prompt: Prompt, class_type: str, **inputs: Any) -> Prompt:
    """Return a copy with other widget values in every node of a class, and the same links."""
    result = copy.deepcopy(prompt)
    for key in find(result, class_type):
        own = result[key]["inputs"]
        unknown = set(inputs) - set(own)
        assert not unknown, f"{class_type} has no input {unknown}, but {sorted(own)}"
        own.update({name: value for name, value in inputs.items() if not isinstance(own[name], list)})
    return result


def short(prompt: Prompt, steps: int = 6) -> Prompt:
    """Return the prompt with few training steps."""
    return changed(prompt, "StyleGANNADA_AdaptGenerator", **{"settings.steps": steps})


def chain(info: Info, *classes: str) -> Prompt:
    """Chain nodes: each required socket gets the last output of its type, each widget its default."""
    prompt: Prompt = {}
    newest: dict[str, list[Any]] = {}
    for index, name in enumerate(classes, 1):
        told, inputs = info[name], {}
        for group in ("required", "optional"):
            for key, spec in (told["input"].get(group) or {}).items():
                kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
                if kind == "COMFY_DYNAMICCOMBO_V3":
                    first = options["options"][0]
                    nested = first["inputs"].get("required", {})
                    inputs |= {key: first["key"], **{f"{key}.{one}": _default(*two) for one, two in nested.items()}}
                elif kind == "COMFY_AUTOGROW_V3":
                    template = options["template"]
                    ((socket, _),) = template["input"]["required"].values()
                    first = template["names"][: template["min"]]
                    inputs |= {f"{key}.{one}": newest[socket] for one in first}
                elif isinstance(kind, list) or (kind in WIDGETS and not options.get("forceInput")):
                    inputs[key] = _default(kind, options)
                elif group == "required":
                    assert kind in newest, f"nothing before {name} gives {kind} for its input {key}"
                    inputs[key] = newest[kind]
        prompt[str(index)] = {"class_type": name, "inputs": inputs}
        newest |= {kind: [str(index), slot] for slot, kind in enumerate(told["output"]) if isinstance(kind, str)}
    return prompt


def _default(kind: str | list[Any], options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return choices[0] if choices else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(str(kind), "")
