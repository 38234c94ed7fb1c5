"""The nouns of the road, frozen and checked: every other module speaks in these. No torch, no I/O."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

PLAN_SCHEMA_VERSION = 1
PROFILE_SCHEMA_VERSION = 1


def now() -> datetime:
    """The current time, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def relative_change(delta_nll: float) -> float:
    """The relative change of perplexity that a change of the negative log-likelihood means: exp(delta_nll) - 1.

    Beyond e^300 it stays there: a ruined layer has a number that can be stored and compared, not an overflow.
    """
    return math.expm1(min(delta_nll, 300.0))


class Noun(BaseModel):
    """Base of all nouns: immutable, and a field nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --------------------------------------------------------------------------------------------- model


class Role(StrEnum):
    """What a weight does in the network; decides advice, grouping and what an engine may quantize."""

    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_OUTPUT = "attention_output"
    MLP_GATE_UP = "mlp_gate_up"
    MLP_DOWN = "mlp_down"
    EXPERT = "expert"
    ROUTER = "router"
    NORM = "norm"
    OTHER = "other"


class ModelRef(Noun):
    """Where a model comes from, and the fingerprint that says whether two are the same.

    `fingerprint` is a SHA-256 over the catalogue (names, shapes, dtype) and samples of the weights: a plan made for one
    fingerprint is refused for another.
    """

    source: str
    kind: Literal["demo", "hub", "folder", "gguf"]
    name: str
    fingerprint: str = ""


class Layer(Noun):
    """One weight tensor of the model.

    Attributes:
        name: module name for `<module>.weight` (`model.layers.0.self_attn.q_proj`), else the full parameter name.
        parameter: the parameter's own name in `named_parameters()`.
        shape: the stored shape.
        input_axis: the axis that the layer contracts with its input; groups of a group-wise format run along it.
        quantizable: False for norms, biases, routers and everything that is not a matrix.
        fused_with: key shared by the layers that some engines fuse into one kernel (`...self_attn:qkv`), else None.
        fusion: which kind of fusion that is.
        tied_names: other modules that use this same tensor (a tied lm_head); it is counted and stored once.
    """

    name: str
    parameter: str
    role: Role
    block: int | None
    shape: tuple[int, ...]
    input_axis: int = -1
    quantizable: bool
    fused_with: str | None = None
    fusion: Literal["qkv", "gate_up", "experts"] | None = None
    tied_names: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, input features): the shape with the input axis last and everything else folded into rows."""
        features = self.shape[self.input_axis]
        return self.parameters // features, features


class AttentionGeometry(Noun):
    """What a sequence leaves behind in memory, and how it is split over several GPUs.

    Attributes:
        blocks: all decoder blocks, of whatever kind.
        kv_heads, head_dim: of a block with attention; head_dim is that of queries and keys.
        sliding_window, sliding_blocks: how many blocks look back no further than so many tokens.
        latent_dim: values that stand for all keys and values of a token (multi-head latent attention), else None.
        state_blocks: blocks that keep a state of constant size per sequence instead of keys and values.
        recurrent_values, convolution_values: the two parts of that state, per sequence and block.
    """

    blocks: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    sliding_window: int | None = None
    sliding_blocks: int = 0
    latent_dim: int | None = None
    state_blocks: int = 0
    recurrent_values: int = 0
    convolution_values: int = 0


class Catalogue(Noun):
    """Every weight of one model, in the order in which the forward pass meets them.

    `experts_per_token` is how many experts of a block a token goes through; None where there are none, or not stated.
    """

    model: ModelRef
    architecture: str
    dtype: Literal["bf16", "fp16", "fp32"]
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    max_context: int
    experts_per_token: int | None = None
    attention: AttentionGeometry
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def quantizable(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.quantizable)

    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}


class LayerGroup(Noun):
    """The unit of decision: layers that the engine fuses share one format; elsewhere a group is one layer."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def role(self) -> Role:
        return self.layers[0].role

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)


# ----------------------------------------------------------------------------------------- knowledge


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
        least_capability, below_capability: the NVIDIA compute capabilities that the engine has kernels for, the first
            included; None is any.
        activation_bits: bits to which the engine rounds what the weight is multiplied with, although the format leaves
            it as it is.
    """

    group_size: int | None = None
    scale_bits: int | None = None
    zero_point_bits: int | None = None
    least_capability: float | None = None
    below_capability: float | None = None
    activation_bits: Literal[8] | None = None
    note: str = ""


class Engine(Noun):
    """One inference engine at the versions that were checked.

    Attributes:
        one_quantized_format: all quantized layers share one format, the others keep the model's dtype.
        tensor_parallel: it splits every layer over several GPUs.
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


# ------------------------------------------------------------------------------------------- measure


class TextQuality(Noun):
    """Whether calibration text deserves trust: what its tokens look like, and what is wrong with them.

    Attributes:
        tokens, distinct_tokens: how many tokens the windows have, and how many different ones.
        vocabulary: how many the model knows.
        repetition: share of the runs of 8 tokens inside windows that stood earlier in the same or another window.
        divergence: Jensen-Shannon divergence in bits between how often each token occurs in this text and in the
            evaluation text: 0 the same, 1 no token in common; None without an evaluation text.
        expected_divergence: what two samples of these sizes show when both come from the two texts shuffled together;
            little text diverges from itself, so a divergence means something by how far it lies above this one.
        perplexity, evaluation_perplexity: the model's own on the two texts, None where it was not run.
        warnings: what is wrong, each with what to do next.
    """

    tokens: int
    distinct_tokens: int
    vocabulary: int
    repetition: float
    divergence: float | None = None
    expected_divergence: float | None = None
    perplexity: float | None = None
    evaluation_perplexity: float | None = None
    warnings: tuple[str, ...] = ()


class CalibrationSpec(Noun):
    """Which text a measurement saw: `samples` sequences of `seq_len` tokens of `text`, chosen by `seed`.

    `draws` are the labels that the Fisher method drew per token; 0 where everything was measured exactly.
    """

    text: str
    samples: int = Field(gt=0)
    seq_len: int = Field(ge=8)
    seed: int = 0
    draws: int = Field(default=0, ge=0)
    text_sha256: str = ""
    quality: TextQuality | None = None


FormatName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=32)]
Method = Literal["exact", "fisher", "auto"]


class Measurement(Noun):
    """What one layer in one format did to the model, everything else untouched; all values per token, in nats.

    Attributes:
        delta_nll: mean change of the negative log-likelihood (change of ln perplexity).
        kl: mean KL(p_full || p_quantized) over the vocabulary.
        delta_nll_stderr, kl_stderr: standard errors: of the paired per-token differences where measured exactly, of
            the spread over sequences and drawn labels where estimated.
        delta_nll_by_sequence: mean delta_nll of each calibration sequence; sums over layers keep their covariance.
        method: `exact` ran the model with the quantized layer; `fisher` estimated from gradients.
        projections: what `fisher` saw in every sequence and draw, packed by `advisor.estimates`; scores sets of layers.
    """

    layer: str
    format: str
    delta_nll: float
    delta_nll_stderr: float
    kl: float
    kl_stderr: float
    tokens: int
    delta_nll_by_sequence: tuple[float, ...] = ()
    method: Literal["exact", "fisher"] = "exact"
    seconds: float = 0.0
    projections: str = ""

    @property
    def delta_ppl_pct(self) -> float:
        """Change of perplexity in percent."""
        return 100 * relative_change(self.delta_nll)


class WorkEstimate(Noun):
    """What a profiling run should take, from the pace of the model on a little of its text.

    Attributes:
        scores: layers times formats.
        forward_passes: the work in units of one forward pass over the whole text, vocabulary head included.
        memory_bytes: at the peak, the model's weights included.
        at_most: True where the work depends on what is found on the way (`auto`).
    """

    scores: int
    tokens: int
    forward_passes: float
    seconds: float
    memory_bytes: int
    at_most: bool = False


class Preview(Noun):
    """What can be said before a profiling run: of its text and of its cost."""

    method: Method
    calibration: CalibrationSpec
    estimate: WorkEstimate


class Baseline(Noun):
    """The unquantized model on the same tokens, and the KL that its dtype's rounding alone causes."""

    nll: float
    nll_stderr: float
    tokens: int
    noise_floor_kl: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


class SensitivityProfile(Noun):
    """All measurements of one model on one text: expensive to make, stored, and decided upon many times.

    Attributes:
        method: of the whole profile; `auto` estimates all and measures exactly what leaves decisions open.
        around: empty where every layer was quantized alone. Else the formats of a whole plan, all in place but for the
            measured layer: its scores are what giving that one layer back wins.
    """

    schema_version: Literal[1] = PROFILE_SCHEMA_VERSION
    id: str
    catalogue: Catalogue
    calibration: CalibrationSpec
    method: Method
    around: dict[str, FormatName] = {}
    dtype: Literal["bf16", "fp16", "fp32"]
    baseline: Baseline
    measurements: tuple[Measurement, ...]
    created: datetime = Field(default_factory=now)
    provenance: dict[str, str] = {}

    @property
    def formats(self) -> tuple[str, ...]:
        """Measured formats, in the order first met."""
        return tuple(dict.fromkeys(m.format for m in self.measurements))

    @property
    def measured_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.layer for m in self.measurements))


# -------------------------------------------------------------------------------------------- decide


class FiniteNoun(Noun):
    """A noun whose numbers are all finite: JSON has no other ones."""

    model_config = ConfigDict(allow_inf_nan=False)


class Budget(FiniteNoun):
    """What a plan must respect, and the load that memory and speed are planned for.

    A limit of memory alone asks for the least loss within it, a tolerance alone for the least memory, and both for the
    most speed within both.

    Attributes:
        vram_bytes: memory of one device (weights + KV cache + activations + overhead must fit its usable part).
        weight_bits: average bits of the layers that the plan decides, scales and zero points included.
        weight_bytes: bytes of all weights of the model as the engine stores them.
        max_ppl_increase: the largest acceptable relative rise of perplexity (0.05 is 5 %).
        context: tokens of one sequence; sequences: how many at once; kv_bits: nominal bits of one KV cache value.
        gpus: devices over which every layer is split (tensor parallelism).
    """

    vram_bytes: int | None = Field(default=None, gt=0)
    weight_bits: float | None = Field(default=None, gt=0)
    weight_bytes: int | None = Field(default=None, gt=0)
    max_ppl_increase: float | None = Field(default=None, ge=0)
    context: int = Field(default=4096, gt=0)
    sequences: int = Field(default=1, gt=0)
    kv_bits: Literal[4, 8, 16] = 16
    gpus: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _at_most_one_limit_of_memory(self) -> Budget:
        if sum(limit is not None for limit in (self.vram_bytes, self.weight_bits, self.weight_bytes)) > 1:
            raise ValueError("give at most one of vram_bytes, weight_bits and weight_bytes")
        if not self.limits_memory and self.max_ppl_increase is None:
            raise ValueError("give one of vram_bytes, weight_bits and weight_bytes, or max_ppl_increase, or both")
        return self

    @property
    def limits_memory(self) -> bool:
        return any(limit is not None for limit in (self.vram_bytes, self.weight_bits, self.weight_bytes))

    @property
    def fastest(self) -> bool:
        """Whether the most speed within two limits is asked for."""
        return self.limits_memory and self.max_ppl_increase is not None


class LeanNoun(Noun):
    """A noun that a plan holds thousands of: fields at their defaults stay out of its JSON."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {name: value for name, value in serialize(self).items() if getattr(self, name) != fields[name].default}


class Verdict(LeanNoun):
    """What one rule says of one layer in one format; `advice` speaks without forbidding.

    `price` is what the rule adds to the loss that the solver sees, in nats per token; predictions leave it out.
    """

    rule: str
    allowed: bool
    reason: str
    advice: bool = False
    source: str = ""
    price: float = Field(default=0.0, ge=0.0)


RoleFloors = Literal["off", "advise", "enforce"]
MOST_FLOOR_BITS = 16


class PlanRequest(Noun):
    """Everything a person may turn before a plan is solved.

    Attributes:
        locks: which layers -> format name. Layers are named by their exact name, by blocks (`block 5`, `blocks 0-3`),
            or by a regular expression that matches whole names.
        excluded: which layers keep the model's dtype, named like those of locks.
        formats: the formats to choose from; empty means all that the profile measured.
        role_floors: the least bits per role: ignored, shown as advice, or enforced.
        floor_bits: least bits of single roles, in place of the guide's; 0 lifts the floor of a role.
    """

    hardware: str
    engine: str
    budget: Budget
    locks: dict[str, str] = {}
    excluded: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    role_floors: RoleFloors = "advise"
    floor_bits: dict[Role, Annotated[int, Field(ge=0, le=MOST_FLOOR_BITS)]] = {}


class Prediction(FiniteNoun):
    """What the plan should do to the model on text like the calibration text; nats per token.

    `delta_nll_stderr` is the standard error of the summed delta_nll over the calibration sequences. `measured` where
    the whole plan was run on text held back from its making, instead of adding up scores of layers.
    """

    delta_nll: float
    delta_nll_stderr: float
    kl: float
    kl_stderr: float
    base_perplexity: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    unmeasured_layers: int = 0
    measured: bool = False

    @property
    def delta_ppl_pct(self) -> float:
        return 100 * relative_change(self.delta_nll)


class MemoryEstimate(FiniteNoun):
    """Bytes of one deployment, part by part, against what the engine may use of the device.

    All parts and the limit are those of one GPU; with several, each holds a share of every layer and all need the same.

    Attributes:
        weights_bytes: of the weights that one GPU holds.
        model_weights_bytes, original_weights_bytes: of all weights once, as the engine stores them and unquantized.
        decided_bits: average bits of the layers that the plan decides.
    """

    weights_bytes: int = Field(ge=0)
    kv_cache_bytes: int = Field(ge=0)
    activation_bytes: int = Field(ge=0)
    overhead_bytes: int = Field(ge=0)
    limit_bytes: int = Field(ge=0)
    decided_bits: float = Field(ge=0)
    original_weights_bytes: int = Field(ge=0)
    # Plans of earlier versions are for one GPU, which holds all weights.
    model_weights_bytes: int = Field(default_factory=lambda given: given["weights_bytes"], ge=0)
    gpus: int = Field(default=1, gt=0)

    @property
    def total_bytes(self) -> int:
        """Of one GPU."""
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def all_gpus_bytes(self) -> int:
        return self.gpus * self.total_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.limit_bytes


Bound = Literal["memory", "compute"]


class LatencyEstimate(FiniteNoun):
    """How fast a deployment should be, by a roofline: an estimate until a measurement corrects it.

    Attributes:
        prefill_s: seconds to read one sequence of the budget's context; None where it cannot be told.
        decode_ms_per_step: milliseconds in which every sequence grows by one token; None where it cannot be told.
        sequences: how many decode at once.
        prefill_bound, decode_bound: what takes most of that time.
        basis: `roofline` of memory and compute, `bandwidth` alone, or `measured`: the decoding time is scaled by what
            a measured run took against its own estimate, on `device`.
        missing: what is not stated, and what cannot be told without it.
    """

    prefill_s: float | None = None
    decode_ms_per_step: float | None = None
    sequences: int = Field(gt=0)
    prefill_bound: Bound | None = None
    decode_bound: Bound | None = None
    basis: Literal["roofline", "bandwidth", "measured"] = "roofline"
    device: str = ""
    missing: tuple[str, ...] = ()

    @property
    def tokens_per_s(self) -> float | None:
        """Of all sequences together, while they decode."""
        return None if self.decode_ms_per_step is None else 1000 * self.sequences / self.decode_ms_per_step

    @property
    def tokens_per_s_per_sequence(self) -> float | None:
        return None if self.decode_ms_per_step is None else 1000 / self.decode_ms_per_step


class Alternative(LeanNoun):
    """A format that a layer could have had: loss (nats, as plans are ranked) and bytes beyond the chosen one's.

    `delta_loss` is None for a format that was not measured on this layer; `delta_loss_stderr`, its standard error, is
    given for a runner-up.
    """

    format: str
    # `delta_kl` in plans of earlier versions.
    delta_loss: float | None = Field(validation_alias=AliasChoices("delta_loss", "delta_kl"))
    delta_bytes: int
    delta_loss_stderr: float | None = None
    verdicts: tuple[Verdict, ...] = ()


class Reason(LeanNoun):
    """Why a layer has its format: one sentence, the rules that spoke, and what else was possible.

    Attributes:
        verdicts: what was said of the layer in its format.
        alternatives: every other format that was measured or that the engine stores, for this layer alone; their
            verdicts are the bans, else what was not said of the chosen format already.
        runner_up: what the solver would take instead, for the whole fused group; None where nothing else was allowed.
        within_noise: the scores cannot tell the runner-up from the chosen format (`advisor.reasons` has the rule).
    """

    text: str
    verdicts: tuple[Verdict, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    runner_up: Alternative | None = None
    within_noise: bool = False


class Contender(FiniteNoun):
    """A plan of no more than the budget, measured on the text held back from the gradients; nats per token.

    `expected_loss` is what contenders are ranked by: KL, and of the change of likelihood beyond it what stands out of
    its error.
    """

    name: str
    decided_bits: float
    weights_bytes: int
    kl: float
    kl_stderr: float
    delta_nll: float
    delta_nll_stderr: float
    expected_loss: float


class RefinementRound(FiniteNoun):
    """One round: gradients around a plan, steps of several dampings measured, the best one taken if it is better.

    `changed` counts the groups that got another format, 0 where no step was taken; losses are after the round, on the
    gradients' own text and on the text held back from them.
    """

    tried: int
    changed: int
    damping: float | None = None
    calibration_kl: float
    kl: float
    delta_nll: float
    expected_loss: float


class Refinement(Noun):
    """How a plan was improved at its operating point, and what it was held against.

    Attributes:
        winner: the contender that the plan is: `refined`, `scores alone`, or a simple plan that was better than both.
        tokens, held_back_tokens: what gradients were taken on, and what decided.
    """

    winner: str
    contenders: tuple[Contender, ...]
    rounds: tuple[RefinementRound, ...]
    calibration_kl_before: float
    tokens: int
    held_back_tokens: int
    text: str
    seconds: float = 0.0


class Plan(Noun):
    """A mixed-precision plan: data that a person can read, edit, download, upload and hand to an engine."""

    schema_version: Literal[1] = PLAN_SCHEMA_VERSION
    model: ModelRef
    request: PlanRequest
    assignments: dict[str, FormatName] = Field(min_length=1)
    predicted: Prediction
    memory: MemoryEstimate
    latency: LatencyEstimate | None = None
    reasons: dict[str, Reason] = {}
    optimality_gap: float = 0.0
    refinement: Refinement | None = None
    provenance: dict[str, Any] = {}


class FrontPoint(FiniteNoun):
    """One size and what it costs in quality and gives in speed.

    Attributes:
        bytes: the plan's size in the measure of the request's limit (all of the deployment for VRAM).
        weights_bytes: all weights as the engine stores them; decided_bits: average over the decided layers.
        loss: what the solver minimizes, summed over layers, nats per token; `predicted` counts interactions too.
        tokens_per_s: of all sequences together; None where it cannot be told.
        gap: how far the loss may be from the least at this size, as a share of it; 0 is proven.
    """

    bytes: int = Field(ge=0)
    weights_bytes: int = Field(ge=0)
    decided_bits: float = Field(ge=0)
    loss: float
    predicted: Prediction
    tokens_per_s: float | None = None
    gap: float = 0.0


class FeasibleRange(Noun):
    """What is possible before a limit is chosen: the smallest plan, the most precise one, and the limit given.

    `limit_bytes` is the request's limit in the measure of `bytes`; None for a tolerance alone.
    """

    smallest: FrontPoint
    largest: FrontPoint
    limit_bytes: int | None = None

    @property
    def missing_bytes(self) -> int:
        """By how much the limit is too small; 0 where a plan fits."""
        return max(0, self.smallest.bytes - self.limit_bytes) if self.limit_bytes is not None else 0


class Front(Noun):
    """The Pareto front of size against loss, from the smallest plan to the most precise one, beside simple plans.

    `limit_bytes` is what the request allows, in the measure of the points' `bytes`.
    """

    model: ModelRef
    request: PlanRequest
    points: tuple[FrontPoint, ...]
    simple: dict[str, FrontPoint] = {}
    limit_bytes: int | None = None


# ------------------------------------------------------------------------------------------- confirm


class TextSpec(Noun):
    """Text that an evaluation read: held out from the calibration text of the plan that it judges."""

    text: str
    tokens: int
    seq_len: int
    text_sha256: str = ""


class Evaluation(Noun):
    """What was measured on held-out text, for one variant of a model.

    Attributes:
        variant: `original`, `plan`, `uniform int4_g64`, ... or a folder's name.
        kl_to_original, same_top1: against the unquantized model, where it was at hand.
        weights_bytes: bytes of all weights in the layout of the plan's engine, so that variants compare.
        file_bytes: bytes of all tensors in the files that were written for this variant, None where none were.
        ms_per_token: median time of one decoding step at batch 1 on `device`; None where the weights that would run
            on it are only simulated.
        latency: the speed of the plan at its own load, corrected by `ms_per_token`; None where the plan is for another
            device or engine than this ran on.
    """

    variant: str
    model: ModelRef
    text: TextSpec
    nll: float
    nll_stderr: float
    perplexity: float
    perplexity_stderr: float
    delta_nll: float | None = None
    delta_nll_stderr: float | None = None
    kl_to_original: float | None = None
    kl_stderr: float | None = None
    same_top1: float | None = None
    weights_bytes: int | None = None
    file_bytes: int | None = None
    ms_per_token: float | None = None
    latency: LatencyEstimate | None = None
    device: str = "cpu"
    seconds: float = 0.0
    created: datetime = Field(default_factory=now)
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------- jobs


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class Progress(Noun):
    """How far a long piece of work is: `done` of `total` units of `stage`; total 0 means not known yet.

    `subject` is the id of what is being made (a sensitivity profile), so that a page can show it growing.
    """

    stage: str
    done: int = 0
    total: int = 0
    message: str = ""
    subject: str = ""


class Job(Noun):
    """A long piece of work in a child process; the row is the only thing the page and the child share.

    `pid` on `host` runs the job, or waits for its turn; `heartbeat` is that process's last sign of life.
    """

    id: str
    kind: Literal["inspect", "preview", "profile", "refine", "apply"]
    status: JobStatus
    params: dict[str, Any]
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: str = ""
    log_tail: str = ""
    pid: int | None = None
    cancel_requested: bool = False
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    heartbeat: datetime | None = None
    host: str = ""


class ProfileRequest(Noun):
    """What to measure.

    Attributes:
        samples: sequences of text; None takes what suits method and device.
        method: `fisher` estimates all layers from a few backward passes, `exact` runs the model for every layer and
            format, `auto` estimates first and measures exactly where that leaves decisions open.
        draws: labels that `fisher` draws per token.
        layers: a regular expression searched in layer names; empty means all quantizable ones.
        around: formats of a plan: measure what giving back each of its layers wins, all others staying quantized.
    """

    model: str
    text: str = "python-docs"
    samples: int | None = Field(default=None, gt=0)
    seq_len: int = Field(default=256, ge=8)
    formats: tuple[str, ...] = Field(default=("int8", "int4_g64"), min_length=1)
    method: Method = "fisher"
    draws: int = Field(default=8, ge=1, le=64)
    layers: str = ""
    around: dict[str, FormatName] = {}
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _around_is_measured(self) -> ProfileRequest:
        if self.around and self.method != "exact":
            raise ValueError("around a plan, layers are measured with the method `exact`")
        return self


class RefineRequest(Noun):
    """Improve the plan of a request on its model, from a stored sensitivity profile, and store what wins."""

    profile_id: str
    plan: PlanRequest
    rounds: int = Field(default=3, ge=1, le=20)
    name: str = ""


class ApplyRequest(Noun):
    """Apply a stored plan and measure it beside the original and the uniform plans on held-out text."""

    plan_id: str
    to: Literal["quanto", "simulated"] = "quanto"
    out: str | None = None
    text: str = "python-docs"
    tokens: int = Field(default=4096, gt=0)
    seq_len: int = Field(default=256, ge=8)
    baselines: tuple[str, ...] = ("int8", "int4_g64")


# --------------------------------------------------------------------------------------------- lists


class ProfileSummary(Noun):
    """A stored sensitivity profile as a list shows it.

    `measured` counts its measurements, which are not loaded, `exact` those that are no estimates, and `tokens` adds up
    what they were measured on; `around` says whether it was measured around a plan.
    """

    id: str
    name: str = ""
    model_name: str
    source: str
    fingerprint: str
    text: str
    samples: int
    seq_len: int
    method: str
    around: bool = False
    dtype: str
    created: datetime
    measured: int = 0
    exact: int = 0
    tokens: int = 0
    formats: tuple[str, ...] = ()

    @property
    def scores_key(self) -> tuple[str, int, int, int]:
        """Another one whenever scores are: they are added, read more tokens, or are replaced by exact ones."""
        return self.id, self.measured, self.exact, self.tokens


class PlanSummary(Noun):
    """A stored plan as a list shows it; `profile_id` is None for a plan that was not made from a stored profile."""

    id: str
    name: str = ""
    profile_id: str | None
    model_name: str
    hardware: str
    engine: str
    decided_bits: float
    total_bytes: int
    perplexity: float
    created: datetime
