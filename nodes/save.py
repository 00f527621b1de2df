"""Nodes that save generators, and save, load and apply domains (the weight changes of a training run)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..nada_core import Domain, __version__, export_rosinality, read_domain, save_domain, save_generator
from ..nada_core.io.metadata import create_atomically
from ._host import DOMAINS, file_stamp, files, find, io, metadata, missing, normal_mode, numbered_paths, ui
from ._status import send_path
from ._types import ROOT, DomainType, GeneratorType

_NONE = "(no domain found)"  # ComfyUI rejects a combo box without options


class SaveGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveGenerator",
            display_name="Save StyleGAN Generator",
            category=f"{ROOT}/save",
            description="Saves a generator to output/stylegan_nada. Press R to list the file in StyleGAN Loader.",
            search_aliases=["export", "save stylegan", "rosinality", "checkpoint"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to save."),
                prefix_input("adapted"),
                io.Combo.Input(
                    "format",
                    options=["safetensors", "safetensors float16", "rosinality pt"],
                    tooltip="safetensors: exact weights plus metadata. safetensors float16: half the size. "
                    "rosinality pt: for other tools.",
                ),
            ],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, filename_prefix: str, format: str) -> Any:
        if format == "rosinality pt":
            return save_numbered(lambda path: export_rosinality(generator, path), filename_prefix, ".pt")
        provenance, half = {"version": __version__, **metadata(cls.hidden)}, format.endswith("float16")
        return save_numbered(lambda path: save_generator(generator, path, provenance, half), filename_prefix)


class SaveDomain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveDomain",
            display_name="Save StyleGAN Domain",
            category=f"{ROOT}/save",
            description="Saves only the weight changes of a training run to output/stylegan_nada/domains. "
            "Press R to list the file in Load StyleGAN Domain.",
            search_aliases=["save lora", "delta", "export domain"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[
                DomainType.Input("domain", tooltip="From Adapt Generator or Pivotal Tuning."),
                prefix_input("domain"),
                io.Combo.Input(
                    "precision",
                    options=["float16", "float32"],
                    tooltip="float16 halves the file size without a visible difference.",
                ),
            ],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, domain: Domain, filename_prefix: str, precision: str) -> Any:
        provenance = {**domain.provenance, "version": __version__, **metadata(cls.hidden)}
        half = precision == "float16"
        return save_numbered(
            lambda path: save_domain(domain, path, half, provenance), filename_prefix, folder="domains"
        )


class LoadDomain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadDomain",
            display_name="Load StyleGAN Domain",
            category=f"{ROOT}/load",
            description="Loads a domain and applies it to the generator it was trained from, at any strength. "
            "Chain several nodes to mix domains.",
            search_aliases=["load lora", "delta", "apply domain"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator the domain was trained from, with or without other domains applied.",
                ),
                io.Combo.Input(
                    "file",
                    options=files(DOMAINS) or [_NONE],
                    tooltip="A file in models/stylegan_nada/domains or output/stylegan_nada/domains. Press R to "
                    "refresh the list.",
                ),
                _strength(),
            ],
            outputs=[
                GeneratorType.Output(
                    "generator", display_name="generator", tooltip="The generator with the domain applied."
                ),
                DomainType.Output(
                    "domain", display_name="domain", tooltip="The domain, for another Apply StyleGAN Domain."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return missing(DOMAINS, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> Any:
        return file_stamp(DOMAINS, file)

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, file: str, strength: float) -> Any:
        domain = read_domain(find(DOMAINS, file))
        return io.NodeOutput(domain.apply(generator, strength), domain)


class ApplyDomain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ApplyDomain",
            display_name="Apply StyleGAN Domain",
            category=f"{ROOT}/train",
            description="Applies a domain to a generator at any strength. Chain several nodes to mix domains.",
            search_aliases=["strength", "mix domains", "blend generators", "lora strength"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator the domain was trained from, with or without other domains applied.",
                ),
                DomainType.Input("domain", tooltip="From Adapt Generator, Pivotal Tuning or Load StyleGAN Domain."),
                _strength(),
            ],
            outputs=[
                GeneratorType.Output(
                    "generator", display_name="generator", tooltip="The generator with the domain applied."
                )
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, domain: Domain, strength: float) -> Any:
        return io.NodeOutput(domain.apply(generator, strength))


def prefix_input(default: str) -> Any:
    """The file name input of every save node."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="File name before the counter. It may contain subfolders and tokens such as %year%.",
    )


def save_numbered(write: Callable[[Path], object], prefix: str, suffix: str = ".safetensors", folder: str = "") -> Any:
    """Write a numbered file, return the output of every save node and show it on the node."""
    path = create_atomically(numbered_paths(prefix, suffix, folder), write)
    send_path(path)
    return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


def path_output() -> Any:
    """The output of every save node."""
    return io.String.Output("path", display_name="path", tooltip="Path of the saved file.")


def _strength() -> Any:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=3.0,
        step=0.05,
        round=0.001,
        tooltip="0: no change. 1: the full change. Above 1: exaggerated.",
    )
