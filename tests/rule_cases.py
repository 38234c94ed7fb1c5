"""Rules asked about a layer of the hand-written catalogue, for tests of rules and of locks."""

from advisor.knowledge import find_format
from advisor.planner.rule_context import context_for
from advisor.planner.rules import judge
from tests.planning_cases import catalogue, request

BLOCK = "model.layers.0"


def context(**fields):
    return context_for(catalogue(), request(**fields))


def said(rule, one, fmt, **fields):
    """The verdict of one rule, None when it is silent."""
    spoken = [v for v in judge(one, find_format(fmt), context(**fields)) if v.rule == rule]
    return spoken[0] if spoken else None


def named(name):
    return catalogue().by_name()[name]
