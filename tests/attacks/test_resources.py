"""Pickles that ask for more memory or time than their size justifies. `benchmarks.isolation` sets the limits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Refused
from hostile import archive, call, doubled, fragment, integer, named, old_archive, program, state, storage, tensor, text

MODULE = named("a", "Module") + b")\x81"
NETWORK = named("dnnlib.tflib.network", "Network") + b")\x81"
SET = named("builtins", "set")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")

LENGTHS = {
    "BINBYTES": b"B\xff\xff\xff\xff",
    "BINBYTES8": b"\x8e" + b"\xff" * 7 + b"\x0f",
    "BYTEARRAY8": b"\x96" + b"\xff" * 5 + bytes(3),
    "BINUNICODE": b"X\xff\xff\xff\xff",
    "BINUNICODE8": b"\x8d" + b"\xff" * 5 + bytes(3),
    "BINSTRING": b"T\xff\xff\xff\x7f",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "FRAME": b"\x95" + b"\xff" * 5 + bytes(3) + b"X\xff\xff\xff\xff",
    "LONG_BINPUT": b"}r\xff\xff\xff\xff0Q",
    "PUT": b"}p99999999999999\n0Q",
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("wrap", [bytes, archive, old_archive], ids=["pickle", "zip", "old"])
def test_claimed_lengths_take_no_memory(refused: Refused, name: str, wrap: Callable[[bytes], bytes]) -> None:
    refused(wrap(program(LENGTHS[name])))


KEYS = {
    "nested": doubled(tuple),
    "deep": b")" + b"\x85" * 500_000,
    "frozen": b"(" + text("x") + b"\x91",
    "numbers": fragment((1, 2)),
    "long": fragment(("x",) * 100),
    "huge": fragment(2**61 - 1),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"}", b"Ns"), (b"}(", b"Nu"), (b"(", b"Nd"), (b"\x8f(", b"\x90"), (b"(", b"\x91"), (SET + b"](", b"e\x85R")],
    ids=["SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET", "set"],
)
def test_keys_with_expensive_hashes_are_refused(refused: Refused, name: str, before: bytes, after: bytes) -> None:
    refused(program(before + KEYS[name] + after), "DamagedCheckpointError")


def test_keys_of_one_hash_are_refused(refused: Refused) -> None:
    """Multiples of 2^61 - 1 have the hash 0, and a dict of n of them takes n^2 comparisons."""
    keys = b"".join(integer(index * (2**61 - 1)) + b"N" for index in range(1, 60_000))
    refused(program(b"}(" + keys + b"u"), "DamagedCheckpointError")


USES: dict[str, Callable[[bytes], bytes]] = {
    "class name": lambda value: call(
        named("torch_utils.persistence", "_reconstruct_persistent_obj"), state(class_name=value, state=b"}")
    ),
    "device": lambda value: call(named("torch", "device"), value),
    "path": lambda value: call(named("pathlib", "PosixPath"), value),
    "persistent id": lambda value: value + b"Q",
    "key of a storage": lambda value: b"(" + text("storage") + named("torch", "FloatStorage") + value + b"NK\x04tQ",
    "state": lambda value: MODULE + value + b"b",
    "size": lambda value: call(REBUILD, storage("0", 4), b"K\x00", value, value),
    "typed": lambda value: call(named("torch._tensor", "_rebuild_from_type_v2"), value, b"N", b")", b"N"),
    "constructor": lambda value: call(named("copyreg", "_reconstructor"), value, b"N", b"N"),
    "dtype": lambda value: call(named("numpy", "dtype"), value),
    "scalar": lambda value: call(named("numpy.core.multiarray", "scalar"), value, value),
    "list": lambda value: b"](" + value * 2 + b"e",
    "arguments": lambda value: MODULE + state(_modules=b"}", _init_args=value) + b"b",
    "parameters": lambda value: MODULE + state(_parameters=value) + b"b",
    "options": lambda value: named("argparse", "Namespace") + b")\x81" + state(option=value) + b"b",
    "variables": lambda value: NETWORK + state(static_kwargs=b"}", variables=value) + b"b",
    "name of a variable": lambda value: (
        NETWORK + state(static_kwargs=b"}", variables=b"](" + value + b"K\x01\x86e") + b"b"
    ),
    "components": lambda value: NETWORK + state(static_kwargs=b"}", variables=b"]", components=value) + b"b",
    "static arguments": lambda value: NETWORK + state(static_kwargs=state(a=value), variables=b"]") + b"b",
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("value", [doubled(tuple), doubled(list)], ids=["tuples", "lists"])
def test_shared_containers_are_neither_printed_nor_walked(refused: Refused, name: str, value: bytes) -> None:
    """2 ** 60 elements in 600 bytes."""
    result = refused(archive(program(state(x=USES[name](value))), {"data/0": bytes(16)}))
    assert result["memory"] < 100 << 20


def test_shared_records_are_not_walked(refused: Refused) -> None:
    """Modules of two modules of two modules ..., and networks of many components of many components ..."""
    modules = MODULE + b"}bq\x00"
    for _ in range(60):
        modules += MODULE + state(_modules=state(a=b"h\x00", b=b"h\x00")) + b"bq\x00"
    refused(program(modules))
    networks = NETWORK + state(static_kwargs=b"}", variables=b"]") + b"bq\x00"
    for _ in range(4):
        parts = b"}(" + b"".join(text(str(index)) + b"h\x00" for index in range(500)) + b"u"
        networks += NETWORK + state(static_kwargs=b"}", variables=b"]", components=parts) + b"bq\x00"
    refused(program(networks))


LONG = text("x" * 1_000_000) + b"q\x00"
COPIES = {
    "encode": LONG + b"0" + call(named("_codecs", "encode"), b"h\x00") * 3000,
    "paths": text("x" * 900) + (b"q\x00" + call(named("pathlib", "PosixPath"), b"h\x00", b"h\x00")) * 3000,
    "long paths": text("x" * 900) + b"q\x00" + call(named("pathlib", "PosixPath"), *[b"h\x00"] * 64) * 10_000,
    "codes": text("<" + "x" * 1_000_000) + b"q\x00" + call(named("numpy", "dtype"), b"h\x00") * 3000,
    "devices": text("x") + (b"q\x00" + call(named("torch", "device"), b"h\x00", b"h\x00")) * 60 + b"Q",
    "tuples": b"(" + b"N" * 100_000 + b"lq\x00" + call(named("torch", "Size"), b"h\x00") * 3000,
    "sets": b"(" + b"".join(integer(i) for i in range(50_000)) + b"lq\x00" + call(SET, b"h\x00") * 3000,
    "dicts": b"(N]lq\x00" + call(named("collections", "OrderedDict"), b"h\x00") * 3000,
    "classes": b"".join(named("a", str(index)) for index in range(100_000)),
    "empty sets": b"\x8f" * 3_000_000,
    "empty dicts": b"}" * 3_000_000,
    "marks": b"(" * 3_000_000,
    "nothing": b"N" * 20_000_000,
    "records": named("a", "b") + b"q\x00" + b"h\x00)\x81" * 300_000,
    "wide text": text("\U0001f600" + "x" * (80 << 20)),
    "references": b"](" + b"h\x00" * 3_000_000 + b"e",
    "names": state(**{"x" * 900: b"}(" + b"".join(text(str(i)) + b"N" for i in range(60_000)) + b"u"}),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_and_small_objects_take_bounded_memory(refused: Refused, name: str) -> None:
    refused(program(b"]q\x00" + COPIES[name]))


def test_nested_storages_are_refused(refused: Refused) -> None:
    pickled = program(b"N")
    for _ in range(200):
        inner = old_archive(pickled) + bytes(4096)
        pickled = program(
            call(named("torch.storage", "_load_from_bytes"), b"B" + len(inner).to_bytes(4, "little") + inner)
        )
    refused(pickled, "UnsafeCheckpointError")


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ([5], [1]),
        ([1 << 40], [1]),
        ([1 << 40], [0]),
        ([1 << 40, 1 << 40], [0, 0]),
        ([2], [-1]),
        ([-1], [1]),
        ([1] * 100, [1] * 100),
        ([1 << 70], [0]),
    ],
)
def test_tensors_stay_within_their_storage(refused: Refused, size: list[int], stride: list[int]) -> None:
    """As the size of another one, too: its elements would be unpacked."""
    hostile = tensor(storage("0", 4), size, stride)
    for pickled in (
        state(a=hostile),
        call(named("torch", "Size"), hostile),
        call(REBUILD, storage("0", 4), b"K\x00", hostile),
    ):
        refused(archive(program(pickled), {"data/0": bytes(16)}), "DamagedCheckpointError", "checkpoint")


def test_numbers_of_sizes_are_integers(refused: Refused) -> None:
    for wrong in (b"G?\xf0" + bytes(6), text("4"), b"N", b"\x88", b"]"):
        pickled = call(REBUILD, storage("0", 4), b"K\x00", wrong + b"\x85", b"K\x01\x85")
        refused(archive(program(state(a=pickled)), {"data/0": bytes(16)}), "DamagedCheckpointError", "checkpoint")


def test_one_storage_of_many_tensors_is_refused(refused: Refused) -> None:
    views = {f"a{index}": tensor(storage("0", 100_000), [100_000], [1]) for index in range(1000)}
    refused(archive(program(state(**views)), {"data/0": bytes(400_000)}), "DamagedCheckpointError", "checkpoint")


def test_arrays_take_their_bytes_once(refused: Refused) -> None:
    dtype = call(named("numpy", "dtype"), text("f4"), b"\x89", b"\x88")
    array = call(named("numpy._core.numeric", "_frombuffer"), b"h\x01", b"h\x02", fragment((1000,)), text("C"))
    content = b"B" + (4000).to_bytes(4, "little") + bytes(4000) + b"q\x01" + dtype + b"q\x02"
    refused(program(content + b"](" + array * 1000 + b"e"), "DamagedCheckpointError")
