"""Screens of campaigns: what they show, and what a person may do and can't do by mistake."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest

from fleet.campaign.config import CampaignConfig
from fleet.service.campaign_schema import CampaignPlan
from fleet.service.client import Client
from fleet.service.operations import Actor
from fleet.store import Stages
from tests.fleet.dashboard.conftest import Browser, Parsed, check_form, hidden, links
from tests.fleet.dashboard.story import Story
from tests.fleet.service.conftest import Site

ANN = Actor("ann", "admin")
GOOD = "name: mine\nmodel: digits\nrounds: 2\n"


@pytest.fixture
def pages(story: Story) -> list[str]:
    one, done = story.campaigns["canary-2"], story.campaigns["pens"]
    return [
        "/campaigns",
        "/campaigns?state=ended",
        *(f"/campaigns/{of}" for of in story.campaigns.values()),
        f"/campaigns/{one}/rounds/3",
        f"/campaigns/{one}/rounds/1",
        f"/campaigns/{one}/confirm?do=stop",
        f"/campaigns/{done}/confirm?do=roll-back",
        "/campaigns/new",
        "/campaigns/new?kind=evaluate",
        f"/campaigns/new?clone={done}",
    ]


@pytest.mark.parametrize("role", ["viewer", "admin"])
def test_every_screen_is_well_formed_for_every_role(
    browser: Callable[[str], Browser], pages: list[str], role: str
) -> None:
    ann = browser(role)
    for path in pages:
        check_form(ann.page(path))


def test_an_empty_list_says_what_to_do(
    browser: Callable[[str], Browser],
) -> None:
    page = browser("viewer").page("/campaigns")
    assert "No campaign yet" in page.text
    assert "tinyfleet models import" in page.text
    assert "No campaign is paused" in browser("viewer").page("/campaigns?state=paused").text


def test_the_list_says_where_campaigns_are_and_why_they_wait(
    browser: Callable[[str], Browser], story: Story
) -> None:
    text = browser("viewer").page("/campaigns").text
    assert "stage canary, round 3 (score-last) stage 1 of 3 5 of 12" in text
    assert "waits for its window" in text
    assert "paused by the operator" in text


def test_what_others_wrote_is_shown_and_never_run(
    browser: Callable[[str], Browser], story: Story, pages: list[str]
) -> None:
    seen = 0
    for path in [*pages, "/audit", "/models/digits"]:
        text = browser("admin").get(path).text
        assert "<script>alert" not in text, path
        assert "&#34; 49" not in text, path
        seen += "&lt;script&gt;alert(1)" in text
    assert seen >= 3


def test_a_live_page_shows_gates_with_their_limits_and_who_is_waited_for(
    browser: Callable[[str], Browser], story: Story
) -> None:
    page = browser("viewer").page(f"/campaigns/{story.campaigns['canary-2']}")
    assert "Waited for longest" in page.text
    assert "cow-00005" in page.text
    failed = browser("viewer").page(f"/campaigns/{story.campaigns['bad-labels']}")
    labels = [one["aria-label"] for one in failed.all("svg") if "aria-label" in one]
    assert any("the limit is -5.0 points, not below" in one for one in labels)
    assert any("the limit is 30.0 %, not above" in one for one in labels)
    assert "at 95 % between" in failed.text


def test_a_gate_that_trips_is_told_to_those_who_look(
    browser: Callable[[str], Browser], story: Story
) -> None:
    path = f"/campaigns/{story.campaigns['canary-2']}"
    eve = browser("approver")
    before = eve.live(path)
    tag = before.headers["ETag"]
    assert eve.live(path, tag).status_code == 304
    story.trip("canary-2")
    after = eve.live(path, tag)
    assert after.status_code == 200
    said = re.search(r'id="said" role="status">([^<]*)<', after.text)
    assert said is not None
    assert "canary-2 is rolling-back: stage canary: a gate failed: mean change" in said.group(1)
    assert "Gates of stage canary: fail." in said.group(1)


def test_a_viewer_who_tries_to_stop_is_told_who_may_and_nothing_is_done(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    made = story.campaigns["canary-2"]
    bob = browser("viewer")
    page = bob.page(f"/campaigns/{made}")
    assert not links(page, "/confirm")
    assert "viewer may not operate the fleet; operator or admin may" in page.text
    assert sum("disabled" in one for one in page.all("button")) >= 3
    confirm = bob.page(f"/campaigns/{made}/confirm?do=stop")
    assert any("disabled" in one for one in confirm.all("button"))
    answer = bob.post(f"/campaigns/{made}/confirm", {**hidden(confirm), "why": "I want to"})
    assert answer.status_code == 403
    assert "viewer-ann is viewer, who may not operate the fleet" in Parsed(answer.text).text
    assert site.store.campaign(made).wish == ""


def test_what_will_happen_is_said_first_and_the_reason_goes_to_the_audit_log(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    made = story.campaigns["canary-2"]
    ole = browser("operator")
    page = ole.page(f"/campaigns/{made}/confirm?do=stop")
    assert "Round 3 is cancelled at all gateways: 12 devices were asked, 7 devices" in page.text
    form = {**hidden(page), "why": "the dairy complains \N{HONEYBEE}"}
    answer = ole.post(f"/campaigns/{made}/confirm", form)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/ui/campaigns/{made}")
    assert site.store.campaign(made).wish == "stop"
    entry = site.operations.audit.newest(1)[0]
    assert (entry.action, entry.why) == ("campaigns.stop", "the dairy complains \N{HONEYBEE}")
    # A second press is answered as the first one was.
    assert ole.post(f"/campaigns/{made}/confirm", form).status_code == 303
    assert site.operations.audit.newest(1)[0].number == entry.number


def test_a_page_of_before_does_nothing_and_says_how_things_stand(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    made = story.campaigns["few-cows"]
    eve = browser("approver")
    old = hidden(eve.page(f"/campaigns/{made}/confirm?do=approve"))
    site.store.set_state(made, "driver", "waiting", "another question", "gate:0:soak")
    answer = eve.post(f"/campaigns/{made}/confirm", {**old, "why": "fine"})
    assert answer.status_code == 409
    page = Parsed(answer.text)
    assert "has gone on since you looked" in page.text
    assert "after its soak" in page.text
    assert Stages(site.store).decisions(made) == {}
    assert {"id": "why", "name": "why", "value": "fine"}.items() <= page.all("input")[-1].items()
    # The page that came instead does it.
    assert eve.post(f"/campaigns/{made}/confirm", hidden(page)).status_code == 303
    assert Stages(site.store).decisions(made).keys() == {"gate:0:soak"}
    site.store.end_campaign(made, "driver", "cancelled")
    assert eve.post(f"/campaigns/{made}/confirm", old).status_code == 409


@pytest.mark.parametrize("what", ["begin:7", "gate:9:soak", "begin:all"])
def test_a_page_outlives_a_question_that_its_campaign_can_not_have(
    browser: Callable[[str], Browser], story: Story, site: Site, what: str
) -> None:
    made = story.campaigns["few-cows"]
    site.store.set_state(made, "driver", "waiting", "why", what)
    page = browser("approver").page(f"/campaigns/{made}")
    assert f"It waits for somebody to decide {what}" in page.text
    assert browser("approver").get(f"/campaigns/{made}/confirm?do=approve").status_code == 409


def test_an_author_does_not_approve_his_own(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    mine = site.client("admin").start_campaign(story.config("spring")).campaign
    site.store.claim(mine, "driver")
    site.store.set_state(mine, "driver", "waiting", "approval of the campaign", "begin:0")
    ann = browser("admin")
    page = ann.page(f"/campaigns/{mine}/confirm?do=approve")
    assert "admin-ann made it and may not approve it" in page.text
    answer = ann.post(f"/campaigns/{mine}/confirm", hidden(page))
    assert answer.status_code == 409
    assert "somebody else has to approve it" in Parsed(answer.text).text
    assert Stages(site.store).decisions(mine) == {}


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("canary-2", {"pause", "stop", "roll-back"}),
        ("feeders", {"resume", "stop", "roll-back"}),
        ("few-cows", {"approve", "pause", "stop", "roll-back"}),
        ("look-back", set()),
        ("pens", {"roll-back"}),
    ],
)
def test_only_what_can_be_done_is_offered(
    browser: Callable[[str], Browser], story: Story, name: str, offered: set[str]
) -> None:
    ann = browser("admin")
    made = story.campaigns[name]
    page = ann.page(f"/campaigns/{made}")
    assert {one.rpartition("do=")[2] for one in links(page, "/confirm")} == offered
    for action in {"approve", "pause", "resume", "stop", "roll-back", "x"} - offered:
        assert ann.get(f"/campaigns/{made}/confirm?do={action}").status_code == 409


# ---- a new one ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapt", "personalize", "evaluate", "rollout"])
def test_each_kinds_template_is_a_campaign_without_mistakes(
    browser: Callable[[str], Browser], story: Story, kind: str
) -> None:
    ole = browser("operator")
    page = ole.page(f"/campaigns/new?kind={kind}")
    text = "".join(page.texts).partition("# ")[2].partition("Reason")[0].strip()
    tried = Parsed(ole.post("/campaigns/new", {"text": f"# {text}\n", "do": "check"}).text)
    assert "What it would do now" in tried.text
    assert "mistake" not in page.text.partition("Fields")[0]
    assert f"kind: {kind}" in page.text


def test_a_clone_is_the_same_campaign(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    answer = browser("operator").get(f"/campaigns/new?clone={story.campaigns['pens']}").text
    text = html.unescape(answer.partition("<textarea")[2].partition(">\n")[2].partition("</")[0])
    found = site.client("viewer").read_campaign(text)
    assert found.campaign == story.config("pens")


def test_mistakes_stand_at_their_line_and_what_was_typed_stays(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    text = "name: a b\n# </textarea><b>\nrounds: 0\nmodel: digits\n"
    before = len(site.client("viewer").campaigns().campaigns)
    for do, status in (("check", 200), ("start", 422)):
        form = {"text": text.replace("\n", "\r\n"), "do": do, "why": "so", "key": "k"}
        answer = browser("operator").post("/campaigns/new", form)
        assert answer.status_code == status
        page = Parsed(answer.text)
        assert "2 mistakes line 1 name :" in page.text
        assert "line 3 rounds :" in page.text
        assert {one["data-line"] for one in page.all("button") if "data-line" in one} == {"1", "3"}
        assert text in "".join(page.texts)
        assert page.all("textarea")[0]["aria-invalid"] == "true"
        assert "so" in [one.get("value") for one in page.all("input")]
    assert len(site.client("viewer").campaigns().campaigns) == before


def test_what_the_fleet_can_not_do_is_told_beside_the_text(
    browser: Callable[[str], Browser], story: Story
) -> None:
    form = {"text": GOOD.replace("digits", "letters"), "do": "start", "key": "k"}
    answer = browser("operator").post("/campaigns/new", form)
    assert answer.status_code == 404
    page = Parsed(answer.text)
    assert "there is no model letters; there are: digits" in page.text
    assert "model: letters" in "".join(page.texts)


def test_a_second_press_starts_nothing_twice_and_another_text_is_another_campaign(
    browser: Callable[[str], Browser], story: Story, site: Site
) -> None:
    ole = browser("operator")
    form = {**hidden(ole.page("/campaigns/new")), "text": GOOD, "do": "start", "why": "because"}
    first, second = (ole.post("/campaigns/new", form) for _ in range(2))
    assert first.status_code == second.status_code == 303
    assert first.headers["Location"] == second.headers["Location"]
    third = ole.post("/campaigns/new", {**form, "text": GOOD + "seed: 3\n"})
    assert third.headers["Location"] != first.headers["Location"]
    assert site.operations.audit.newest(1, action="campaigns.start")[0].why == "because"


def test_a_start_does_not_wait_for_a_plan_that_nobody_sees(
    browser: Callable[[str], Browser], story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[CampaignConfig] = []
    plan = Client.plan_campaign

    def counted(client: Client, config: CampaignConfig) -> CampaignPlan:
        planned.append(config)
        return plan(client, config)

    monkeypatch.setattr(Client, "plan_campaign", counted)
    ole = browser("operator")
    assert ole.post("/campaigns/new", {"text": GOOD, "do": "start", "key": "k"}).status_code == 303
    assert planned == []
    ole.post("/campaigns/new", {"text": GOOD, "do": "check"})
    assert len(planned) == 1


@pytest.mark.parametrize("role", ["viewer", "approver"])
def test_whoever_may_not_start_may_try(
    browser: Callable[[str], Browser], story: Story, site: Site, role: str
) -> None:
    bob = browser(role)
    form = {"text": GOOD, "do": "check", "key": "k"}
    page = Parsed(bob.post("/campaigns/new", form).text)
    assert "24 devices match" in page.text
    assert f"{role} may not operate the fleet" in page.text
    before = len(site.client("viewer").campaigns().campaigns)
    answer = bob.post("/campaigns/new", {**form, "do": "start"})
    assert answer.status_code == 403
    assert "name: mine" in "".join(Parsed(answer.text).texts)
    assert len(site.client("viewer").campaigns().campaigns) == before


def test_whoever_logs_in_again_comes_back_to_the_page_of_their_form(
    browser: Callable[[str], Browser], site: Site
) -> None:
    nobody = Browser(site, f"tf_{'0' * 16}_{'5' * 64}")
    headers = {"Sec-Fetch-Site": "same-origin", "Referer": "http://service/ui/campaigns/new?kind=x"}
    answer = nobody.post("/campaigns/new", {"text": GOOD}, **headers)
    assert answer.status_code == 401
    assert hidden(Parsed(answer.text))["next"] == "/ui/campaigns/new?kind=x"
