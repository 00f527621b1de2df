"""Results out of the graph: whole generators, and domains, which are only what an adaptation changed."""

from __future__ import annotations

from typing import Any

from ..nada_core import Domain, __version__, export_rosinality, read_domain, save_domain, save_generator
from ._host import DOMAINS, file_stamp, files, find, io, metadata, missing, normal_mode, save_path
from ._types import ROOT, DomainType, GeneratorType

_NONE = "(no domain saved yet)"  # an empty list would make the page refuse the node


class SaveGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveGenerator",
            display_name="Save Generator",
            category=f"{ROOT}/save",
            description="Writes a generator into output/stylegan_nada, where Load Generator finds it after R.",
            search_aliases=["export", "save stylegan", "rosinality", "checkpoint"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to write."),
                prefix_input("adapted"),
                io.Combo.Input(
                    "format",
                    options=["safetensors", "safetensors float16", "rosinality pt"],
                    tooltip="safetensors keeps every bit and says how the weights were made; float16 is "
                    "half the size; rosinality pt is what many other tools read.",
                ),
            ],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, filename_prefix: str, format: str) -> Any:
        path = save_path(filename_prefix, ".pt" if format == "rosinality pt" else ".safetensors")
        if format == "rosinality pt":
            export_rosinality(generator, path)
        else:
            told = {"version": __version__, **metadata(cls.hidden)}
            save_generator(generator, path, told, half=format.endswith("float16"))
        return io.NodeOutput(str(path))


class SaveDomain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveDomain",
            display_name="Save Domain",
            category=f"{ROOT}/save",
            description="Writes only what an adaptation changed into output/stylegan_nada/domains, where Load Domain "
            "finds it after R and applies it with any strength.",
            search_aliases=["save lora", "delta", "export domain"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[
                DomainType.Input("domain", tooltip="From Adapt Generator or Pivotal Tuning."),
                prefix_input("domain"),
                io.Combo.Input(
                    "precision",
                    options=["float16", "float32"],
                    tooltip="float16 is half the size, and no eye sees the difference.",
                ),
            ],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, domain: Domain, filename_prefix: str, precision: str) -> Any:
        path = save_path(filename_prefix, ".safetensors", "domains")
        told = {**domain.provenance, "version": __version__, **metadata(cls.hidden)}
        save_domain(domain, path, half=precision == "float16", provenance=told)
        return io.NodeOutput(str(path))


class LoadDomain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadDomain",
            display_name="Load Domain",
            category=f"{ROOT}/load",
            description="Reads what an adaptation changed and applies it to the generator it was made from, as "
            "strongly as wanted. Chain several to mix domains.",
            search_aliases=["load lora", "delta", "apply domain"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator the domain was made from, or one that other domains were applied to.",
                ),
                io.Combo.Input(
                    "file",
                    options=files(DOMAINS) or [_NONE],
                    tooltip="A file in models/stylegan_nada/domains or output/stylegan_nada/domains. "
                    "Press R to see new files.",
                ),
                _strength(),
            ],
            outputs=[
                GeneratorType.Output("generator", display_name="generator", tooltip="The generator in that domain."),
                DomainType.Output("domain", display_name="domain", tooltip="The domain itself."),
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
            display_name="Apply Domain",
            category=f"{ROOT}/train",
            description="Applies what an adaptation changed, as strongly as wanted. Chain several to mix domains.",
            search_aliases=["strength", "mix domains", "blend generators", "lora strength"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator the domain was made from, or one that other domains were applied to.",
                ),
                DomainType.Input("domain", tooltip="From Adapt Generator, Pivotal Tuning or Load Domain."),
                _strength(),
            ],
            outputs=[
                GeneratorType.Output("generator", display_name="generator", tooltip="The generator in that domain.")
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, domain: Domain, strength: float) -> Any:
        return io.NodeOutput(domain.apply(generator, strength))


def prefix_input(default: str) -> Any:
    """The name that every saving node asks for."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Name of the file before its number; may begin with folders, and hold tokens such as %year%.",
    )


def path_output() -> Any:
    """What every saving node gives."""
    return io.String.Output("path", display_name="path", tooltip="The file that was written.")


def _strength() -> Any:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=3.0,
        step=0.05,
        round=0.001,
        tooltip="0 leaves the generator as it is, 1 is the whole change, beyond exaggerates.",
    )
