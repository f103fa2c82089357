from __future__ import annotations

import pytest
from pydantic import ValidationError

from fleet.protocol import fields
from fleet.protocol.round_parameters import ACTIONS, CODINGS, WEIGHTINGS, RoundParameters


@pytest.mark.parametrize(
    ("check_in", "deadline", "fits"),
    [(0, 1, True), (100, 120, True), (107, 120, False), (120, 120, False), (3600, 120, False)],
)
def test_devices_may_not_stay_away_for_longer_than_a_round(
    check_in: int, deadline: int, fits: bool
) -> None:
    if fits:
        RoundParameters(check_in_seconds=check_in, deadline_seconds=deadline)
    else:
        with pytest.raises(ValidationError, match="miss rounds of deadline_seconds 120"):
            RoundParameters(check_in_seconds=check_in, deadline_seconds=deadline)


@pytest.mark.parametrize(
    "changes",
    [
        {"check_in_seconds": 99_999_999_999, "deadline_seconds": 604_800},
        {"deadline_seconds": 0},
        {"epochs": 256},
        {"learning_rate": 0.0},
        {"chunk_bytes": 66},
        {"uplink_chunk_bytes": 16_385},
        {"coding": "masked"},
    ],
)
def test_what_no_task_can_say_is_refused_where_it_is_first_said(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RoundParameters.model_validate(changes)


def test_the_largest_values_fit_the_wire() -> None:
    largest = RoundParameters(learning_rate=fields.MAX_LEARNING_RATE)
    assert largest.learning_rate_q20 == fields.LEARNING_RATE_Q20.most
    assert RoundParameters(max_score_drop=1.0).max_score_drop_permille == 1000


@pytest.mark.parametrize("name", ["epochs", "deadline_seconds", "chunk_bytes"])
def test_the_ranges_are_those_of_the_messages(name: str) -> None:
    allowed: fields.Range = getattr(fields, name.upper())
    RoundParameters.model_validate({name: allowed.most})
    with pytest.raises(ValidationError):
        RoundParameters.model_validate({name: allowed.most + allowed.multiple})


def test_names_stand_at_their_number_on_the_wire() -> None:
    assert ACTIONS == ("score", "train", "release")
    assert CODINGS == ("rice", "masked")
    assert WEIGHTINGS == ("samples", "uniform")
