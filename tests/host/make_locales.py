"""Writes locales/en from the schemas of the nodes: `python -m tests.host.make_locales`, in the repository's root."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .double import install, load_pack

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def texts(schemas: Iterable[Any]) -> dict[str, Any]:
    """Every text of the nodes' schemas that the page translates, in the form of a nodeDefs.json."""

    def told(one: Any) -> dict[str, Any]:
        return {"name": one.display_name or one.id, "tooltip": one.tooltip}

    made = {}
    for schema in schemas:
        made[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {one.id: told(one) for one in schema.inputs},
            "outputs": {str(index): told(one) for index, one in enumerate(schema.outputs)},
        }
    return made


def written(told: dict[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    with TemporaryDirectory() as folder, load_pack(ROOT, install(sys.modules, Path(folder))) as pack:
        ENGLISH.parent.mkdir(parents=True, exist_ok=True)
        ENGLISH.write_text(written(texts(node.GET_SCHEMA() for node in pack.nodes)), encoding="utf-8")


if __name__ == "__main__":
    main()
