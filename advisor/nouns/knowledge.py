"""The nouns of `profiles/*.toml`: formats, devices, engines, deployments, advice; every number has its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from advisor.nouns.base import Noun
from advisor.nouns.model import Role


class Sourced(Noun):
    """A number and where it was read; a number that nobody could source is left out instead."""

    value: float
    source: str
    checked_on: str


Support = Literal["native", "weight_only", "emulated", "none"]


class Format(Noun):
    """How a weight is stored: one row of `profiles/formats.toml`.

    Attributes:
        kind: `float` (a plain dtype), `float_scaled` (fp8 codes and a scale), `integer`, `codebook` (nf4).
        bits: bits of one code.
        group_size: weights that share a scale, along the input axis; None is one scale per output channel.
        scale_bits: bits of one scale; 0 for plain dtypes.
        zero_point_bits: bits of one zero point; 0 for symmetric formats.
        activation_bits: bits of what the weight is multiplied with, rounded token by token as it comes, in the same
            kind of number as the weight; None leaves activations in the model's dtype.
        family: the row of a hardware table that says how the device computes with it.
    """

    name: str
    label: str
    kind: Literal["float", "float_scaled", "integer", "codebook"]
    family: Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "int3", "int2", "nf4"]
    bits: int
    group_size: int | None = None
    symmetric: bool = True
    scale_bits: int = 0
    zero_point_bits: int = 0
    activation_bits: Literal[8] | None = None
    description: str = ""
    source: str = ""

    @property
    def quantized(self) -> bool:
        return self.kind != "float"

    @property
    def quantizes_activations(self) -> bool:
        return self.activation_bits is not None


class Hardware(Noun):
    """One device: capacities with their sources, and how it computes with each format family.

    Attributes:
        detected_as: the names by which drivers report the device.
        usable_fraction: the part of the memory that it may use at all, where that is not the whole.
        bandwidth_gb_s: of its memory; None is "not stated".
        interconnect_gb_s: between GPUs of one machine, per GPU, both directions together.
        compute_capability: NVIDIA's number for the instructions that the device has.
        peak_tflops, matrix_efficiency: by format family, dense, and the share of it that real matrix products reach.
        guide: what the quantization guide says of a family, where it speaks of the device.
    """

    name: str
    label: str
    vendor: Literal["nvidia", "apple", "amd", "cpu"]
    detected_as: tuple[str, ...] = ()
    memory_gb: Sourced
    usable_fraction: Sourced | None = None
    bandwidth_gb_s: Sourced | None = None
    interconnect_gb_s: Sourced | None = None
    compute_capability: Sourced | None = None
    peak_tflops: dict[str, Sourced] = {}
    matrix_efficiency: dict[str, Sourced] = {}
    support: dict[str, Support]
    support_source: str
    guide: dict[str, str] = {}
    notes: str = ""

    @property
    def memory_bytes(self) -> int:
        """Capacity in bytes; vendors' GB are read as 10^9 bytes, the cautious reading."""
        return int(self.memory_gb.value * 10**9)


class EngineFormat(Noun):
    """How an engine stores one format; bits and group size that differ from the format's own row are given here.

    Attributes:
        bits: bits that one code takes in the engine's files, where it packs them less densely.
        stored_as: the engine's own name of the type in its files, where it has one.
        least_capability, below_capability: the NVIDIA compute capabilities that the engine has kernels for, the first
            included; None is any.
        activation_bits: bits to which the engine rounds what the weight is multiplied with, although the format leaves
            it as it is.
        experts: whether the engine has a kernel for fused experts in this format, where it has one for experts at all.
        shape_bytes: bytes that every stored matrix has besides, which say what shape its packed codes have.
        input_bytes: bytes that it has besides for every input feature, which say what group that belongs to.
    """

    bits: int | None = None
    group_size: int | None = None
    scale_bits: int | None = None
    zero_point_bits: int | None = None
    least_capability: float | None = None
    below_capability: float | None = None
    activation_bits: Literal[8] | None = None
    experts: bool = True
    shape_bytes: int = 0
    input_bytes: int = 0
    stored_as: str = ""
    note: str = ""


class Engine(Noun):
    """One inference engine at the versions that were checked.

    Attributes:
        one_quantized_format: all quantized layers share one format, the others keep the model's dtype.
        tensor_parallel: it splits every layer over several GPUs.
        vector_format: what it stores norms and biases in, whatever the model's dtype; None leaves them in that.
        kv_cache_bits: by the nominal bits of a KV cache value, the bits that it stores, scales included.
    """

    name: str
    label: str
    versions: str
    source: str
    checked_on: str
    vendors: tuple[str, ...]
    formats: dict[str, EngineFormat]
    fuses: tuple[Literal["qkv", "gate_up", "experts"], ...] = ()
    quantizes_embedding: bool
    quantizes_lm_head: bool
    quantizes_experts: bool
    quantizes_conv1d: bool = True
    one_quantized_format: bool = False
    tensor_parallel: bool = False
    vector_format: str | None = None
    utilisation: Sourced
    overhead_gb: Sourced
    kv_cache_bits: dict[int, Sourced]
    notes: str = ""

    @property
    def kv_bits(self) -> tuple[int, ...]:
        """The nominal bits of a KV cache value to choose from, largest first."""
        return tuple(sorted(self.kv_cache_bits, reverse=True))


class Scenario(Noun):
    """A deployment that the quantization guide describes: what fills the planning form, and what the guide expects.

    Attributes:
        guide: what the guide recommends and expects of it, in our words.
        formats: the formats to choose from; empty means all that were measured.
        max_ppl_increase: the relative rise of perplexity that the guide accepts for it, None where it names none.
    """

    name: str
    label: str
    description: str
    guide: str
    hardware: str
    engine: str
    gpus: int = Field(default=1, gt=0)
    context: int = Field(gt=0)
    sequences: int = Field(gt=0)
    kv_bits: Literal[4, 8, 16] = 16
    formats: tuple[str, ...] = ()
    max_ppl_increase: float | None = Field(default=None, ge=0)
    source: str
    checked_on: str


class Target(Noun):
    """One way to write an applied plan; `advisor/export/` has a module for each.

    Attributes:
        engines: the engines that load what is written.
        stored_by: the engine whose table counts the bytes of these files.
        packed: the files hold packed codes; otherwise the de-quantized values that these stand for.
        timed: transformers computes with the packed weights, so that an evaluation can time them.
        activations: the files can say that inputs are rounded.
        rounds_inputs: what reads the files rounds inputs of quantized weights, whether or not the plan says so.
        own_codes: the engine's own rules choose scales and codes, other ones than were measured.
        lenient: what they cannot hold of a plan becomes something else, which is told, instead of being refused.
        packages: whose versions decide what is written, beside torch, transformers and safetensors.
        serve: the command that serves what was written, with `{folder}` or `{file}` in it.
        snippet: Python that loads the folder it runs in with others' packages alone, where `serve` needs this product.
        note: what an evaluation of the files says of itself.
    """

    name: str
    label: str
    help: str
    engines: tuple[str, ...]
    stored_by: str
    packed: bool
    timed: bool = False
    activations: bool = False
    rounds_inputs: bool = False
    own_codes: bool = False
    lenient: bool = False
    packages: tuple[str, ...] = ()
    serve: str
    snippet: str = ""
    note: str = ""
    source: str
    checked_on: str


class RoleAdvice(Noun):
    """What the guide expects of a role: its sensitivity in words and the least bits it recommends."""

    role: Role
    label: str
    sensitivity: str
    minimum_bits: int
    advice: str
    source: str


class Efficiency(Noun):
    """The shares of a device's peak and bandwidth that kernels reach, for devices whose own are not stated."""

    matrix: Sourced
    bandwidth: Sourced


class PerplexityMarks(Noun):
    """How a rise of perplexity (%) is judged: fine up to `acceptable`, borderline up to `limit`, bad above `poor`."""

    acceptable: Sourced
    limit: Sourced
    poor: Sourced


class BatchMarks(Noun):
    """Sequences decoded at once: up to `small` bandwidth binds, from `large` on arithmetic does."""

    small: Sourced
    large: Sourced
