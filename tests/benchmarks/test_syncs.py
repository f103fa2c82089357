"""The model of syncs: what it says of the rules about waits holds for the transport as it is."""

from __future__ import annotations

from benchmarks import syncs
from fleet.coordinator.pace import FlowerPace


def test_rounds_of_several_campaigns_that_end_together_share_their_messages() -> None:
    figures = syncs.run(FlowerPace(sync_wait=20.0), campaigns=3, rounds=6)
    assert figures["messages_per_round_and_gateway"] < 0.5
    assert figures["overhead_seconds"]["median"] <= 6.0


def test_a_campaign_alone_takes_a_message_a_round() -> None:
    figures = syncs.run(FlowerPace(sync_wait=20.0), campaigns=1, rounds=6)
    assert figures["messages_per_round_and_gateway"] <= 1.2
    assert figures["overhead_seconds"]["median"] <= 6.0


def test_starts_are_not_behind_long_waits_where_rounds_end_at_different_times() -> None:
    pace = FlowerPace(sync_wait=20.0, expecting_wait=3.0)
    figures = syncs.run(pace, campaigns=3, rounds=10, least=20.0, most=60.0)
    assert figures["overhead_seconds"]["p90"] <= 12.0
