"""The double of `folder_paths`: model folders, the input, output and temp folders, and names for new files."""

from __future__ import annotations

import mimetypes
import os
import re
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

MARKS = ("output", "input", "temp")


class Folders:
    """The functions of the module, as methods with the same names."""

    def __init__(self, root: Path, extensions: Collection[str], refuses_traversal: bool) -> None:
        self.models_dir = str(root / "models")
        self.served = SimpleNamespace(**{mark: str(root / mark) for mark in MARKS})
        for folder in (self.models_dir, *vars(self.served).values()):
            os.makedirs(folder)
        self.supported_pt_extensions = set(extensions)
        self.refuses_traversal = refuses_traversal
        # A selection of the core kinds. Some have their extensions in a set and others in a list.
        self.folder_names_and_paths: dict[str, tuple[list[str], Collection[str]]] = {
            "checkpoints": ([os.path.join(self.models_dir, "checkpoints")], self.supported_pt_extensions),
            "loras": ([os.path.join(self.models_dir, "loras")], self.supported_pt_extensions),
            "configs": ([os.path.join(self.models_dir, "configs")], [".yaml"]),
            "custom_nodes": ([str(root / "custom_nodes")], set()),
        }

    # ---- models ----

    def add_model_folder_path(self, folder_name: str, full_folder_path: str, is_default: bool) -> None:
        """Add a folder. A new kind has no extensions, and then all files match."""
        paths, _ = self.folder_names_and_paths.setdefault(folder_name, ([], set()))
        if full_folder_path in paths and not is_default:
            return
        if full_folder_path in paths:
            paths.remove(full_folder_path)
        paths.insert(0 if is_default else len(paths), full_folder_path)

    def get_folder_paths(self, folder_name: str) -> list[str]:
        return list(self.folder_names_and_paths[folder_name][0])

    def get_filename_list(self, folder_name: str) -> list[str]:
        """Return the sorted relative paths in all folders of a kind. Raises KeyError for an unknown kind."""
        folders, extensions = self.folder_names_and_paths[folder_name]
        files = set()
        for folder in folders:
            for place, inner, names in os.walk(folder, followlinks=True):
                inner[:] = [name for name in inner if name != ".git"]
                files |= {
                    os.path.relpath(os.path.join(place, name), folder)
                    for name in names
                    if not extensions or os.path.splitext(name)[1].lower() in extensions
                }
        return sorted(files)

    def get_full_path(self, folder_name: str, filename: str) -> str | None:
        """Return the path in the first folder that has the file, ignoring `..` at the root."""
        folders, _ = self.folder_names_and_paths.get(folder_name, ([], ()))
        inside = os.path.relpath(os.path.normpath(os.path.join(os.sep, filename)), os.sep)
        return next((path for folder in folders if os.path.isfile(path := os.path.join(folder, inside))), None)

    def get_full_path_or_raise(self, folder_name: str, filename: str) -> str:
        path = self.get_full_path(folder_name, filename)
        if path is None:
            raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
        return path

    # ---- input, output, temp ----

    def get_input_directory(self) -> str:
        return self.served.input

    def get_output_directory(self) -> str:
        return self.served.output

    def get_temp_directory(self) -> str:
        return self.served.temp

    def get_directory_by_type(self, type_name: str) -> str | None:
        return getattr(self.served, type_name, None)

    def filter_files_content_types(self, files: list[str], content_types: list[str]) -> list[str]:
        def kind(name: str) -> str:
            mime = "image/webp" if name.endswith(".webp") else mimetypes.guess_type(name, strict=False)[0]
            return (mime or "").split("/")[0]

        return [name for name in files if kind(name) in content_types]

    def _annotated(self, name: str, default_dir: str | None = None) -> tuple[str, str, bool]:
        """Return the path of `picture.png [output]`, its base folder, and whether the path is inside of it."""
        base = default_dir or self.served.input
        for mark in MARKS:
            if name.endswith(f"[{mark}]"):
                base, name = getattr(self.served, mark), name.removesuffix(f"[{mark}]").removesuffix(" ")
        path = os.path.join(base, name)
        return path, base, inside(base, path)

    def get_annotated_filepath(self, name: str, default_dir: str | None) -> str:
        path, _, safe = self._annotated(name, default_dir)
        if self.refuses_traversal and not safe:
            raise ValueError(f"Invalid file path: {name!r}")
        return path

    def exists_annotated_filepath(self, name: str) -> bool:
        path, _, safe = self._annotated(name)
        return (safe or not self.refuses_traversal) and os.path.exists(path)

    def get_save_image_path(
        self, filename_prefix: str, output_dir: str, image_width: int, image_height: int
    ) -> tuple[str, str, int, str, str]:
        """Return folder, name, next number, subfolder and prefix of files called `name_00001_...`."""
        now = time.localtime()
        tokens = {
            "width": image_width,
            "height": image_height,
            "year": now.tm_year,
            "month": f"{now.tm_mon:02}",
            "day": f"{now.tm_mday:02}",
            "hour": f"{now.tm_hour:02}",
            "minute": f"{now.tm_min:02}",
            "second": f"{now.tm_sec:02}",
        }
        prefix = re.sub(r"%(\w+)%", lambda m: str(tokens.get(m[1], m[0])), filename_prefix)
        subfolder, name = os.path.split(os.path.normpath(prefix))
        folder = os.path.join(output_dir, subfolder)
        if not inside(output_dir, folder):
            raise Exception(f"Saving image outside the output folder is not allowed: {folder} is not in {output_dir}")
        os.makedirs(folder, exist_ok=True)
        numbered = re.compile(rf"{re.escape(os.path.normcase(name))}_(\d+)(_|$)")
        taken = [int(m[1]) for other in os.listdir(folder) if (m := numbered.match(os.path.normcase(other)))]
        return folder, name, max(taken, default=0) + 1, subfolder, prefix


def inside(folder: str, path: str) -> bool:
    folder, path = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath((folder, path)) == folder
