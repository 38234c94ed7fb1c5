"""What an evaluation measures beyond perplexity: the part of the form that chooses tasks, speed and overlap."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from advisor.types import EvaluationOptions
from advisor.ui import fields

TASKS = ("mmlu", "hellaswag", "arc_easy", "arc_challenge")
_LIMIT = 100


def choose(length: int) -> EvaluationOptions:
    """The options as they are chosen; `length` is that of a sequence, which windows overlap within."""
    with st.expander("Tasks, speed and overlapping windows", icon=":material/add_chart:"):
        names, limit_column, folder_column = st.columns([3, 1, 2], vertical_alignment="bottom")
        tasks = names.multiselect(
            "Downstream tasks",
            TASKS,
            key="eval_tasks",
            accept_new_options=True,
            persist_state="session",
            placeholder="None; any name that lm-eval knows may be typed",
            help="Answered by the original, every uniform plan and this plan through lm-eval. Their documents come "
            "from the hub once.",
        )
        limit = limit_column.number_input(
            "Documents per task",
            1,
            None,
            _LIMIT,
            key="eval_limit",
            help="Of each task, and of each subject of MMLU. The standard error says what so many can tell apart; an "
            "empty field takes all.",
        )
        folder = folder_column.text_input(
            "Folder of tasks of mine",
            key="eval_tasks_from",
            placeholder="/data/tasks",
            help="YAML files in lm-eval's format on the machine that runs this page; code in them never runs.",
        ).strip()
        speed_column, stride_column, _ = st.columns([2, 1, 3], vertical_alignment="bottom")
        speed = speed_column.toggle(
            "Time reading and writing",
            key="eval_speed",
            help="Prefill and decoding of one sequence, the first token, several runs after a warm-up, and the memory "
            "in use. Weights that are only simulated are not timed.",
        )
        fields.keep_within("eval_stride", 0, length - 1)
        stride = stride_column.number_input(
            "Stride (tokens)",
            0,
            length - 1,
            0,
            key="eval_stride",
            help="Windows overlap, and only the last so many tokens of each are scored, so that every token is read "
            f"with at least {length} less so many before it. 0 scores windows side by side, which is faster.",
        )
    return EvaluationOptions(
        stride=int(stride) or None,
        tasks=tuple(tasks),
        limit=int(limit) if tasks and limit else None,
        tasks_from=str(Path(folder).expanduser().absolute()) if tasks and folder else None,
        speed=speed,
    )
