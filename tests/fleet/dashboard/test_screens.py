"""What the screens of the fleet and its devices show, and what may be done there."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.dashboard.screens.fleet import SILENT_SECONDS
from fleet.errors import AccessError, ConflictError, NotKnownError, ServiceError
from fleet.registry import NewDevice
from fleet.service.schema import DevicesToAdd, DeviceToAdd
from tests.fleet.dashboard.conftest import LIVE, Browser, Parsed
from tests.fleet.service.conftest import SETUP, Site, measured, seen

Browsers = Callable[[str], Browser]
ALERTS = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yaml"
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='a' & {{ 7*7 }}"


def _filled(parsed: Parsed, name: str) -> str:
    return next(one["value"] for one in parsed.all("input") if one.get("name") == name)


def test_every_page_says_who_looks_and_has_its_place(browser: Browsers) -> None:
    for path in ("/fleet", "/devices/d0"):
        page = browser("operator").page(path)
        for words in ("operator-ann", "operator", "fleet", "tinyfleet 1.2.3"):
            assert words in page.text
        (there,) = [one for one in page.all("a") if "aria-current" in one]
        assert there["href"] == "/ui/fleet"
        assert page.all("a")[0] | {"href": "#main"} == page.all("a")[0], "skipping comes first"
        assert "main" in page.ids
        assert len(page.all("h1")) == 1
        assert len(page.all("main")) == 1


def test_pages_are_never_kept_and_assets_for_ever(site: Site, browser: Browsers) -> None:
    answer = browser("viewer").get("/fleet")
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert browser("viewer").get("/nowhere").headers["Content-Security-Policy"] == policy
    assets = [one for one in Parsed(answer.text).addresses if "/assets/" in one]
    assert len(assets) >= 3
    for one in assets:
        found = site.http.get(one)
        assert found.status_code == 200
        assert "immutable" in found.headers["Cache-Control"]
        old = re.sub(r"/assets/[0-9a-f]+/", "/assets/000000000000/", one)
        gone = site.http.get(old)
        assert (gone.status_code, gone.headers["Cache-Control"]) == (404, "no-store")


def test_nothing_is_loaded_from_elsewhere(site: Site, browser: Browsers) -> None:
    for path in ("/fleet", "/devices/d0", "/login", "/nowhere"):
        page = Parsed(browser("admin").get(path).text)
        assert page.addresses
        assert all(one.startswith(("/ui/", "#")) for one in page.addresses), page.addresses
    for name in ("style.css", "app.js", "icon.svg"):
        asset = next(one for one in page.addresses if one.endswith(name))
        text = site.http.get(asset).text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
        assert "url(" not in text


def test_hostile_names_and_labels_are_text(site: Site, browser: Browsers) -> None:
    ops = site.operations
    ops.registry.label("d0", {"note": HOSTILE})
    measured(site, "train", {"d0": 3.0})
    for path in ("/fleet", "/devices/d0", f"/fleet?filter={HOSTILE}", f"/devices/{HOSTILE}"):
        answer = browser("operator").get(path)
        page = Parsed(answer.text)
        assert len(page.all("script")) == 1
        assert not page.all("img")
    assert _filled(browser("operator").page("/devices/d0"), "label.note") == HOSTILE


def test_devices_come_page_by_page(site: Site, browser: Browsers) -> None:
    site.operations.registry.add(NewDevice(device=f"x{n:03}", site="home") for n in range(120))
    someone, names = browser("viewer"), []
    path: str | None = "/fleet?filter=device.startsWith(%22x%22)"
    pages = 0
    while path is not None:
        page = someone.page(path)
        links = [one["href"] for one in page.all("a")]
        names += [one.removeprefix("/ui/devices/") for one in links if "/devices/" in one]
        path = next(
            (one["href"].removeprefix("/ui") for one in page.all("a") if one.get("rel") == "next"),
            None,
        )
        pages += 1
    assert pages == 3
    assert names == [f"x{n:03}" for n in range(120)]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("onlin", "onlin is no field of a device"),
        ("battery_percent >", "the filter is no CEL at line 1"),
        ("size(device) > 3", "isn't offered"),
    ],
)
def test_a_mistake_in_a_filter_is_told_beside_it(
    browser: Browsers, wanted: str, words: str
) -> None:
    answer = browser("viewer").http.get("/ui/fleet", params={"filter": wanted})
    assert answer.status_code == 200
    page = Parsed(answer.text)
    field = next(one for one in page.all("input") if one.get("name") == "filter")
    assert (field["value"], field["aria-invalid"]) == (wanted, "true")
    assert words in page.text
    assert field["aria-describedby"] == "filter-means"


def test_a_filter_says_how_many_it_means_and_why_not_the_others(browser: Browsers) -> None:
    wanted = 'online && labels.line == "a"'
    answer = browser("viewer").http.get("/ui/fleet", params={"filter": wanted})
    page = Parsed(answer.text)
    assert "2 devices match Clear the filter Not the others, since" in page.text
    assert "isn't true of 2" in page.text
    assert "isn't true of 3" in page.text


def test_every_count_leads_to_the_devices_that_it_counts(site: Site, browser: Browsers) -> None:
    ops = site.operations
    ops.registry.observe({"d1": seen(ops, 1, online=False, current="ab" * 32)})
    ops.retire_device(SETUP, "d3")
    someone = browser("viewer")
    for start in ("/fleet", '/fleet?filter=labels.line == "b" || device == "d0"'):
        text = someone.get(start).text
        counts = re.findall(
            r'<a href="(/ui/fleet\?filter=[^"]+)">[^<]+</a></span>\s*<b>([\d,]+)</b>', text
        )
        assert len(counts) > 6
        for address, count in counts:
            answer = someone.http.get(html.unescape(address))
            found = int(count)
            devices = "device matches" if found == 1 else "devices match"
            assert f"{found} {devices}" in Parsed(answer.text).text, address


def test_a_site_in_trouble_comes_first_and_says_why(site: Site, browser: Browsers) -> None:
    ops = site.operations
    ops.add_devices(SETUP, DevicesToAdd(devices=[DeviceToAdd(device="e0", site="away")]))
    page = browser("viewer").page("/fleet").text
    assert "no gateway: 1 device unreached" in page
    assert "gw1 was never heard of" in page
    ops.gateways.seen("gw1")
    page = browser("viewer").page("/fleet").text
    assert "gw1 was never" not in page
    assert page.index("no gateway") < page.index("home fine"), "the larger site has no trouble"
    ops.gateways.note_problem("gw1", "it speaks an older language")
    assert "gw1: it speaks an older language" in browser("viewer").page("/fleet").text


def test_a_gateway_is_away_when_the_alert_says_so() -> None:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    assert float(rules["TinyfleetGatewayAway"].rpartition(" > ")[2]) == SILENT_SECONDS


def test_an_empty_fleet_says_how_to_begin(site: Site, browser: Browsers) -> None:
    ops = site.operations
    for number in range(6):
        ops.retire_device(SETUP, f"d{number}")
        ops.erase_device(SETUP, f"d{number}")
    page = browser("viewer").page("/fleet").text
    assert "tinyfleet devices add" in page
    assert "gw1 was never heard of" in page, "gateways may be in trouble before there are devices"


def test_a_device_that_nobody_has_heard_of_has_a_page(browser: Browsers) -> None:
    page = browser("viewer").page("/devices/d5")
    assert "never heard of" in page.text
    assert "No scores yet" in page.text


def test_a_device_shows_what_it_has_done(site: Site, browser: Browsers) -> None:
    measured(site, "train", {"d0": 12.0})
    page = browser("viewer").page("/devices/d0")
    assert "Rounds 1 1 trained At work 12 s" in page.text
    assert "round 0" not in page.text
    assert "test round 1 train" in page.text


def test_a_fault_that_firmware_has_on_record_is_shown_and_can_be_filtered_by(
    site: Site, browser: Browsers
) -> None:
    heard = seen(site.operations, 0, reset_cause="watchdog", fault_code=3)
    site.operations.registry.observe({"d0": heard})
    assert "watchdog, fault 3 on record" in browser("viewer").page("/devices/d0").text
    found = site.client("viewer").devices('fault_code > 0 && reset_cause == "watchdog"')
    assert [one.device for one in found.devices] == ["d0"]


def test_labels_are_set_and_taken_away_with_a_reason(site: Site, browser: Browsers) -> None:
    someone = browser("operator")
    form = {"label.line": "", "new_name": "room", "new_value": " dairy ", "why": "moved"}
    answer = someone.post("/devices/d0/labels", form)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/devices/d0")
    assert site.client().device("d0").labels == {"room": "dairy"}
    assert site.operations.audit.newest(1)[0].why == "moved"
    page = someone.page("/devices/d0")
    assert "The labels are changed." in page.text
    assert "The labels are changed." not in someone.page("/devices/d0").text, "it is told once"


def test_a_reason_in_whatever_alphabet_goes_with_a_form(site: Site, browser: Browsers) -> None:
    form = {"label.line": "c", "why": 500 * "\N{CYRILLIC SMALL LETTER ZHE}"}
    assert browser("operator").post("/devices/d0/labels", form).status_code == 303
    assert site.operations.audit.newest(1)[0].why == form["why"]
    answer = browser("operator").post("/devices/d0/labels", {**form, "why": 501 * "x"})
    assert answer.status_code == 422
    assert "a reason has 500 characters at most" in Parsed(answer.text).text


def test_a_label_that_is_wrong_is_told_in_the_form(site: Site, browser: Browsers) -> None:
    form = {"label.line": "kept", "new_name": "a b", "new_value": "c"}
    answer = browser("operator").post("/devices/d0/labels", form)
    assert answer.status_code == 422
    page = Parsed(answer.text)
    assert "a b" in page.text
    assert _filled(page, "label.line") == "kept"
    assert site.client().device("d0").labels == {"line": "a"}


def test_a_new_password_is_told_once(site: Site, browser: Browsers) -> None:
    someone = browser("operator")
    answer = someone.post("/devices/d0/rotate")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    (password,) = re.findall(r'secret" tabindex="0"><code>([^<]+)</code>', answer.text)
    assert len(html.unescape(password)) > 8
    assert password not in someone.get("/devices/d0").text


def test_a_retired_device_is_shown_as_such(site: Site, browser: Browsers) -> None:
    someone = browser("operator")
    someone.post("/devices/d0/retire", {"why": "broken"})
    assert "d0 is retired" in someone.page("/devices/d0").text
    answer = someone.post("/devices/d0/rotate")
    assert answer.status_code == 409
    assert "device d0 is retired: it has no password" in Parsed(answer.text).text


def test_a_retired_device_is_erased_by_an_admin_only(site: Site, browser: Browsers) -> None:
    assert "Erase it" not in browser("admin").page("/devices/d0").text
    assert browser("admin").post("/devices/d0/erase").status_code == 409
    browser("operator").post("/devices/d0/retire")
    assert browser("operator").post("/devices/d0/erase").status_code == 403
    page = browser("operator").page("/devices/d0").text
    assert "operator may not administer accounts, gateways and erasures; admin may" in page
    answer = browser("admin").post("/devices/d0/erase")
    assert answer.headers["Location"] == "/ui/fleet"
    assert browser("admin").get("/devices/d0").status_code == 404


def test_a_part_of_a_path_is_a_name_and_no_other_path(browser: Browsers) -> None:
    for part in ("%2e%2e", "d0%3Flimit=1", "d0%23", "d0%25", "a%5Cb", "%C3%A4"):
        answer = browser("admin").post(f"/devices/{part}/retire")
        assert answer.status_code == 404
        assert "the dashboard has no page" in Parsed(answer.text).text


def test_who_may_not_sees_why_and_a_forced_form_is_refused(site: Site, browser: Browsers) -> None:
    for role in ("viewer", "approver"):
        page = browser(role).page("/devices/d0")
        pressed = [one for one in page.all("button") if {"primary", "danger"} & {one.get("class")}]
        assert sum("disabled" in one for one in pressed) == 3
        assert f"{role} may not operate the fleet; operator or admin may" in page.text
        for what in ("labels", "retire", "rotate"):
            before = site.operations.audit.newest(1)
            answer = browser(role).post(f"/devices/d0/{what}", {"label.line": "x"})
            assert answer.status_code == 403
            error = Parsed(answer.text)
            assert f"{role}-ann is {role}, who may not operate the fleet" in error.text
            assert "Ask somebody who may do it" in error.text
            assert site.operations.audit.newest(1) == before
    page = browser("operator").page("/devices/d0")
    assert not any("disabled" in one for one in page.all("button"))


def test_a_form_of_another_site_changes_nothing(site: Site, browser: Browsers) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        answer = browser("admin").post("/devices/d0/retire", **headers)
        assert answer.status_code == 403
        assert not site.client().device("d0").retired


def test_a_form_that_is_too_large_is_refused_before_it_is_read(browser: Browsers) -> None:
    many = {f"label.l{n}": "x" for n in range(300)}
    assert browser("operator").post("/devices/d0/labels", many).status_code == 400
    for path in ("/login", "/devices/d0/labels"):
        answer = browser("operator").post(path, {"token": "x" * (1 << 20)})
        assert answer.status_code == 413
        assert "a form has 1048576 bytes at most" in Parsed(answer.text).text


def test_a_page_that_comes_of_a_form_is_not_asked_for_again_by_itself(
    browser: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise ServiceError("it is away", 503)

    monkeypatch.setattr("fleet.service.client.Client.retire_device", away)
    answer = browser("operator").post("/devices/d0/retire")
    assert answer.status_code == 503
    assert not any("http-equiv" in one for one in Parsed(answer.text).all("meta"))


@pytest.mark.parametrize(
    ("error", "status", "remedy"),
    [
        (ServiceError("it can't be read", 400), 400, "what the address or the form says"),
        (AccessError("you may not"), 403, "Ask somebody"),
        (NotKnownError("nobody knows it"), 404, "whether it is still there"),
        (ConflictError("it goes already"), 409, "how things stand now"),
        (ServiceError("it makes no sense", 422), 422, "put it right"),
        (ServiceError("too many requests", 429), 429, "Wait a little"),
        (ServiceError("it is away", 503), 503, "tries again by itself"),
        (ServiceError("no answer"), 503, "tries again by itself"),
        (ZeroDivisionError("secret"), 500, "worth a report"),
    ],
)
def test_what_the_api_refuses_is_a_page_with_its_words_and_a_remedy(
    browser: Browsers,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    remedy: str,
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("fleet.service.client.Client.device_history", refuse)
    page = browser("viewer").page("/devices/d0", status)
    assert remedy in page.text
    assert "viewer-ann" in page.text
    assert (str(error) in page.text) == (status != 500)
    live = browser("viewer").live("/devices/d0")
    assert live.status_code == status
    assert "<" not in live.text


def test_there_is_a_page_for_what_is_not_there(site: Site, browser: Browsers) -> None:
    assert "the dashboard has no page /ui/nowhere" in browser("viewer").page("/nowhere", 404).text
    assert "the registry has no device d9" in browser("viewer").page("/devices/d9", 404).text
    assert browser("viewer").http.get("/ui/logout").status_code == 405
    answer = site.http.get("/", follow_redirects=False)
    assert answer.headers["Location"] == "/ui/"
    assert site.http.get("/ui/nowhere", headers=LIVE).status_code == 404
