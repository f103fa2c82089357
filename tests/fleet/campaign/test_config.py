"""What a campaign's file may say of its stages and hours."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.campaign import CampaignConfig
from fleet.campaign.config import Retry, Window
from fleet.errors import CampaignError

HOURS = st.times().map(lambda at: at.replace(microsecond=0))
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"])


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def parse(**fields: Any) -> CampaignConfig:
    return CampaignConfig.model_validate({"name": "test", **fields})


@given(HOURS, HOURS, MOMENTS, ZONES)
def test_a_window_and_the_rest_of_the_day_are_never_open_together(
    start: time, end: time, moment: datetime, zone: str
) -> None:
    unix = moment.replace(tzinfo=UTC).timestamp()
    inside = Window(start=start, end=end, timezone=zone).is_open(unix)
    outside = Window(start=end, end=start, timezone=zone).is_open(unix)
    assert inside is not outside or start == end
    assert inside or start != end


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        # A Friday night.
        ("2023-11-17T21:59", False),
        ("2023-11-17T22:00", True),
        ("2023-11-18T05:59", True),
        ("2023-11-18T06:00", False),
        ("2023-11-18T22:00", False),
        ("2023-11-17T05:00", False),
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(text: str, is_open: bool) -> None:
    window = Window(start=time(22), end=time(6), days=("fri",), timezone="Europe/Berlin")
    assert window.is_open(at(text, "Europe/Berlin")) is is_open


def test_hours_are_those_of_the_place_in_summer_and_in_winter() -> None:
    window = Window(start=time(2), end=time(4), timezone="Europe/Berlin")
    assert [window.is_open(at(f"2023-07-01T{hour:02}:30")) for hour in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert [window.is_open(at(f"2023-12-01T{hour:02}:30")) for hour in range(4)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_campaign_may_begin_rounds_in_any_of_its_windows_and_always_without() -> None:
    windows = [{"start": "01:00", "end": "02:00"}, {"start": "05:00", "end": "06:00"}]
    config = parse(windows=windows)
    open_at = [hour for hour in range(24) if config.is_open(at(f"2023-11-14T{hour:02}:30"))]
    assert open_at == [1, 5]
    assert parse().is_open(0.0)


def test_a_reason_may_have_retries_of_its_own() -> None:
    config = parse(retry={"attempts": 2}, retries={"flash": {"attempts": 1}})
    assert config.retry_of("flash") == Retry(attempts=1)
    assert config.retry_of("no-report") == Retry(attempts=2)


BUFFER = {"buffer": 4}
STAGE = {"name": "a", "share": 0.5}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"windows": [{"start": "1:00+02:00", "end": "05:00"}]}, "windows"),
        ({"windows": [{"start": "01:00+02:00", "end": "05:00"}]}, "without an offset"),
        ({"windows": [{"start": "01:00", "end": "05:00", "timezone": "Mars"}]}, "no time zone"),
        ({"windows": [{"start": "01:00", "end": "05:00", "timezone": "../etc"}]}, "no time zone"),
        ({"windows": [{"start": "01:00", "end": "05:00", "days": ["x"]}]}, "windows.0.days"),
        ({"stages": []}, "at least one"),
        ({"stages": [STAGE, STAGE]}, "two have one name"),
        ({"stages": [STAGE, {"name": "b", "share": 0.4}]}, "have to grow"),
        ({"stages": [{"name": "b", "devices": 4}, {"name": "c", "devices": 3}]}, "have to grow"),
        ({"stages": [{"name": "b"}]}, "either a share or a number"),
        ({"stages": [{**STAGE, "devices": 3}]}, "either a share or a number"),
        ({"stages": [{"name": "b", "share": 0}]}, "stages.0.share"),
        ({"stages": [{"name": "b/c", "share": 1}]}, "stages.0.name"),
        ({"stages": [{**STAGE, "gates": [{"gate": "failures", "most": 1.0}]}]}, "can't fail"),
        ({"retry": {"attempts": 0}}, "retry.attempts"),
        ({"asynchronous": {}}, "asynchronous.buffer"),
        ({"asynchronous": BUFFER, "kind": "evaluate"}, "evaluate doesn't train"),
        (
            {"asynchronous": BUFFER, "aggregation": {"rule": "bucket-median"}},
            "bucket-median needs all of a round's devices at once; use fedavg",
        ),
        ({"asynchronous": BUFFER, "over_selection": 0.5}, "over_selection is for rounds that wait"),
        ({"asynchronous": BUFFER, "cohort_size": 3}, "lets 3 devices work at once"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(CampaignError, match=why):
        CampaignConfig.parse(json.dumps({"name": "test", **fields}))


def test_a_delta_counts_less_the_staler_it_is_and_beyond_a_limit_nothing() -> None:
    made = parse(asynchronous={"buffer": 2, "staleness_exponent": 0.5, "most_stale": 8})
    assert made.asynchronous is not None
    scales = [made.asynchronous.scale(staleness) for staleness in range(10)]
    assert scales == sorted(scales, reverse=True)
    assert (scales[0], scales[3], scales[9]) == (1.0, 0.5, 0.0)
    assert scales[8] == pytest.approx(1 / 3, abs=1e-6)
    alike = parse(asynchronous={"buffer": 2, "staleness_exponent": 0})
    assert alike.asynchronous is not None
    assert alike.asynchronous.scale(20) == 1.0
