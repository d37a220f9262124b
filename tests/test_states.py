from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from model_document import TABLE as DOCUMENT

from vsockdump.tracking.states import BOTH_SHUT, ENDED, TABLE, Event, State, state_of

NEW = "new generation"
"""What the document says where the packet belongs to another connection."""


def test_the_table_is_the_document_s() -> None:
    assert {state.label for state in State} == DOCUMENT.keys()
    for state in State:
        cells = [TABLE[state][event].label if event in TABLE[state] else "" for event in Event]
        assert [cell.replace(NEW, "") for cell in DOCUMENT[state.label]] == cells


def test_exactly_the_states_an_rst_leads_to_are_ends() -> None:
    assert {TABLE[state][Event.RST] for state in State if Event.RST in TABLE[state]} == ENDED
    assert all(not TABLE[state] for state in ENDED)


PACKETS = [
    # What each packet shuts by itself (None: it is no SHUTDOWN), and what it is otherwise.
    (None, Event.RESPONSE),
    (None, Event.OTHER),
    (None, Event.RST),
    *((shuts, Event.OTHER) for shuts in range(BOTH_SHUT + 1)),
]


def event_of(shuts: int | None, otherwise: Event, shut: int) -> Event:
    if shuts is None or not shut:
        return otherwise
    return Event.SHUT_BOTH if shut == BOTH_SHUT else Event.SHUT_ONE


@pytest.mark.parametrize(
    ("first", "spoken"), [(State.CONNECTING, False), (State.ESTABLISHED, True)]
)
def test_four_facts_give_the_state_that_the_table_steps_to(first: State, spoken: bool) -> None:
    for packets in product(PACKETS, repeat=4):
        state, shut, heard, reset = first, 0, spoken, False
        for shuts, otherwise in packets:
            shut |= shuts or 0
            state = TABLE[state].get(event_of(shuts, otherwise, shut), state)
            reset = otherwise is Event.RST
            heard |= not reset
            observed = state_of(np.array([shut], np.uint8), np.array([heard]), np.array([reset]))
            assert State(observed[0]) is state, packets
            if state in ENDED:
                break


def test_columns_are_told_row_by_row() -> None:
    shut = np.array([0, 0, 1, 3, 3], np.uint8)
    spoken = np.array([False, True, True, True, False])
    reset = np.array([False, False, False, False, True])
    expected = [
        State.CONNECTING,
        State.ESTABLISHED,
        State.HALF_CLOSED,
        State.CLOSING,
        State.CLOSED,
    ]
    assert state_of(shut, spoken, reset).tolist() == expected


def test_states_are_named_as_users_type_them() -> None:
    assert State.HALF_CLOSED.label == "half-closed"
    assert all(state.label.replace("-", "").isalpha() for state in State)
