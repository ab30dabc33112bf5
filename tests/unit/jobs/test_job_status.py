"""The table of legal changes."""

from __future__ import annotations

import itertools

import pytest

from jobs.status import NEXT, RESERVING, TERMINAL, IllegalTransition, State, check


def test_every_state_has_its_row() -> None:
    assert set(NEXT) == set(State)


def test_nothing_leaves_a_final_state() -> None:
    for old, new in itertools.product(TERMINAL, State):
        with pytest.raises(IllegalTransition, match="it is final"):
            check(old, new)


def test_every_state_that_is_not_final_can_reach_every_final_one() -> None:
    reach = {state: set(NEXT[state]) for state in State}
    for _ in State:
        reach = {state: found.union(*(reach[n] for n in found)) for state, found in reach.items()}
    for state in set(State) - TERMINAL:
        assert reach[state] >= TERMINAL, state


def test_reserving_states_are_those_between_the_queue_and_the_end() -> None:
    assert set(State) - TERMINAL - {State.QUEUED} == RESERVING


def test_what_is_being_ended_goes_to_an_end_only() -> None:
    assert NEXT[State.CANCELLING] == TERMINAL


def test_a_new_attempt_begins_only_from_admission_or_recovery() -> None:
    assert {old for old in State if State.STARTING in NEXT[old]} == {State.ADMITTED, State.RECOVERING}


def test_the_message_names_what_is_allowed() -> None:
    with pytest.raises(IllegalTransition, match=r"from QUEUED to RUNNING.*ADMITTED, CANCELLED, FAILED"):
        check(State.QUEUED, State.RUNNING)
