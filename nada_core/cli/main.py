"""The command line: `python -m nada_core COMMAND`. Each command is a thin call of the public functions.

User errors end in one line on stderr and exit code 2, an interrupt in exit code 130.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from .. import __version__
from . import face_commands as faces
from . import file_commands as files
from . import photo_commands as photos
from . import search_command
from . import snapshot_commands as snapshots
from . import training_commands as training
from .arguments import Command, parse
from .progress import printable, printable_output, say

COMMANDS: dict[str, type[Command]] = {
    "demo": training.Demo,
    "info": files.Info,
    "convert": files.Convert,
    "sample": files.Sample,
    "adapt": training.Adapt,
    "search": search_command.Search,
    "pick": snapshots.Pick,
    "compare": files.Compare,
    "align": faces.Align,
    "paste": faces.Paste,
    "encode": photos.Encode,
    "invert": photos.Invert,
    "directions": photos.FindDirections,
    "edit": photos.Edit,
    "bench": training.Bench,
    "build-native": files.BuildNative,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Help leaves through SystemExit(0)."""
    with printable_output():
        return _run(sys.argv[1:] if argv is None else list(argv))


def _run(words: list[str]) -> int:
    try:
        if words == ["--version"]:
            say(__version__)
            return 0
        command = parse(COMMANDS, words)
        if command.machine.threads:
            torch.set_num_threads(command.machine.threads)
        command.run()
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{stop or 'Stopped.'}\n")
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
        sys.stderr.write(f"error: {printable(' '.join(str(error).split()))}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
