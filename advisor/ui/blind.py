"""Page 5: answers of the original and of a plan side by side, judged by people who do not know which is which."""

from __future__ import annotations

import streamlit as st

from advisor import jobs, pipeline, prompts, units
from advisor.errors import AdvisorError
from advisor.types import AnswersRequest, BlindTest, BlindTestSummary, Job
from advisor.ui import blind_result, blind_vote, common, fields, job_panel, tour, wording


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Blind test")
    tour.panel("blind")
    plans = {plan.id: wording.plan_label(plan) for plan in common.store().plans()}
    if not plans:
        common.empty_state(
            "**No plan yet.** Make one from a sensitivity profile; saving it brings it here.", "plan", "Make a plan"
        )
        return
    _follow_link()
    plan_id = common.choose_stored("plan", "Plan", plans, "Saved plans, newest first.")
    tests = {test.id: test_label(test) for test in common.store().blind_tests(plan_id)}
    if not tests:
        st.markdown(
            "Perplexity does not say whether people would notice. Here the original and the plan answer the same "
            "prompts, you see **both answers without knowing which is which**, and the votes are counted at the end."
        )
        with st.container(border=True):
            st.subheader("What should they answer?")
            _form(plan_id)
        return
    test_id = common.choose_stored("test", "Blind test", tests, "Those of this plan, newest first.")
    test = common.store().blind_test(test_id)
    if test is None:
        st.info("This blind test was deleted meanwhile; reload the page to choose another.")
        return
    _show(test)
    with st.expander("Ask something else", icon=":material/add:"):
        _form(plan_id)


def test_label(test: BlindTestSummary) -> str:
    """One line that tells blind tests apart and never changes: a browser says by its label which one is chosen."""
    return f"{wording.plural(test.prompts, 'prompt')} · {wording.moment(test.created)} · {test.id[:4]}"


def _follow_link() -> None:
    """A link to a blind test is one to its plan; a plan chosen since then has blind tests of its own."""
    linked = st.query_params.get("test")
    test = next((one for one in common.store().blind_tests() if one.id == linked), None) if linked else None
    if test is not None and "plan" not in st.query_params:
        st.query_params["plan"] = test.plan_id
    elif test is not None and test.plan_id != st.query_params["plan"]:
        del st.query_params["test"]


def _show(test: BlindTest) -> None:
    job = _last_job(test.id)
    if job is not None and not job.status.ended:
        job_panel.show(job, lambda _: None)
    elif not test.complete:
        _unfinished(test, job)
    elif test.revealed is None:
        blind_vote.show(test)
    else:
        blind_result.show(test)


def _unfinished(test: BlindTest, job: Job | None) -> None:
    """Some answers are missing and nobody generates them."""
    if job is not None and job.status.value != "done":
        job_panel.show(job, lambda _: None)
        return
    wanted = 2 * len(test.request.prompts)
    with st.container(border=True):
        st.markdown(f"**{len(test.answers)} of {wanted} answers are there.**")
        if st.button("Generate the others", type="primary", help="What is there is not generated again."):
            _generate(test.request.plan_id, test.id)


def _last_job(test_id: str) -> Job | None:
    return next(
        (j for j in jobs.list_jobs(common.store(), 200) if j.kind == "answers" and j.params.get("test_id") == test_id),
        None,
    )


def _form(plan_id: str) -> None:
    text = st.text_area(
        "Prompts, one a line",
        "\n".join(prompts.EXAMPLES),
        height=320,
        key="prompts",
        persist_state="session",
        help="Questions as your users would ask them. The more prompts, the smaller a difference can be seen: twelve "
        "show only a large one.",
    )
    file = st.file_uploader(
        "Or a file of prompts",
        type="txt",
        max_upload_size=32,
        help="A .txt in UTF-8 with one prompt a line; it replaces the field above.",
    )
    tokens_column, temperature_column, seed_column = st.columns(3)
    tokens = fields.number(
        "answer_tokens",
        tokens_column.number_input,
        "Longest answer (tokens)",
        1,
        4096,
        128,
        step=32,
        help="Longer answers are cut off there, and said to be.",
    )
    temperature = fields.number(
        "temperature",
        temperature_column.number_input,
        "Temperature",
        0.0,
        2.0,
        0.0,
        step=0.1,
        format="%.1f",
        help="0 takes the likeliest token every time. Above 0 tokens are drawn, for both with the same random numbers.",
    )
    seed = fields.number(
        "answer_seed",
        seed_column.number_input,
        "Seed",
        0,
        2**31 - 1,
        0,
        disabled=temperature == 0,
        help="Of the drawn tokens; without a temperature nothing is drawn.",
    )
    folder = _choose_folder(plan_id)
    request, refusal = None, None
    try:
        asked = prompts.parse(prompts.decoded(file.getvalue(), file.name) if file else text)
        request = AnswersRequest(
            plan_id=plan_id, prompts=asked, tokens=tokens, temperature=temperature, seed=seed, folder=folder
        )
    except AdvisorError as found:
        refusal = found  # said when somebody asks for answers
    note, button = st.columns([4, 1], vertical_alignment="center")
    note.caption(
        "Both read the same tokens, in the model's chat template where it has one. Answers are stored one by one: "
        f"what is stored is not generated again.{_takes(request) if request else ''}"
    )
    if button.button(
        "Generate answers",
        type="primary",
        width="stretch",
        help="Runs in the background; closing the page loses nothing.",
    ):
        if refusal is not None:
            common.refuse(refusal)
            return
        _generate(plan_id, common.store().open_blind_test(request))


def _takes(request: AnswersRequest) -> str:
    """How long it takes where that is known; answers may end early, so this is the most."""
    seconds = pipeline.longest_answering(request, common.store())
    if seconds is None:
        return ""
    return (
        f" Takes at most about {units.duration(seconds)}: two answers to each of "
        f"{wording.plural(len(request.prompts), 'prompt')}, at the speed that evaluations measured."
    )


def _choose_folder(plan_id: str) -> str:
    folder = pipeline.applied_folder(common.store(), plan_id)
    if not folder:
        st.caption(
            ":material/info: The plan was not applied yet, so it is simulated in memory: the same values, unpacked."
        )
        return ""
    return st.selectbox(
        "The plan's answers come from",
        [folder, ""],
        format_func=lambda name: f"Its export, {name}" if name else "The plan simulated in memory",
        key=f"answering_{plan_id}",
        help="The export answers with the files that it holds; a simulated plan computes with the same values, "
        "unpacked.",
    )


def _generate(plan_id: str, test_id: str) -> None:
    common.set_choice("test", test_id)
    test = common.store().blind_test(test_id)
    if test is not None and test.complete:
        st.rerun()
    job = _last_job(test_id)
    if job is not None and not job.status.ended:
        st.rerun()
    job_panel.start("answers", {"plan_id": plan_id, "test_id": test_id})


if __name__ == "__main__":
    render()
