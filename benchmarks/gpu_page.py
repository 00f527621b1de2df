"""The text of docs/gpu.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]

_TITLES = {
    "throughput": (
        "Throughput of the card",
        "Operations per second of a large matrix product and of a 3x3 convolution.",
    ),
    "pictures": (
        "Images, compared with the CPU",
        "Two images in float32 from the same latents and noise: the largest difference on -1..1, and the mean "
        "difference relative to the standard deviation. TF32 is what PyTorch uses for convolutions by default.",
    ),
    "training": (
        "Training, compared with the CPU",
        "Five steps from the same latents with constant noise: the largest difference of a loss, and the difference of "
        "the weight changes relative to their length.",
    ),
    "speed": (
        "Time and memory of a step",
        "Batch 2. The plain implementation (`benchmarks/naive.py`) runs alternately with fp32 and tf32, in the same "
        "arithmetic. *Share*: of the higher throughput above in the same precision. *Channels last*: memory format of "
        "the generators, which is not used otherwise.",
    ),
    "parts": ("Parts of a step", "In milliseconds, float32. Their sum exceeds the time of a step: marking them waits."),
    "run": ("A run from end to end", "float32, batch 2, one CLIP model."),
    "ceiling": (
        "Limited memory",
        "`torch.cuda.set_per_process_memory_fraction`; the number of latents at a time is halved until a step fits.",
    ),
    "lending": (
        "Networks on loan",
        "What the nodes do: copy the networks to the card, train 3 steps, free the copies. *Left*: bytes that are "
        "still allocated afterwards.",
    ),
}


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value else "-"


def _operations(value: float) -> str:
    return f"{value / 1e12:.3g} T/s"


def _small(value: float) -> str:
    return f"{value:.1e}"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "seconds": _seconds,
    "naive_seconds": _seconds,
    "memory": _bytes,
    "naive_memory": _bytes,
    "lent": _bytes,
    "left": lambda value: f"{value} bytes",
    "matmul": _operations,
    "conv": _operations,
    "operations": lambda value: f"{value / 1e9:.0f} G",
    "ratio": lambda value: f"{value:.1f}x",
    "share": lambda value: f"{value:.0%}",
    "losses": lambda values: " to ".join(f"{value:.3f}" for value in values),
    "parts": lambda values: ", ".join(f"{name} {1e3 * value:.1f}" for name, value in values.items()),
    "met": lambda value: "yes" if value else "**no**",
    "unchanged": lambda value: "yes" if value else "**no**",
    **dict.fromkeys(("largest", "mean", "largest_tf32", "mean_tf32", "loss", "weights"), _small),
}


def short(row: Row) -> str:
    """One line of text."""
    return ", ".join(f"{name.replace('_', ' ')} {_cell(name, value)}" for name, value in row.items())


def _cell(name: str, value: Any) -> str:
    return _FORMATS.get(name, str)(value)


def page(content: Row) -> str:
    """The page of all rows measured so far."""
    return "\n".join(_lines(content["card"], content["rows"])) + "\n"


def _lines(card: Row, rows: list[Row]) -> Iterator[str]:
    yield "# Training on a GPU"
    yield ""
    yield "Printed by `python -m benchmarks.gpu`, with random weights: StyleGAN2 config F and CLIP models of the sizes"
    yield "ViT-B/32 and ViT-B/16."
    if card.get("toy"):
        yield ""
        yield "**Toy sizes: these figures say nothing about real networks.**"
    yield ""
    yield "; ".join(f"{name} {_bytes(value) if name == 'memory' else value}" for name, value in card.items()) + "."
    yield ""
    yield from _goals(rows)
    for section, (title, text) in _TITLES.items():
        if chosen := [row for row in rows if row["section"] == section]:
            yield from ("", f"## {title}", "", text, "")
            yield from _table(chosen)


def _table(rows: list[Row]) -> Iterator[str]:
    hidden = {"section", "name", "skipped", "failed", "unexpected"}
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in hidden))
    yield "| " + " | ".join(["case", *(name.replace("_", " ") for name in columns)]) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in rows:
        note = f"not measured: {row['skipped']}" if "skipped" in row else row.get("failed", "")
        cells = [_cell(name, row[name]) if name in row else "" for name in columns]
        if note and cells:
            cells[0] = note
        yield f"| {' | '.join([row['name'], *(cells or [note])])} |"


def _goals(rows: list[Row]) -> Iterator[str]:
    """Goals and the first rows of their sections, which are measured for them."""
    steps = [
        row for row in rows if row["section"] == "speed" and row["name"].endswith("models: 1, selection off, fp32")
    ]
    step, whole = ((found or [{}])[0] for found in (steps, [row for row in rows if row["section"] == "run"]))
    goals: list[tuple[str, Row, str, Callable[[float], bool]]] = [
        ("a step at most 0.2 s", step, "seconds", lambda value: value <= 0.2),
        ("at least 4 times as fast as the plain implementation", step, "ratio", lambda value: value >= 4),
        ("300 steps in less than 90 s", whole, "seconds", lambda value: value < 90 and whole["steps"] == 300),
        ("at most 8 GB", whole, "memory", lambda value: value <= 8e9),
    ]
    yield "Goals at the largest resolution, batch 2, ViT-B/32, float32, for a card of the class of an A100:"
    yield ""
    yield "| goal | measured | met |"
    yield "|---|---|---|"
    for text, row, name, is_met in goals:
        if name in row:
            yield f"| {text} | {_cell(name, row[name])} | {_cell('met', is_met(row[name]))} |"
        else:
            yield f"| {text} | not measured | |"
