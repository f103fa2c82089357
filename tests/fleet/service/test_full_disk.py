"""A service whose disk is full says so, and has lost nothing when there is room again."""

from __future__ import annotations

from pathlib import Path

from fleet.store import SqlStore, sqlite_url
from tests.fleet.service.conftest import campaign, make_site
from tests.small_disk import small_disk


def test_what_a_full_disk_refuses_is_told_and_what_was_accepted_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        site = make_site(SqlStore(sqlite_url(tmp_path / "store.sqlite")))
        accepted = site.client().start_campaign(campaign()).campaign
        entries = site.client().audit(limit=1000).audit
        disk.fill()
        body = {"devices": [{"device": f"n{number}", "site": "home"} for number in range(2000)]}
        key = {"Idempotency-Key": "one"}
        refused = site.ask("admin", "POST", "/v1/devices", json=body, headers=key)
        assert refused.status_code == 503
        assert "database or disk is full" in refused.json()["error"]
        assert "check its address, its rights and the free space" in refused.json()["error"]
        # Whoever only looks is answered all the same.
        assert [one.campaign for one in site.client().campaigns().campaigns] == [accepted]
        assert site.client().audit(limit=1000).audit == entries
        disk.free()
        again = site.ask("admin", "POST", "/v1/devices", json=body, headers=key)
        assert again.status_code == 201
        assert site.client().preview_devices('device.startsWith("n")').count == 2000
        assert site.client().campaign(accepted).state == "pending"
        site.store.close()
