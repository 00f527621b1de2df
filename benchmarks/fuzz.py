"""Open mutated files with every reader, in processes of their own, and keep those that break a promise of SECURITY.md.

    python -m benchmarks.fuzz --minutes 10 --reader all
    python -m benchmarks.fuzz --minutes 1 --reader generator --reader latents --seed 7

A file is a failure if a reader raises anything but a refusal (a CheckpointError, a GuideError, or a ValueError that
the package raises itself), crashes, takes more than five seconds of CPU time, takes more memory than twice the file
plus 256 MiB, or causes an event that `benchmarks.isolation` forbids. Failures are kept under out/fuzz, with a report
beside them. Linux only. The seeds are written by `benchmarks.fuzz_seeds`, which needs the tests.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickletools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
READERS = ("generator", "checkpoint", "guide", "guide-config", "encoder", "identity", "domain", "latents", "directions")
READERS += ("autosave", "provenance", "image", "info")
_BATCH = 40  # files of one child process
_REPEATED = 16 << 20  # the most bytes that one repetition adds; a pickle's instruction may hold all weights

_NUMBERS = [0, 1, 2, 127, 128, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62]
_WORDS = [b"NaN", b"Infinity", b"-1", b"1e999", b"null", b"[]", b"{}", b'""', b"true", b"99999999999999999999"]

Mutator = Callable[[bytes, random.Random], bytes]


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change, remove, repeat or move a few bytes anywhere."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not result:
            return bytes(result)
        # Headers matter more than numbers.
        start = rng.randrange(min(len(result), rng.choice((16, 256, 4096, 1 << 30))))
        size = rng.choice((1, 2, 4, 8, rng.randrange(1, 256)))
        match rng.randrange(7):
            case 0:
                result[start] ^= 1 << rng.randrange(8)
            case 1:
                result[start : start + size] = rng.randbytes(size)
            case 2:
                value = rng.choice(_NUMBERS) & ((1 << 8 * min(size, 8)) - 1)
                result[start : start + min(size, 8)] = value.to_bytes(min(size, 8), rng.choice(("little", "big")))
            case 3:
                del result[start : start + size]
            case 4:
                result[start:start] = result[start : start + size] * rng.choice((1, 2, 50))
            case 5:
                other = rng.randrange(len(result))
                result[start : start + size] = result[other : other + size]
            case 6:
                del result[start:]
    return bytes(result)


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Replace a number or a word of JSON or of an array's header, which may change the length."""
    tokens = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]{0,60}"|true|false|null', content[: 1 << 16]))
    if not tokens:
        return mutate_bytes(content, rng)
    token = rng.choice(tokens)
    words = [*_WORDS, str(rng.choice(_NUMBERS)).encode(), b"[" * 5000, rng.choice(tokens)[0], b'"\\u0000"']
    return content[: token.start()] + rng.choice(words) + content[token.end() :]


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header, and give it the right length most of the time."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    header = mutate_text(header, rng) if rng.random() < 0.8 else mutate_bytes(header, rng)
    length = len(header) if rng.random() < 0.9 else rng.choice(_NUMBERS)
    return length.to_bytes(8, "little") + header + data


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, move or replace whole instructions."""
    try:
        starts = [position for _, _, position in pickletools.genops(content) if position is not None]
    except Exception:  # not a pickle from its first byte to its last
        return mutate_bytes(content, rng)
    parts = [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        index, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(6):
            case 0:
                del parts[index : index + rng.choice((1, 1, 2, 8))]
                parts = parts or [b"."]
            case 1:
                repeated, times = parts[index : index + rng.choice((1, 3, 9))], rng.choice((1, 2, 500))
                parts[index:index] = repeated * min(times, _REPEATED // max(1, sum(map(len, repeated))))
            case 2:
                parts[index], parts[other] = parts[other], parts[index]
            case 3:
                parts.insert(index, rng.choice(pickletools.opcodes).code.encode("latin-1"))
            case 4:
                parts.insert(
                    index, rng.choice((b"0", b"1", b"2", b"(", b")", b"}", b"]", b"R", b"b", b"u", b"e", b"Q"))
                )
            case 5:
                parts[index] = mutate_bytes(parts[index], rng)
    return b"".join(parts)


def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """Change a member, its name or its compression, or list it twice."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # damaged by another mutation
        return mutate_bytes(content, rng)
    if not members:
        return mutate_bytes(content, rng)
    index = rng.randrange(len(members)) if rng.random() < 0.5 else 0
    name, data = members[index]
    match rng.randrange(6):
        case 0 | 1 | 2:
            members[index] = name, mutate(data, rng)
        case 3:
            members.append((name, data))
        case 4:
            members[index] = rng.choice(("../x", "/x", "a/b/data.pkl", f"{name}/", "x" * 300)), data
        case 5:
            del members[index]
    target = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return target.getvalue()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Mutate by what the content is; every kind is mutated as mere bytes, too."""
    kinds: list[tuple[bool, Mutator]] = [
        (content.startswith(b"PK"), mutate_zip),
        (content[8:9] == b"{", mutate_safetensors),
        (content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")), mutate_pickle),
        (content.startswith((b"{", b"\x93NUMPY")), mutate_text),
    ]
    for fits, mutator in kinds:
        if fits and rng.random() < 0.85:
            return mutator(content, rng)
    return mutate_bytes(content, rng)


class Server:
    """A process of `benchmarks.isolation`."""

    def __init__(self, seeds: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.isolation", str(seeds)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, reader: str, paths: list[Path]) -> list[dict[str, Any]]:
        """Open files with a reader, and return one result for each."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"reader": reader, "paths": list(map(str, paths))}) + "\n")
        self.process.stdin.flush()
        return [json.loads(self.process.stdout.readline()) for _ in paths]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }  # forks of a process with threads may wait forever


def write_seeds(folder: Path) -> None:
    """Write the seeds of all readers."""
    command = [sys.executable, "-m", "benchmarks.fuzz_seeds", str(folder)]
    subprocess.run(command, cwd=ROOT, env=_environment(), check=True)


def fuzz(server: Server, reader: str, seeds: Path, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """Fuzz one reader.

    Returns:
        `kinds` and `types`: number of files by outcome, and of refusals by type; `memory`: the most that a file took.
    """
    originals = [path for path in sorted((seeds / reader).iterdir()) if path.is_file()]
    for path, result in zip(originals, server.open(reader, originals), strict=True):
        if result["kind"] != "read" and reader != "autosave":
            raise RuntimeError(f"the seed {path} is not read: {result}")
    rng, kinds, types, memory = random.Random(seed), Counter[str](), Counter[str](), 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            paths = []
            for index in range(_BATCH):
                original = rng.choice(originals)
                content = original.read_bytes()
                for _ in range(rng.choice((1, 1, 1, 2))):
                    content = mutate(content, rng)
                paths.append(Path(folder) / f"fuzzed-{index}{original.suffix}")
                paths[-1].write_bytes(content)
            for path, result in zip(paths, server.open(reader, paths), strict=True):
                kinds[result["kind"]] += 1
                types[result["type"]] += 1
                memory = max(memory, result["memory"])
                if result["kind"] not in ("read", "refused"):
                    keep(path, result, out / reader)
    return {"reader": reader, "kinds": kinds, "types": {name: types[name] for name in types if name}, "memory": memory}


def keep(path: Path, result: dict[str, Any], folder: Path) -> None:
    """Keep one input for each different failure, and at most 50."""
    folder.mkdir(parents=True, exist_ok=True)
    detail = re.sub(r"\d+|/tmp\S+|0x[0-9a-f]+", "#", result["detail"])
    name = f"{result['kind']}-{abs(hash((result['type'], detail[-400:]))) % 10**8:08}"
    if not (folder / f"{name}.txt").exists() and len(list(folder.glob("*.txt"))) < 50:
        shutil.copy(path, folder / f"{name}{path.suffix}")
        (folder / f"{name}.txt").write_text(json.dumps(result, indent=1).replace("\\n", "\n"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1, help="per reader (%(default)s)")
    parser.add_argument("--reader", action="append", choices=(*READERS, "all"), help="may be repeated (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="folder of failures (%(default)s)")
    args = parser.parse_args()
    chosen = args.reader or ["all"]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        server = Server(Path(folder))
        sys.stdout.write("| reader | files | read | refused | failures | most memory | refusals by type |\n")
        sys.stdout.write("|---|---|---|---|---|---|---|\n")
        for reader in READERS if "all" in chosen else chosen:
            report = fuzz(server, reader, Path(folder), 60 * args.minutes, args.seed, args.out)
            kinds = report["kinds"]
            failed = {kind: count for kind, count in kinds.items() if kind not in ("read", "refused")}
            failures += sum(failed.values())
            types = ", ".join(f"{name} {count}" for name, count in sorted(report["types"].items()))
            cells = [
                reader,
                kinds.total(),
                kinds["read"],
                kinds["refused"],
                failed or 0,
                f"{report['memory'] >> 20} MiB",
            ]
            sys.stdout.write(f"| {' | '.join(map(str, [*cells, types]))} |\n")
            sys.stdout.flush()
        server.close()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
