"""What the API tells pages about campaigns and the audit log: bounded, and right."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from fleet.coordinator.settings import CoordinatorSettings
from fleet.errors import ConflictError, NotKnownError
from fleet.service.campaign_schema import CampaignStanding, CampaignState, DecisionView
from fleet.service.schema import Seen
from fleet.store import Distribution, Events, Member, SqlStore, Stages
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import SETUP, Site, campaign, make_site

GATES = [
    {"gate": "score", "measure": "mean", "most_drop": 0.02},
    {"gate": "failures", "most": 0.2},
]
STAGES = [
    {"name": "canary", "devices": 2, "gates": GATES},
    {"name": "all", "share": 1.0, "approval": True},
]


def begun(site: Site, **fields: Any) -> str:
    """A campaign whose first stage runs."""
    made = site.client("operator").start_campaign(campaign(stages=STAGES, **fields)).campaign
    site.store.claim(made, "driver")
    return made


def run_round(site: Site, made: str, number: int, kind: str, right: int, devices: int = 40) -> None:
    """Devices of which the odd ones get two more right; one in ten delivers nothing."""
    assignments = [
        {"device": f"d{n}", "gateway": "gw1", "delay_seconds": 0.0} for n in range(devices)
    ]
    site.store.begin_round(
        made, "driver", number, kind, {"assignments": assignments, "wanted": devices, "stage": 0}
    )
    there = [f"d{n}" for n in range(devices) if n % 10]
    reports = [
        {
            "device": name,
            "held_out": 20,
            "correct_before": right + int(name[1:]) % 2 * 2,
            "correct_after": right,
            "payload_bytes": 100,
        }
        for name in there
    ]
    missing = [f"d{n}" for n in range(0, devices, 10)]
    result = {
        "accepted": len(there),
        "missing": missing,
        "failed": dict.fromkeys(missing, "no-report"),
        "payload_bytes": 100 * len(there),
    }
    site.store.finish_round(made, "driver", number, "done", result, reports, None)


def test_a_standing_has_the_scores_of_before_and_now_and_they_are_those_of_the_reports(
    site: Site,
) -> None:
    made = begun(site)
    run_round(site, made, 0, "score-first", 10)
    run_round(site, made, 1, "train", 12)
    assert site.client("viewer").standing(made).scored_in is None  # it begins with the same weights
    run_round(site, made, 3, "score-last", 17)
    told = site.client("viewer").standing(made)
    for scores, number in ((told.scored_before, 0), (told.scored_now, 3)):
        answers = [
            (one["correct_before"], one["held_out"], 1) for one in site.store.reports(made, number)
        ]
        expected = Distribution.of(answers)
        assert scores is not None
        assert expected is not None
        assert scores.mean == pytest.approx(expected.mean)
        assert tuple(scores.counts) == expected.counts
        assert tuple(scores.quantiles) == expected.quantiles
    assert told.scored_in == 3
    assert (told.stage, told.stage_number, told.stages, told.round) == ("canary", 0, 2, 3)
    assert told.current is not None
    assert told.current.failed == {"no-report": 4}
    assert told.current.bytes_up == 3600
    assert told.current.bytes_down == 40 * len(small_model.blob())
    assert [one.device for one in told.current.open] == ["d0", "d10", "d20", "d30"]


def test_a_gate_stands_beside_its_own_verdict_with_its_limit(site: Site) -> None:
    made = begun(site)
    finding = {"group": "", "devices": 9, "outcome": "fail", "measured": -0.2, "low": -0.3}
    verdict = {
        "outcome": "fail",
        "reason": "why",
        "findings": [{**finding, "high": None}],
        "gate": "failures",
        "limit": 0.2,
        "is_ceiling": True,
    }
    Stages(site.store).save_judged(made, 0, "fail", [verdict])
    score, failures = site.client("viewer").standing(made).standing[0].gates
    assert (score.gate, score.verdict) == ("score", None)
    assert score.text == "the mean accuracy falls by at most 2.0 points"
    assert failures.text == "at most 20.0 % of the devices fail"
    assert failures.verdict is not None
    assert failures.verdict.model_dump() == verdict


def test_a_running_round_says_who_has_been_waited_for_and_when_it_ends(site: Site) -> None:
    made = begun(site, deadline_seconds=60.0)
    site.store.begin_round(
        made,
        "driver",
        0,
        "score-first",
        {"assignments": [{"device": "d0", "gateway": "gw1", "delay_seconds": 5.0}], "wanted": 1},
    )
    told = {"open": [{"device": "d0", "gateway": "gw1", "task_after": 5.0}]}
    site.store.note_progress(made, "driver", 0, 0, told)
    found = site.client("viewer").figures(made, 0)
    assert found.ends_by == pytest.approx(found.began + 65.0)
    assert found.open[0].since == pytest.approx(found.began + 5.0)
    assert found.missing == 1
    with pytest.raises(NotKnownError, match="has no round 7"):
        site.client("viewer").figures(made, 7)


def test_a_standing_stays_small_whatever_the_number_of_devices() -> None:
    sizes = []
    for devices in (400, 4000):
        site = make_site(SqlStore())
        made = begun(site)
        run_round(site, made, 0, "score-first", 10, devices)
        members = [Member(f"d{n}", 0, "w", 1, "no-report") for n in range(devices)]
        Stages(site.store).save_members(made, members)
        for number in range(100):
            Events(site.store).add("version", made, {"version": number})
        found = site.client("viewer").standing(made)
        assert found.failing == {"no-report": devices}
        assert found.standing[0].devices == devices
        assert len(found.events) == 20
        assert found.events[0].data == {"version": 99}
        sizes.append(len(found.model_dump_json()))
        site.http.close()
        site.store.close()
    assert sizes[1] - sizes[0] < 200


def test_a_campaign_that_nobody_drives_yet_stands_too(site: Site) -> None:
    made = site.client("operator").start_campaign(campaign()).campaign
    told = site.client("viewer").standing(made)
    assert isinstance(told, CampaignStanding)
    assert (told.current, told.scored_before, told.scored_now) == (None, None, None)
    assert [one.is_current for one in told.standing] == [False]


def test_a_list_shows_where_campaigns_are_and_takes_some_states_only(site: Site) -> None:
    client = site.client("operator")
    first = begun(site)
    run_round(site, first, 0, "score-first", 10)
    second = client.start_campaign(campaign(name="other")).campaign
    site.store.end_campaign(second, "", "failed", "no devices")
    rows = {one.campaign: one for one in client.campaigns().campaigns}
    row = rows[first]
    assert (row.stage, row.stages, row.round, row.round_kind) == ("canary", 2, 0, "score-first")
    assert (row.asked, row.wanted, row.accepted, row.rounds) == (40, 40, 36, 9)
    assert (rows[second].stage, rows[second].round) == (None, None)
    wanted_of: dict[CampaignState, list[str]] = {
        "live": [first],
        "ended": [second],
        "failed": [second],
        "paused": [],
    }
    for state, wanted in wanted_of.items():
        found = client.campaigns(state=state).campaigns
        assert [one.campaign for one in found] == wanted


def test_what_was_decided_on_an_old_page_is_not_done(site: Site) -> None:
    made = begun(site)
    site.store.set_state(made, "driver", "waiting", "too little evidence", "gate:0")
    approver = site.client("approver")
    old = Seen(state="waiting", waiting="begin:0")
    before = site.operations.audit.newest(1)
    with pytest.raises(ConflictError, match="has gone on since you looked: it is waiting now, wai"):
        approver.act(made, "approve", old)
    assert site.operations.stages.decisions(made) == {}
    assert site.operations.audit.newest(1) == before
    approver.act(made, "approve", Seen(state="waiting", waiting="gate:0"))
    assert site.operations.stages.decisions(made).keys() == {"gate:0"}


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        ("begin:1", DecisionView(what="begin", stage=1, when="")),
        ("gate:0", DecisionView(what="gate", stage=0, when="")),
        ("gate:0:soak", DecisionView(what="gate", stage=0, when="soak")),
        ("gate:7", None),
        ("begin:all", None),
        ("", None),
    ],
)
def test_what_a_campaign_waits_for_is_told_in_parts(
    site: Site, waiting: str, told: DecisionView | None
) -> None:
    made = begun(site)
    site.store.set_state(made, "driver", "waiting", "why", waiting)
    assert site.client("viewer").standing(made).to_decide == told


def test_a_press_that_comes_twice_starts_one_campaign(site: Site) -> None:
    client = site.client("operator")
    first = client.start_campaign(campaign(), key="form-1")
    assert client.start_campaign(campaign(), key="form-1") == first
    assert len(client.campaigns().campaigns) == 1


def test_no_other_version_is_withdrawn_than_the_one_that_was_looked_at(site: Site) -> None:
    ops = site.operations
    for number in (1, 2):
        blob = bytearray(small_model.blob())
        blob[0] ^= number
        ops.models.add_version("small", bytes(blob), 1, "ann", "released")
    client = site.client("approver")
    with pytest.raises(ConflictError, match="newest released version is small:3, not small:2"):
        client.rollback_model("small", 2)
    assert client.rollback_model("small", 3).version == 2


def test_a_text_is_read_as_the_command_line_reads_it(site: Site) -> None:
    client = site.client("viewer")
    found = client.read_campaign("name: a\nmodel: small\n")
    assert found.campaign is not None
    assert (found.campaign.model, found.mistakes) == ("small", [])
    wrong = client.read_campaign("name: a\nround: 3\n")
    assert wrong.campaign is None
    assert [(one.field, one.line) for one in wrong.mistakes] == [("round", 2)]
    assert "rounds" in client.campaign_schema()["properties"]


def test_the_audit_log_is_paged_backwards_by_who_action_and_object(site: Site) -> None:
    audit = site.operations.audit
    for number in range(25):
        who, action = f"p{number % 2}", f"devices.{'add' if number % 5 else 'erase'}"
        audit.add(who, "admin", action, f"device:d{number}", None, None, "why")
    client = site.client("viewer")
    numbers: list[int] = []
    before = None
    while True:
        page = client.newest_audit(before, 4, who="p1")
        numbers += [one.number for one in page.audit]
        before = page.next
        if before is None:
            break
    whole = [one.number for one in audit.page(limit=1000, who="p1")]
    assert numbers == sorted(whole, reverse=True)
    assert len(numbers) == 12
    assert [one.object for one in client.newest_audit(action="devices.erase", who="p0").audit] == [
        "device:d20", "device:d10", "device:d0",
    ]  # fmt: skip
    assert client.newest_audit(object="device:d7").audit[0].who == "p1"
    assert client.audit(object="device:d7", who="p0").audit == []
    with site.store.reading() as connection:
        query = "EXPLAIN QUERY PLAN SELECT * FROM audit WHERE who='x' ORDER BY number DESC LIMIT 5"
        assert "audit_by_who" in str(connection.execute(sa.text(query)).all())


def test_settings_are_shown_without_the_stores_password(site: Site) -> None:
    store = "postgresql+psycopg://tiny:hush@db/tinyfleet"
    settings = CoordinatorSettings.model_validate({"fleet": "barn", "store": store})
    site.operations.settings = settings.shown()
    told = site.client("admin").settings()
    assert (told.fleet, told.version) == ("fleet", "1.2.3")
    assert "hush" not in told.model_dump_json()
    assert told.settings["store"] == "postgresql+psycopg://tiny:***@db/tinyfleet"
    assert told.settings["api"]["port"] == 8080


def test_two_versions_are_compared_device_by_device(site: Site) -> None:
    ops = site.operations
    blob = bytearray(small_model.blob())
    blob[0] ^= 1
    second = ops.models.add_version("small", bytes(blob), 1, "ann")
    made = begun(site)
    for number, (sha, right) in enumerate(
        ((ops.models.version("small", 1).sha256, 10), (second.sha256, 12)), 1
    ):
        plan = {"assignments": [], "wanted": 3, "weights": sha}
        site.store.begin_round(made, "driver", number, "score-last", plan)
        reports = [
            {"device": f"d{n}", "held_out": 20, "correct_before": right if n else 11}
            for n in range(2 + number)
        ]
        site.store.finish_round(made, "driver", number, "done", {"accepted": 3}, reports, None)
    found = ops.compare(SETUP, "small", 1, 2)
    assert (found.devices, found.better, found.worse) == (3, 2, 0)
    assert found.scores_first is not None
    assert found.scores_first.counts[10] == 2
    assert found.mean_accuracy_second == pytest.approx((12 + 12 + 11) / 60)
