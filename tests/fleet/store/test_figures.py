"""What pages show of rounds, against all that the rounds have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fleet.store import Distribution, RoundGlance, RoundGlances, SqlStore, WeightsVersion
from fleet.store.figures import BINS, MOST_NAMED, QUANTILES, of_a_kind
from tests.conftest import examples

CAMPAIGN, DRIVER = "c1", "d1"


@pytest.fixture(params=["sqlite", "postgres"])
def made(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    store = SqlStore(new_database(request.param))
    store.create_campaign(CAMPAIGN, "{}", {}, WeightsVersion(0, "s", b"12345", b""))
    store.claim(CAMPAIGN, DRIVER)
    yield store
    store.close()


def glance(store: SqlStore, number: int) -> RoundGlance:
    found = RoundGlances(store).one(CAMPAIGN, number)
    assert found is not None
    return found


def plan(devices: int, **values: Any) -> dict[str, Any]:
    assignments = [
        {"device": f"d{number:05}", "gateway": f"g{number % 40}", "delay_seconds": number % 7}
        for number in range(devices)
    ]
    return {"assignments": assignments, "wanted": devices, "stage": 2, **values}


@given(
    st.lists(
        st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), max_size=60
    )
)
@examples(60)
def test_a_distribution_is_that_of_all_devices_one_by_one(scores: list[tuple[int, int]]) -> None:
    found = Distribution.of((right, of, n) for (right, of), n in Counter(scores).items())
    values = np.array([right / of for right, of in scores])
    if not scores:
        assert found is None
        return
    assert found is not None
    assert found.devices == len(scores) == sum(found.counts)
    assert found.mean == pytest.approx(values.mean())
    expected = np.quantile(values, QUANTILES, method="inverted_cdf")
    assert list(found.quantiles) == pytest.approx(list(expected))
    parts = [min(BINS - 1, right * BINS // of) for right, of in scores]
    assert list(found.counts) == [parts.count(part) for part in range(BINS)]


def test_an_ended_round_tells_how_its_reports_are_spread_and_a_report_without_samples_is_none(
    made: SqlStore,
) -> None:
    reports: list[dict[str, Any]] = [
        {
            "device": f"d{number:05}",
            "held_out": number % 21,
            "correct_before": number % 21 // 2,
            "correct_after": number % 21,
        }
        for number in range(300)
    ]
    made.begin_round(CAMPAIGN, DRIVER, 1, "train", plan(300))
    result = {"accepted": 300, "payload_bytes": 4242, "missing": [], "failed": {}}
    made.finish_round(CAMPAIGN, DRIVER, 1, "done", result, reports, None)
    told = glance(made, 1).figures
    for name in ("before", "after"):
        answers = [(one[f"correct_{name}"], one["held_out"], 1) for one in reports]
        expected = Distribution.of(answers)
        assert expected is not None
        assert told[name].pop("mean") == pytest.approx(expected.mean)
        wanted = json.loads(json.dumps(vars(expected)))
        assert told[name] == {key: value for key, value in wanted.items() if key != "mean"}
    assert told["bytes_up"] == 4242


@pytest.mark.parametrize("devices", [30, 3000])
def test_what_is_told_of_a_round_stays_small_whatever_the_number_of_devices(
    made: SqlStore, devices: int
) -> None:
    skipped = {f"x{number}": f"battery {number} % is below 30 %" for number in range(devices)}
    made.begin_round(CAMPAIGN, DRIVER, 1, "train", plan(devices, skipped=skipped))
    begun = glance(made, 1).figures
    assert begun["skipped"] == {"battery … % is below … %": devices}
    assert begun["longest_delay"] == 6.0
    assert begun["stage"] == 2
    missing = [f"d{number:05}" for number in range(devices)]
    failed = dict.fromkeys(missing, "no-report")
    result = {"accepted": 0, "missing": missing, "failed": failed}
    made.finish_round(CAMPAIGN, DRIVER, 1, "done", result, [], None)
    told = glance(made, 1).figures
    assert told["missing"] == devices
    assert told["failed"] == {"no-report": devices}
    assert told["open"][0] == {"device": "d00000", "reason": "no-report"}
    assert (told["before"], told["after"]) == (None, None)
    assert len(told["open"]) == len(told["gateways"]) == MOST_NAMED
    assert len(json.dumps(told)) < 4000


def test_progress_is_shown_until_the_end_says_more(made: SqlStore) -> None:
    made.begin_round(CAMPAIGN, DRIVER, 1, "train", plan(3))
    made.note_progress(CAMPAIGN, DRIVER, 1, 1, {"open": [{"device": "d00002"}], "late": 4})
    told = glance(made, 1)
    assert (told.accepted, told.figures["late"]) == (1, 4)
    assert told.figures["stage"] == 2
    made.note_progress(CAMPAIGN, DRIVER, 1, 2)
    assert glance(made, 1).figures == told.figures
    # Whoever begins it again doesn't lose what is known.
    made.begin_round(CAMPAIGN, DRIVER, 1, "train", plan(3))
    assert glance(made, 1).figures == told.figures
    made.finish_round(CAMPAIGN, DRIVER, 1, "cancelled", {}, [], None)
    assert glance(made, 1).figures["open"] == []


def test_a_round_of_before_has_no_figures_and_is_shown_all_the_same(made: SqlStore) -> None:
    made.begin_round(CAMPAIGN, DRIVER, 1, "train", plan(3))
    with made.writing() as connection:
        connection.execute(sa.text("DELETE FROM figures"))
    assert glance(made, 1).figures == {}


def test_the_newest_rounds_are_found_without_reading_their_plans(made: SqlStore) -> None:
    for number, kind in enumerate(("score-first", "train", "train", "score-last"), 1):
        made.begin_round(CAMPAIGN, DRIVER, number, kind, plan(1))
        state = "cancelled" if number == 4 else "done"
        made.finish_round(CAMPAIGN, DRIVER, number, state, {"accepted": 1}, [], None)
    glances = RoundGlances(made)
    assert [one.number for one in glances.newest(CAMPAIGN, 3)] == [4, 3, 2]
    assert glances.newest_of([CAMPAIGN, "c2"])[CAMPAIGN].number == 4
    assert "c2" not in glances.newest_of([CAMPAIGN, "c2"])
    assert glances.newest_of([]) == {}
    found = glances.last_of_kinds(CAMPAIGN, 1, 4, ["train", "score-last"])
    assert found is not None
    assert found.number == 3
    assert glances.last_of_kinds(CAMPAIGN, 1, 1, ["train"]) is None
    assert glances.one(CAMPAIGN, 9) is None


def test_reasons_of_a_kind_are_counted_together() -> None:
    reasons = ["last heard of 4,000 s ago", "last heard of 5,000 s ago", "offline"]
    assert of_a_kind(reasons) == {"last heard of … s ago": 2, "offline": 1}
