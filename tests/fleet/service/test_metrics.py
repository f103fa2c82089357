"""A service's figures, and that the specification names what service and gateway tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet.campaign import RoundKind, RoundPlan
from fleet.campaign.planning import Assignment
from fleet.clock import VirtualClock
from fleet.dashboard import mount
from fleet.errors import StoreAwayError
from fleet.service.metrics import STATES
from fleet.store import ENDED_STATES, SqlStore
from tests.fleet.gateway.site import Site as GatewaySite
from tests.fleet.service.conftest import Site, campaign, make_site
from tests.observed import busy_service, gateway_with_metrics, text_at

PAGE = Path(__file__).parents[3] / "docs" / "specification" / "metrics.md"
ROW = re.compile(r"^\| `(tinyfleet_\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)

Labels = frozenset[str]


def told(text: str) -> dict[str, tuple[str, Labels]]:
    """Type and labels of each metric, under the name that its page has."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("tinyfleet_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for one in family.samples for label in one.labels} - {"le"}
            found[name] = (family.type, frozenset(labels))
    return found


def documented(part: str) -> dict[str, tuple[str, Labels]]:
    text = PAGE.read_text("utf-8")
    begin = text.index(f"\n## {part}\n")
    end = text.find("\n## ", begin + 1)
    rows = ROW.findall(text[begin:] if end < 0 else text[begin:end])
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def figures(site: Site) -> dict[tuple[str, ...], float]:
    """By name and values of labels, in their order."""
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(site.http.get("/metrics").text)
        for one in family.samples
    }


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def site(clock: VirtualClock) -> Iterator[Site]:
    made = make_site(SqlStore(clock=clock))
    yield made
    made.http.close()
    made.store.close()


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewaySite]:
    with gateway_with_metrics([]) as made:
        made.until(lambda: "tinyfleet_broker_heap_bytes{" in text_at(made), "the broker told all")
        yield made


def test_the_specification_names_what_a_service_tells(tmp_path: Path) -> None:
    with busy_service(tmp_path) as busy:
        assert told(busy.http.get("/metrics").text) == documented("Service")


def test_the_specification_names_what_a_gateway_tells(gateway: GatewaySite) -> None:
    assert told(text_at(gateway)) == documented("Gateway")


def test_a_round_is_told_with_its_deadline_until_it_ends(site: Site, clock: VirtualClock) -> None:
    of = site.client().start_campaign(campaign(deadline_seconds=600.0)).campaign
    site.store.claim(of, "driver")
    late = Assignment("d1", "gw1", "bundle", "plan", delay_seconds=120.0)
    plan = RoundPlan(1, RoundKind.TRAIN, 7, "", 1, (late,), {}, {})
    site.store.begin_round(of, "driver", 1, "train", plan.to_json())
    clock.sleep(30)
    found = figures(site)
    assert found["tinyfleet_round_age_seconds", of, "test"] == 30
    assert found["tinyfleet_round_deadline_seconds", of, "test"] == 720
    assert found["tinyfleet_round_grace_seconds", of, "test"] == 90
    assert found["tinyfleet_round_asked", of, "test"] == 1
    site.store.finish_round(of, "driver", 1, "done", {"accepted": 1}, [], None)
    found = figures(site)
    assert found["tinyfleet_round_accepted", of, "test"] == 1
    assert not [
        key for key in found if "_seconds" in key[0] and key[0].startswith("tinyfleet_round_")
    ]


def test_of_rounds_beside_each_other_the_oldest_is_told(site: Site, clock: VirtualClock) -> None:
    of = site.client().start_campaign(campaign()).campaign
    site.store.claim(of, "driver")
    for number in (1, 2):
        plan = RoundPlan(number, RoundKind.TRAIN, 7, "", 1, (), {}, {})
        site.store.begin_round(of, "driver", number, "train", plan.to_json())
        clock.sleep(50)
    key = ("tinyfleet_round_age_seconds", of, "test")
    assert figures(site)[key] == 100
    site.store.finish_round(of, "driver", 1, "done", {"accepted": 0}, [], None)
    assert figures(site)[key] == 50


def test_what_gates_said_is_told_for_a_day_after_a_campaign(
    site: Site, clock: VirtualClock
) -> None:
    of = site.client().start_campaign(campaign()).campaign
    site.store.claim(of, "driver")
    site.operations.stages.save_judged(of, 0, "fail", [])
    key = ("tinyfleet_stage_judged_age_seconds", of, "test", "fail", "all")
    clock.sleep(100_000)
    assert figures(site)[key] == 100_000
    site.store.end_campaign(of, "driver", "failed", "a gate failed")
    assert key not in figures(site)
    site.operations.stages.save_judged(of, 0, "fail", [])
    clock.sleep(80_000)
    assert figures(site)[key] == 80_000


def test_a_campaign_that_waits_is_told_until_it_goes_on(site: Site) -> None:
    of = site.client().start_campaign(campaign()).campaign
    site.store.claim(of, "driver")
    site.store.set_state(of, "driver", "waiting", "approval", "begin:0")
    found = figures(site)
    assert found["tinyfleet_campaign_waiting", of, "test", "begin:0"] == 1
    assert found["tinyfleet_campaigns", "waiting"] == 1
    site.store.set_state(of, "driver", "running")
    found = figures(site)
    assert not [key for key in found if key[0] == "tinyfleet_campaign_waiting"]
    assert {key[1] for key in found if key[0] == "tinyfleet_campaigns"} == set(STATES)
    assert found["tinyfleet_campaigns", "running"] == 1
    assert set(ENDED_STATES) < set(STATES)


def test_pages_are_counted_apart_from_the_api_and_from_what_is_not_there(site: Site) -> None:
    mount(site.app)
    site.http.get("/ui/login")
    site.http.get("/ui/nowhere")
    site.http.get("/wp-login.php")
    site.ask("viewer", "GET", "/v1/devices/d0")
    counted = {key[1:] for key in figures(site) if key[0] == "tinyfleet_api_requests_total"}
    assert counted == {
        ("GET", "/ui", "200"),
        ("GET", "/ui", "404"),
        ("GET", "unknown", "404"),
        ("GET", "/v1/devices/{device}", "200"),
    }


def test_a_gateway_that_makes_no_sense_is_told(site: Site) -> None:
    site.operations.gateways.seen("gw1")
    found = figures(site)
    assert found["tinyfleet_gateway_problem", "gw1", "home"] == 0
    assert found["tinyfleet_gateway_age_seconds", "gw1", "home"] == 0
    site.operations.gateways.note_problem("gw1", "it speaks version 7")
    assert figures(site)["tinyfleet_gateway_problem", "gw1", "home"] == 1


def test_a_service_says_whether_it_leads_and_what_is_ready(site: Site) -> None:
    waits = make_site(SqlStore(), is_leader=lambda: False, problems=lambda: ["no SuperLink"])
    found = figures(waits)
    assert (found["tinyfleet_leader",], found["tinyfleet_ready",]) == (0, 0)
    found = figures(site)
    assert (found["tinyfleet_leader",], found["tinyfleet_ready",]) == (1, 1)
    waits.http.close()
    waits.store.close()


def test_a_database_that_is_away_takes_only_its_own_figures_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreAwayError("it is away")

    with busy_service(tmp_path) as busy:
        whole = {key[0] for key in figures(busy)}
        monkeypatch.setattr(busy.operations.webhooks, "list", away)
        found = figures(busy)
    assert found["tinyfleet_store_up",] == 0
    left = {"tinyfleet_leader", "tinyfleet_ready", "tinyfleet_disk_free_bytes"}
    assert left <= {key[0] for key in found} < whole
    assert not [key for key in found if key[0].startswith("tinyfleet_round")]
