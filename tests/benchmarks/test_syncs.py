"""The model of syncs: what it says of the rules about waits holds for the transport as it is."""

from __future__ import annotations

import pytest

from benchmarks import syncs
from fleet.coordinator.pace import FlowerPace


def test_rounds_of_several_campaigns_that_end_together_share_their_messages() -> None:
    figures = syncs.run(FlowerPace(), campaigns=3, rounds=6, stagger=0.0)
    assert figures["messages_per_round_and_gateway"] < 0.5
    assert figures["overhead_seconds"]["median"] <= 6.0


def test_starts_meet_in_one_message_though_closing_a_round_takes_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hold that counts from another end than the last one has a message per campaign here."""
    monkeypatch.setattr(syncs, "PROCESS_SECONDS", 2.0)
    monkeypatch.setattr(syncs, "CLOSING_SECONDS", (1.0, 3.0))
    for stagger in (0.0, 2.0, 4.0):
        figures = syncs.run(FlowerPace(), campaigns=3, rounds=20, stagger=stagger)
        assert figures["messages_per_round_and_gateway"] < 0.5
        assert figures["overhead_seconds"]["median"] <= 8.0


def test_a_campaign_alone_takes_a_message_a_round() -> None:
    figures = syncs.run(FlowerPace(), campaigns=1, rounds=6)
    assert figures["messages_per_round_and_gateway"] <= 1.2
    assert figures["overhead_seconds"]["median"] <= 6.0


def test_starts_are_not_behind_long_waits_where_rounds_end_at_different_times() -> None:
    pace = FlowerPace()
    figures = syncs.run(pace, campaigns=3, rounds=10, least=20.0, most=60.0)
    assert figures["overhead_seconds"]["p90"] <= 12.0
