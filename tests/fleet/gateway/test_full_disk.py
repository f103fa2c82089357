"""A gateway whose disk is full counts nothing that it can't keep."""

from __future__ import annotations

from pathlib import Path

from tests.fleet.gateway.test_virtual_time import ROUND_SECONDS, assert_every_delta_counts_once
from tests.fleet.gateway.virtual_site import VirtualSite
from tests.small_disk import small_disk


def test_deltas_that_meet_a_full_disk_are_counted_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        site = VirtualSite(tmp_path, seed=3, devices=200, values=4000)
        site.begin(deadline_seconds=ROUND_SECONDS)
        site.run_until(lambda: len(site.counted()) > 20, ROUND_SECONDS)
        disk.fill()
        site.run_until(lambda: len(site.ends) >= 3, ROUND_SECONDS)
        assert {one.partition(": ")[2] for one in site.ends} == {
            "can't be written (database or disk is full); check its rights and the free space"
        }
        assert 20 < len(site.counted()) < 200
        disk.free()
        reply = site.closed(ROUND_SECONDS + 30)
        assert reply["accepted"] == 200
        assert_every_delta_counts_once(site, reply)
        site.close()
