"""The roofline against arithmetic done by hand, and what it says where numbers are missing."""

import math

import pytest

from advisor.knowledge import efficiency, find_engine, find_format, find_hardware
from advisor.latency import Roofline, estimate_latency, times
from advisor.memory import kv_cache_bytes, stored_bytes, stored_kv_bits
from advisor.types import Budget, Catalogue, Role, Sourced
from tests.planning_cases import HIDDEN, MLP, VOCABULARY, catalogue, layer

ENGINE, DEVICE = find_engine("transformers"), find_hardware("h100-sxm-80gb")
BF16, INT4, INT8 = (find_format(name) for name in ("bf16", "int4_g64", "int8"))
DOWN = "model.layers.0.mlp.down_proj"
SHARES = efficiency()
BANDWIDTH = DEVICE.bandwidth_gb_s.value * 1e9 * SHARES.bandwidth.value
PEAK = DEVICE.peak_tflops["bf16"].value * 1e12 * SHARES.matrix.value


def load(**fields) -> Budget:
    return Budget(weight_bits=4, **fields)


def roofline(device=DEVICE, model: Catalogue | None = None, **fields) -> Roofline:
    return Roofline(model or catalogue(), ENGINE, device, load(**fields))


def estimate(assignments=None, device=DEVICE, model: Catalogue | None = None, **fields):
    return estimate_latency(model or catalogue(), assignments or {}, ENGINE, device, load(**fields))


def all_in(fmt: str) -> dict[str, str]:
    return {one.name: fmt for one in catalogue().quantizable}


# -------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("fmt", [BF16, INT4, INT8])
def test_a_layer_of_a_small_batch_takes_the_time_to_read_it_as_it_is_stored(fmt):
    one = catalogue().by_name()[DOWN]
    found = roofline(sequences=4).layer(one, fmt, "decode")
    moved = stored_bytes(ENGINE, fmt, one) + 4 * (MLP + HIDDEN) * 2
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(moved / BANDWIDTH)


def test_a_layer_of_a_long_prompt_takes_the_time_to_multiply_it_whatever_its_weights_are_stored_in():
    one = catalogue().by_name()[DOWN]
    line = roofline(context=100_000)
    in_int4, in_bf16 = (line.layer(one, fmt, "prefill") for fmt in (INT4, BF16))
    # This layer is so narrow that reading its inputs takes longer; a wide one multiplies longer than it reads.
    wide = one.model_copy(update={"shape": (8192, 8192)})
    found = line.layer(wide, INT4, "prefill")
    assert found.bound == "compute"
    assert found.seconds == pytest.approx(2 * 8192 * 8192 * 100_000 / PEAK)
    assert line.layer(wide, BF16, "prefill").seconds == found.seconds
    assert in_int4.seconds <= in_bf16.seconds


def test_quantized_inputs_are_multiplied_at_their_own_peak_where_device_and_engine_can():
    wide = catalogue().by_name()[DOWN].model_copy(update={"shape": (8192, 8192)})
    w8a8 = INT8.model_copy(update={"name": "int8_w8a8", "activation_bits": 8})

    def seconds(fmt, device=DEVICE, engine="vllm"):
        line = Roofline(catalogue(), find_engine(engine), device, load(context=100_000))
        return line.layer(wide, fmt, "prefill").seconds

    peaks = DEVICE.peak_tflops["int8"].value / DEVICE.peak_tflops["bf16"].value
    assert seconds(INT8) == pytest.approx(peaks * seconds(w8a8))
    without = DEVICE.model_copy(update={"support": {**DEVICE.support, "int8": "weight_only"}})
    assert seconds(w8a8, without) == seconds(INT8)
    # The B200 has INT8 units, but vLLM no kernel for them; transformers stores no such format at all.
    b200 = find_hardware("b200-180gb")
    assert b200.support["int8"] == "native" and b200.peak_tflops["int8"].value > b200.peak_tflops["bf16"].value
    assert seconds(w8a8, b200) == seconds(INT8, b200)
    assert seconds(w8a8, engine="transformers") == seconds(INT8, engine="transformers")


def test_the_devices_own_efficiency_replaces_the_default():
    wide = catalogue().by_name()[DOWN].model_copy(update={"shape": (8192, 8192)})
    half = Sourced(value=SHARES.matrix.value / 2, source="test", checked_on="2026-11")
    slower = DEVICE.model_copy(update={"matrix_efficiency": {"bf16": half}})
    default, own = (roofline(device, context=100_000).layer(wide, BF16, "prefill") for device in (DEVICE, slower))
    assert own.seconds == pytest.approx(2 * default.seconds)


def test_attention_reads_the_cache_at_half_the_context():
    line = Roofline(catalogue(), find_engine("vllm"), DEVICE, load(context=8000, sequences=16, kv_bits=8))
    found = line.attention("decode")
    bits = stored_kv_bits(line.engine, 8)
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(kv_cache_bytes(catalogue(), 4000, 16, bits) / BANDWIDTH)


def test_a_cache_that_every_gpu_keeps_whole_is_read_by_all():
    geometry = catalogue().attention.model_copy(update={"latent_dim": 576})
    latent = catalogue().model_copy(update={"attention": geometry})
    one, four = (roofline(model=latent, gpus=gpus, sequences=64).attention("decode").seconds for gpus in (1, 4))
    assert one == four
    headed = roofline(gpus=3, sequences=64).attention("decode").seconds
    assert headed == pytest.approx(roofline(sequences=64).attention("decode").seconds / 3)


def test_blocks_that_keep_a_state_attend_to_nothing_and_read_only_it():
    stateful = catalogue().attention.model_copy(update={"state_blocks": 2, "recurrent_values": 1000})
    model = catalogue().model_copy(update={"attention": stateful})
    assert roofline(model=model).attention("prefill").seconds == 0.0
    short, long = (roofline(model=model, context=n).attention("decode").seconds for n in (16, 8000))
    assert short == long == pytest.approx(2 * 1000 * 4 / BANDWIDTH)


def test_attention_in_prefill_sees_each_token_once_with_all_before_it():
    geometry = catalogue().attention
    context = 1_000_000
    found = roofline(context=context).attention("prefill")
    pairs = context * (context + 1) // 2 * geometry.blocks
    assert found.seconds == pytest.approx(4 * geometry.attention_heads * geometry.head_dim * pairs / PEAK)


def test_blocks_with_a_sliding_window_attend_no_further_than_it_reaches():
    model = catalogue()
    sliding = model.attention.model_copy(update={"sliding_window": 128, "sliding_blocks": 1})
    windowed = model.model_copy(update={"attention": sliding})
    near, far = (roofline(model=m, context=128).attention("prefill").seconds for m in (windowed, model))
    assert near == far
    near, far = (roofline(model=m, context=1_000_000).attention("prefill").seconds for m in (windowed, model))
    assert near == pytest.approx(far / 2, rel=1e-3)  # of two blocks one remains


def test_blocks_that_keep_a_state_attend_to_no_token():
    model = catalogue()
    attention = model.attention.model_copy(update={"state_blocks": 1})
    linear = model.model_copy(update={"attention": attention})
    fewer, all_of_them = (roofline(model=m, context=1_000_000).attention("prefill").seconds for m in (linear, model))
    assert fewer == pytest.approx(all_of_them / 2)  # of two blocks one remains


def test_a_tied_embedding_is_read_whole_as_the_output_layer_and_an_untied_one_is_looked_up():
    tied = catalogue().by_name()["model.embed_tokens"]
    whole, looked_up = (
        roofline(sequences=2).layer(one, BF16, "decode").seconds * BANDWIDTH
        for one in (tied, tied.model_copy(update={"tied_names": ()}))
    )
    assert whole == pytest.approx(VOCABULARY * HIDDEN * 2 + 2 * (VOCABULARY + HIDDEN) * 2)
    assert looked_up == pytest.approx(2 * 2 * HIDDEN * 2)


def test_the_output_layer_sees_one_position_of_a_prompt():
    head = layer("lm_head", Role.LM_HEAD, (VOCABULARY, HIDDEN))
    one, many = (roofline(context=context).work(head, BF16, "prefill") for context in (1, 4096))
    assert one == many and one.operations == 2 * VOCABULARY * HIDDEN


# ----------------------------------------------------------------------------------------- experts


def mixture(experts: int = 8, fused: bool = True, used: int | None = 2) -> Catalogue:
    path = "model.layers.0.mlp.experts"
    layers = (
        [layer(f"{path}.gate_up_proj", Role.EXPERT, (experts, 2 * MLP, HIDDEN), block=0)]
        if fused
        else [layer(f"{path}.{n}.gate_up_proj", Role.EXPERT, (2 * MLP, HIDDEN), block=0) for n in range(experts)]
    )
    return catalogue().model_copy(update={"layers": tuple(layers), "experts_per_token": used})


@pytest.mark.parametrize("sequences", [1, 3, 100])
def test_experts_in_one_tensor_and_experts_apart_take_the_same_work(sequences):
    work = []
    for model in (mixture(fused=True), mixture(fused=False)):
        parts = [roofline(model=model, sequences=sequences).work(one, BF16, "decode") for one in model.layers]
        work.append([math.fsum(part.operations for part in parts), math.fsum(part.bytes for part in parts)])
    assert work[0] == pytest.approx(work[1])


def test_one_token_reads_the_experts_it_uses_and_many_tokens_read_all():
    model = mixture(experts=8, used=2)
    whole = model.layers[0].parameters * 2
    alone, together = (roofline(model=model, sequences=n).work(model.layers[0], BF16, "decode") for n in (1, 1000))
    assert alone.operations == pytest.approx(2 * model.layers[0].parameters * 2 / 8)
    assert alone.bytes == pytest.approx(whole * 2 / 8, rel=0.01)
    moved = 1000 * 2 * (HIDDEN + 2 * MLP) * 2
    assert together.bytes == pytest.approx(whole + moved, rel=1e-6)


def test_experts_of_which_nobody_says_how_many_are_used_leave_the_speed_unknown():
    found = estimate(model=mixture(used=None))
    assert found.decode_ms_per_step is found.prefill_s is found.tokens_per_s is None
    assert found.missing == ("how many experts tiny-llama uses for a token",)


# ---------------------------------------------------------------------------------- whole estimate


def test_an_estimate_is_the_sum_of_its_layers_and_attention():
    assignments = all_in("int4_g64")
    found = estimate(assignments, context=1024, sequences=8)
    line = roofline(context=1024, sequences=8)
    for phase, seconds in (("prefill", found.prefill_s), ("decode", found.decode_ms_per_step / 1000)):
        parts = times(line, assignments, phase)
        assert set(parts) == {one.name for one in catalogue().layers} | {"attention", "traffic"}
        assert seconds == pytest.approx(math.fsum(part.seconds for part in parts.values()))
    assert found.tokens_per_s == pytest.approx(8000 / found.decode_ms_per_step)
    assert found.tokens_per_s_per_sequence == pytest.approx(found.tokens_per_s / 8)
    assert (found.basis, found.missing) == ("roofline", ())


def test_smaller_weights_decode_faster_and_more_sequences_decode_more_tokens():
    bf16, int8, int4 = (estimate(all_in(fmt)).tokens_per_s for fmt in ("bf16", "int8", "int4_g64"))
    assert bf16 < int8 < int4
    rates = [estimate(sequences=count).tokens_per_s for count in (1, 8, 64)]
    assert rates == sorted(rates)
    assert estimate(sequences=64).tokens_per_s_per_sequence < estimate(sequences=1).tokens_per_s_per_sequence


def test_several_gpus_share_the_work_evenly_and_send_each_other_hidden_states():
    # Three, as there are as many KV heads: more GPUs would keep some of them twice.
    line, link = roofline(gpus=3, sequences=5), DEVICE.interconnect_gb_s.value * 1e9 / 2
    added_up = 2 * catalogue().attention.blocks * 5 * catalogue().hidden_size * 2
    assert line.traffic("decode").seconds == pytest.approx(added_up * 2 * 2 / 3 / link)
    alone, shared = (estimate(gpus=gpus, sequences=5).decode_ms_per_step / 1000 for gpus in (1, 3))
    assert shared == pytest.approx(alone / 3 + line.traffic("decode").seconds)
    assert roofline().traffic("decode").seconds == 0.0


def test_a_slow_link_binds_the_reading_of_prompts_and_one_that_nobody_states_is_told():
    slow = DEVICE.interconnect_gb_s.model_copy(update={"value": 0.001})
    assert estimate(device=DEVICE.model_copy(update={"interconnect_gb_s": slow}), gpus=2).prefill_bound == "traffic"
    unstated = DEVICE.model_copy(update={"interconnect_gb_s": None})
    assert estimate(device=unstated, gpus=2).uncounted == (f"traffic between GPUs of the kind {DEVICE.label}",)
    assert estimate(device=unstated).uncounted == estimate(gpus=2).uncounted == ()


def test_without_peaks_decoding_is_told_from_bandwidth_alone_and_prefill_is_not_told():
    found = estimate(device=find_hardware("m4-max-128gb"))
    assert found.basis == "bandwidth" and found.decode_bound == "memory"
    assert found.decode_ms_per_step > 0 and found.prefill_s is None
    assert found.missing == ("the BF16 peak of Apple M4 Max (40-core GPU), 128 GB",)


def test_without_bandwidth_nothing_is_told():
    found = estimate(device=DEVICE.model_copy(update={"bandwidth_gb_s": None}))
    assert found.decode_ms_per_step is found.prefill_s is found.tokens_per_s is None
    assert found.missing == (f"the memory bandwidth of {DEVICE.label}",)


def test_a_device_without_bf16_units_is_counted_in_fp16():
    assert roofline(find_hardware("t4")).computes_in == "fp16"
    assert roofline(DEVICE).computes_in == "bf16"
