"""Write locales/en from the schemas of the nodes: `python -m tests.host.make_locales` in the root of the repository."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .double import install, load_pack

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def inputs(declared: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield all inputs with their keys in nodeDefs.json: `settings_steps` belongs to the dynamic combo `settings`."""
    for one in declared:
        yield one.id, one
        if one.io_type == "COMFY_DYNAMICCOMBO_V3":
            for option in one.options:
                yield from ((f"{one.id}_{key}", nested) for key, nested in inputs(option.inputs))


def sockets(declared: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the sockets of inputs that grow, with their keys: `images_image_1` belongs to `images`."""
    for one in declared:
        if one.io_type == "COMFY_AUTOGROW_V3":
            for name in one.template.names:
                socket = copy.copy(one.template.input)
                socket.id = name
                yield f"{one.id}_{name}", socket


def texts(schemas: Iterable[Any]) -> dict[str, Any]:
    """Return all translatable texts of the nodes' schemas, in the format of nodeDefs.json."""

    def names(one: Any) -> dict[str, Any]:
        return {"name": one.display_name or one.id, "tooltip": one.tooltip}

    result = {}
    for schema in schemas:
        result[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {key: names(one) for key, one in (*inputs(schema.inputs), *sockets(schema.inputs))},
            "outputs": {str(index): names(one) for index, one in enumerate(schema.outputs)},
        }
    return result


def written(texts: dict[str, Any]) -> str:
    return json.dumps(texts, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    with TemporaryDirectory() as folder, load_pack(ROOT, install(sys.modules, Path(folder))) as pack:
        ENGLISH.parent.mkdir(parents=True, exist_ok=True)
        ENGLISH.write_text(written(texts(node.GET_SCHEMA() for node in pack.nodes)), encoding="utf-8")


if __name__ == "__main__":
    main()
