"""Whole rounds of many devices through the gateway that ships: no thread, no wait."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.protocol import ReceiptResult
from tests.fleet.gateway.deltas import PLAN
from tests.fleet.gateway.virtual_site import VirtualSite

ROUND_SECONDS = 600


def assert_every_delta_counts_once(site: VirtualSite, reply: dict[str, Any]) -> None:
    """Whatever happened: who has a receipt is in the sum, and nobody is in it twice."""
    assert reply["state"] == "closed"
    site.run_until(lambda: all(not device.delta for device in site.devices.values()), ROUND_SECONDS)
    counted = site.counted()
    assert len(counted) == reply["accepted"]
    for name, device in site.devices.items():
        promised = {one.coded_crc32 for one in device.receipts if one.result == 0}
        # A device that was reset may never hear that its delta was counted.
        assert promised <= {counted.get(name)}, "one receipt, however often it was asked for"
    (part,) = reply["sums"][PLAN]
    total, weight = site.sum_of(counted)
    assert np.array_equal(np.frombuffer(part["values"], "<i8"), total)
    assert part["weight"] == weight
    assert part["devices"] == reply["accepted"]


def run_round(site: VirtualSite) -> dict[str, Any]:
    site.begin(deadline_seconds=ROUND_SECONDS)
    return site.closed(ROUND_SECONDS + 30)


def test_a_round_of_a_hundred_devices_gives_the_exact_sum(tmp_path: Path) -> None:
    site = VirtualSite(tmp_path, seed=1, devices=100)
    reply = run_round(site)
    assert reply["accepted"] == 100
    assert (reply["refused"], reply["late"], reply["duplicate"]) == ({}, 0, 0)
    assert_every_delta_counts_once(site, reply)
    site.clock.sleep(5)
    assert not [topic for topic in site.broker.retained if "/dev/" not in topic]
    site.close()


def test_log_lines_of_a_round_say_by_fields_which_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fleet.gateway")
    site = VirtualSite(tmp_path, seed=1, devices=3)
    run_round(site)
    site.close()
    found: dict[str, set[tuple[object, ...]]] = {}
    for line in caplog.records:
        for what in ("started", "closed", "accepted"):
            if f" {what}" in line.getMessage():
                about = tuple(vars(line).get(name) for name in ("campaign", "round", "device"))
                found.setdefault(what, set()).add(about)
    (this,) = found["started"]
    assert this[0] is not None
    assert this[1] == 1
    assert found["closed"] >= {this}
    assert {one[:2] for one in found["accepted"] if one[2]} == {this[:2]}
    assert {one[2] for one in found["accepted"]} >= set(site.devices)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(tmp_path: Path) -> None:
    traces = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = VirtualSite(folder, seed=seed, devices=20, loss=0.2)
        run_round(site)
        traces.append(site.trace.digest())
        site.close()
    assert traces[0] == traces[1] != traces[2]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_killed_whenever_every_delta_counts_once(tmp_path: Path, seed: int) -> None:
    site = VirtualSite(tmp_path, seed=seed, devices=30, loss=0.1)
    dice = site.random
    for _ in range(3):
        site.clock.call_later(dice.uniform(4, 80), site.broker.kill)
        site.clock.call_later(dice.uniform(4, 80), site.kill_gateway)
        site.clock.call_later(dice.uniform(4, 80), lambda: site.clock.step_wall(-1800))
    for name in dice.sample(list(site.devices), 10):
        site.clock.call_later(dice.uniform(4, 80), site.devices[name].reset)
    reply = run_round(site)
    assert reply["accepted"] == 30
    assert_every_delta_counts_once(site, reply)
    site.close()


def messages_of_a_small_round(folder: Path) -> int:
    site = small(folder)
    run_round(site)
    delivered = site.broker.delivered
    site.close()
    return delivered


def small(folder: Path) -> VirtualSite:
    folder.mkdir(exist_ok=True)
    return VirtualSite(folder, seed=2, devices=3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["broker", "gateway", "device"])
def test_killed_at_any_message_of_a_round_nothing_is_lost_or_doubled(
    tmp_path: Path, victim: str
) -> None:
    count = messages_of_a_small_round(tmp_path / "whole")
    assert count > 50
    for instant in range(1, count):
        site = small(tmp_path / f"{instant}")

        def strikes(number: int, site: VirtualSite = site, instant: int = instant) -> None:
            if number == instant:
                kill = {
                    "broker": site.broker.kill,
                    "gateway": site.kill_gateway,
                    "device": site.devices["cow-1"].reset,
                }[victim]
                site.clock.call_later(0, kill)

        site.broker.on_delivery = strikes
        reply = run_round(site)
        assert reply["accepted"] == 3, instant
        assert reply["refused"] == {}, instant
        assert_every_delta_counts_once(site, reply)
        site.close()


def test_who_is_too_late_is_told_so_and_forgets_its_delta(tmp_path: Path) -> None:
    site = VirtualSite(tmp_path, seed=3, devices=10)
    site.begin(deadline_seconds=25, check_in_seconds=0)
    reply = site.closed(60)
    assert 0 < reply["accepted"] < 10
    assert_every_delta_counts_once(site, reply)
    results = {one.result for device in site.devices.values() for one in device.receipts}
    assert results <= {ReceiptResult.COUNTED, ReceiptResult.LATE}
    site.close()
