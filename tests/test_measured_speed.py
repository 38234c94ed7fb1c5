"""A plan's speed corrected by a run of it: what the run took against its own estimate, on the machine planned for."""

import pytest

from advisor import knowledge, this_machine
from advisor.cli.evaluation import evaluation_text
from advisor.knowledge import find_engine, find_hardware
from advisor.latency import estimate_latency
from advisor.measured_speed import PROMPT_TOKENS, TIMED_STEPS, WARM_UP_STEPS, with_speed
from advisor.planner.planning import make_plan
from advisor.types import Budget, Evaluation, TextSpec
from tests.planning_cases import catalogue, profile, request


@pytest.fixture(params=["no bandwidth stated", "a known device"])
def machine(request, monkeypatch):
    """This machine as a processor of which nothing is stated, and as a device of the table."""
    own = find_hardware("h100-sxm-80gb").model_copy(update={"name": this_machine.NAME})
    if request.param == "no bandwidth stated":
        own = own.model_copy(update={"bandwidth_gb_s": None, "peak_tflops": {}, "vendor": "cpu"})
    rows = {**knowledge.hardware(), this_machine.NAME: own}
    monkeypatch.setattr(knowledge, "hardware", lambda: rows)
    return own


def plan(hardware=this_machine.NAME, engine="transformers", **load):
    return make_plan(profile(), request(engine, hardware, weight_bits=6.0, **load))


def evaluation(ms_per_token: float | None = 20.0) -> Evaluation:
    text = TextSpec(text="python-docs", tokens=1024, seq_len=256)
    numbers = {"nll": 3.0, "nll_stderr": 0.1, "perplexity": 20.0, "perplexity_stderr": 2.0}
    return Evaluation(variant="plan", model=catalogue().model, text=text, ms_per_token=ms_per_token, **numbers)


def test_a_run_at_the_timed_load_is_the_plans_speed_at_that_load(machine):
    context = 2 * (PROMPT_TOKENS + WARM_UP_STEPS + TIMED_STEPS // 2)  # decoding is estimated at half of it
    found = with_speed(evaluation(20.0), plan(context=context), catalogue()).latency
    assert found.decode_ms_per_step == pytest.approx(20.0) and found.tokens_per_s == pytest.approx(50.0)
    assert (found.basis, found.device) == ("measured", "cpu")


def test_another_load_is_scaled_as_the_roofline_says(machine):
    made = plan(context=8000, sequences=8)
    found = with_speed(evaluation(20.0), made, catalogue()).latency
    known = machine.model_copy(update={"bandwidth_gb_s": find_hardware("l4").bandwidth_gb_s})
    engine, alone = find_engine("transformers"), Budget(weight_bits=6.0, context=80)
    of_plan, of_run = (
        estimate_latency(catalogue(), made.assignments, engine, known, load).decode_ms_per_step
        for load in (made.request.budget, alone)
    )
    assert of_plan > of_run
    assert found.decode_ms_per_step == pytest.approx(20.0 * of_plan / of_run)
    twice = with_speed(evaluation(40.0), made, catalogue()).latency
    assert twice.decode_ms_per_step == pytest.approx(2 * found.decode_ms_per_step)


def test_what_was_not_timed_stays_as_it_was_told(machine):
    made = plan()
    found = with_speed(evaluation(), made, catalogue()).latency
    assert found.prefill_s == made.latency.prefill_s
    assert found.missing == tuple(what for what in made.latency.missing if "bandwidth" not in what)


def test_layers_that_the_run_held_de_quantized_are_counted_so(machine):
    made = plan()
    packed, simulated = (
        with_speed(evaluation(), made, catalogue(), names).latency.tokens_per_s for names in ((), made.assignments)
    )
    assert simulated > packed  # the run read more bytes in the same time


def test_only_a_timed_run_of_the_planned_engine_on_the_planned_machine_corrects(machine):
    assert with_speed(evaluation(None), plan(), catalogue()).latency is None
    for other in (plan("l4"), plan("l4", "vllm"), plan(engine="llama.cpp")):
        assert with_speed(evaluation(), other, catalogue()) == evaluation()


def test_the_command_line_says_what_corrected_the_speed_and_where(machine):
    said = evaluation_text(with_speed(evaluation(), plan(), catalogue()))
    assert "20.0 ms per token on cpu" in said
    assert "tokens per second, bound by memory" in said and "estimated, corrected by a measured run on cpu" in said
    assert "as planned for" not in evaluation_text(evaluation())
