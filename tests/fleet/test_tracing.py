"""When spans are written, and how their places are named."""

from __future__ import annotations

import sys

import pytest

from fleet.errors import ConfigurationError
from fleet.tracing import (
    TracingSettings,
    open_traces,
    place_of_round,
    read_traceparent,
    traceparent,
)

SETTINGS = TracingSettings(endpoint="http://127.0.0.1:4318")


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("endpoint", ["http://ada:secret@collector:4318", "ftp://collector", "c:1"])
def test_an_address_has_no_password_in_it_and_is_one_of_http(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        TracingSettings(endpoint=endpoint)


def test_places_follow_from_names() -> None:
    root = place_of_round("aa", 1)
    assert root == place_of_round("aa", 1)
    places = [root, root.below("gateway", "g1"), root.below("gateway", "g2"), root.below("apply")]
    assert len({one.span for one in places}) == len(places)
    assert {one.trace for one in places} == {root.trace}
    assert place_of_round("aa", 2).trace != root.trace != place_of_round("ab", 1).trace


def test_a_place_is_read_as_it_was_written() -> None:
    place = place_of_round("aa", 1).below("gateway", "g1")
    assert read_traceparent(traceparent(place)) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-00",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 33 + "-" + "1" * 16 + "-01",
    ],
)
def test_what_names_no_sampled_span_is_no_place(text: str) -> None:
    assert read_traceparent(text) is None


def test_nothing_is_written_unless_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_traces("service", None) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    wanted = open_traces("service", None)
    assert wanted is not None
    wanted.close()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_the_environment_can_turn_it_off(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert open_traces("service", SETTINGS) is None


def test_packages_that_are_missing_are_named_where_the_settings_want_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"tinyfleet\[tracing\]"):
        open_traces("service", SETTINGS)
    # An environment that is the same for all programs of a machine keeps none of them from work.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert open_traces("service", None) is None
    assert "tinyfleet[tracing]" in caplog.text
