"""Milliseconds that the pages take to answer: `python -m benchmarks.page`, with the options of its `--help`.

A database of its own holds the random Fisher scores of a 32-block model (225 layers x 4 formats) and fifty plans made
from them, the newest of them evaluated; streamlit's test driver opens the pages and moves what a reader would move,
every time to a value that was not asked for before. Those milliseconds are of one processor; they include what the
driver itself takes to read the page back. Where Chromium is found, `benchmarks.browser` visits the same pages with it,
and `benchmarks.crowd` has ten people move things while a job runs. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import ButtonGroup

from advisor import paths, pipeline
from advisor.quiet import silenced_stdout
from advisor.types import Budget, Evaluation, Layer, Plan, PlanRequest, Role, SensitivityProfile, TextSpec
from advisor.ui.common import PAGES
from benchmarks.solver import large_profile

_APP = Path(__file__).parents[1] / "app.py"
_FORMATS = ("int8", "int4_g64", "int3_g64", "int2_g64")
_DEVICES = ("rtx-4090", "a100-sxm-80gb", "h100-sxm-80gb")
_PLANS = 50


def stored_profile() -> SensitivityProfile:
    """The profile in the database of `ADVISOR_HOME`, with plans from it."""
    profile = large_profile(32, 0, _FORMATS)
    embedding = Layer(
        name="model.embed_tokens",
        parameter="model.embed_tokens.weight",
        role=Role.EMBEDDING,
        block=None,
        shape=(profile.catalogue.vocabulary, profile.catalogue.hidden_size),
        quantizable=True,
    )
    scores = [m.model_copy(update={"layer": embedding.name}) for m in profile.measurements[: len(_FORMATS)]]
    catalogue = profile.catalogue.model_copy(update={"layers": (embedding, *profile.catalogue.layers)})
    store = pipeline.open_store()
    header = profile.model_copy(update={"catalogue": catalogue, "measurements": (*scores, *profile.measurements)})
    stored = store.open_profile(header)
    for number in range(_PLANS):
        budget = Budget(weight_bits=round(4.1 + 0.05 * number, 2))
        plan = pipeline.make_plan(stored, PlanRequest(hardware="rtx-4090", engine="transformers", budget=budget))
        plan_id = store.save_plan(plan, stored.id)
    for evaluation in _evaluations(plan):
        store.save_evaluation(evaluation, plan_id)
    return stored


def _evaluations(plan: Plan) -> list[Evaluation]:
    """Invented numbers of the plan and what stands beside it: pages draw them whatever they are."""
    text = TextSpec(text="python-docs", tokens=4080, seq_len=256)
    variants = {"original": 2.0, "plan": 2.04, "uniform int8": 2.01, "uniform int4_g64": 2.1}
    return [
        Evaluation(
            variant=variant,
            model=plan.model,
            text=text,
            nll=nll,
            nll_stderr=0.02,
            perplexity=math.exp(nll),
            perplexity_stderr=0.02 * math.exp(nll),
            delta_nll=nll - 2.0,
            delta_nll_stderr=0.002,
            kl_to_original=nll - 2.0,
            kl_stderr=0.001,
            weights_bytes=plan.memory.model_weights_bytes,
        )
        for variant, nll in variants.items()
    ]


def opened(page: str) -> AppTest:
    app = AppTest.from_file(str(_APP), default_timeout=60).run()
    return app if page == "model" else app.switch_page(PAGES[page]).run()


def moves(app: AppTest, number: int) -> Iterator[tuple[str, Callable[[], AppTest]]]:
    """(what is moved, the call that does it) for one round; no request of a round was asked for in another."""
    yield "bits", app.select_slider(key="bits").set_value(round(5.0 + 0.1 * number, 2)).run
    yield "context", app.number_input(key="context").set_value(1024 + 512 * number).run
    yield "sequences", app.number_input(key="sequences").set_value(2 + number).run
    kv_bits = _group(app, "kv_bits")
    yield "KV bits", kv_bits.set_value(next(option for option in kv_bits.options if option != kv_bits.value)).run
    yield "device", app.selectbox(key="choose_device").set_value(_DEVICES[(number + 1) % len(_DEVICES)]).run
    app.text_input(key="lock_pattern").set_value(f"block {number}").run()
    app.selectbox(key="lock_format").set_value(_FORMATS[0]).run()
    yield "lock", next(button for button in app.button if button.label == "Hold").click().run
    _group(app, "goal").set_value("memory").run()
    yield "tolerance", app.slider(key="rise").set_value(5.5 + 0.5 * number).run
    _group(app, "goal").set_value("speed").run()
    _group(app, "limit").set_value("bits").run()  # most speed starts from the device's memory
    app.select_slider(key="bits").set_value(8.0 + 0.5 * number).run()
    yield "both limits", app.slider(key="rise").set_value(15.5 + 0.5 * number).run
    _group(app, "goal").set_value("loss").run()


def looks(app: AppTest, profile: SensitivityProfile, number: int) -> Iterator[tuple[str, Callable[[], AppTest]]]:
    """The same for the sensitivity page: what a click on a cell asks for, and what stands above the map."""
    layer = profile.catalogue.quantizable[7 * number + 3].name
    yield "layer", app.selectbox(key="choose_layer").set_value(layer).run
    for choice in ("shown", "measure", "direction"):
        group = _group(app, choice)
        yield choice, group.set_value(next(option for option in group.options if option != group.value)).run
    ranked = ("Where bytes are cheap and where dear", "Most sensitive layers")[number % 2]
    app.session_state["ranked"] = ranked
    yield "other chart", app.run
    _group(app, "direction").set_value("alone").run()


def _group(app: AppTest, key: str) -> ButtonGroup:
    return next(group for group in app.button_group if group.key == f"choose_{key}")


def milliseconds(call: Callable[[], AppTest]) -> float:
    started = time.process_time()
    with silenced_stdout():
        app = call()
    spent = 1000 * (time.process_time() - started)
    wrong = [element.value for element in (*app.exception, *app.error)]
    if wrong:
        raise SystemExit(f"The page refuses: {wrong[0]}")
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--visits", type=int, default=5, help="of every page in Chromium; 0 leaves them out")
    parser.add_argument("--sessions", type=int, default=10, help="at once in Chromium beside a job; 0 leaves them out")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    os.environ["ADVISOR_MODELS"] = str(paths.models_dir())  # fetched once, for the job beside several people
    with tempfile.TemporaryDirectory() as home:
        os.environ["ADVISOR_HOME"] = home
        os.environ.pop("ADVISOR_DATABASE_URL", None)
        # The driver runs pages without a browser, which streamlit says again and again.
        logging.disable(logging.WARNING)
        profile = stored_profile()
        for page in PAGES:
            first, again = (milliseconds(lambda page=page: opened(page)) for _ in range(2))
            print(f"{page:<12} first open {first:6.0f} ms, next {again:6.0f} ms", flush=True)
        plan, sensitivity, spent = opened("plan"), opened("sensitivity"), {}
        for number in range(rounds):
            for name, move in moves(plan, number):
                spent.setdefault(f"plan, {name}", []).append(milliseconds(move))
            for name, look in looks(sensitivity, profile, number):
                spent.setdefault(f"sensitivity, {name}", []).append(milliseconds(look))
        for name, found in spent.items():
            print(f"{name:<24} median {statistics.median(found):6.0f} ms, worst {max(found):6.0f} ms")
        if arguments.visits:
            from benchmarks import browser  # which needs what tests/requirements.txt adds

            browser.report(arguments.visits)
        if arguments.sessions:
            from benchmarks import crowd

            crowd.report(arguments.sessions, profile)


if __name__ == "__main__":
    main()
