"""What states of campaigns, what they wait for and what can be done with them mean, in words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fleet.dashboard.formats import plural
from fleet.service.campaign_schema import CampaignRow, CampaignStanding, DecisionView, SetFigures
from fleet.service.roles import Permission
from fleet.service.schema import CampaignView, EventView, Seen
from fleet.service.set_words import in_words

KINDS = {
    "pending": "quiet",
    "running": "running",
    "waiting": "warning",
    "paused": "warning",
    "rolling-back": "bad",
    "finished": "good",
    "failed": "bad",
    "cancelled": "quiet",
    "undecided": "warning",
    "rolled-back": "bad",
}
"""Of a state's badge."""
OUTCOMES = {"pass": "good", "fail": "bad", "too little evidence": "warning"}


def why(one: CampaignView) -> str:
    """Why a campaign stands where it does; empty where it simply goes on."""
    said = one.reason
    wished = {"pause": "is to pause", "stop": "is to stop", "roll-back": "is to roll back"}
    if one.wish and not one.has_ended and one.state not in ("paused", "rolling-back"):
        said = f"{wished.get(one.wish, one.wish)}{'; ' if said else ''}{said}"
    return said


def waits_for(one: CampaignStanding) -> str:
    """What somebody has to decide."""
    found = one.to_decide
    if found is None:
        return one.waiting
    stage = one.standing[found.stage].stage
    if found.what == "begin":
        return f"whether stage {stage} may begin"
    after = {"training": " during its training", "soak": " after its soak"}.get(found.when, "")
    return f"what to do about stage {stage}, whose gates didn't pass{after}"


def sets(of: SetFigures) -> str:
    """What came of a masked round's sets."""
    return in_words(of)


def where(one: CampaignRow) -> str:
    """Stage and round, as far as it has come."""
    if one.round is None:
        return "not begun"
    stage = f"stage {one.stage}, " if one.stage else ""
    return f"{stage}round {one.round} ({one.round_kind})"


def event(one: EventView) -> str:
    """What has happened, as far as its kind doesn't say it."""
    told = dict(one.data)
    if one.kind == "gate":
        reasons = "; ".join(told.get("reasons", ()))
        return f"stage {told.get('stage')}: {told.get('outcome')}: {reasons}"
    if one.kind == "sets":
        rule = f"; {told['rule']}" if told.get("rule") else ""
        return f"round {told.get('round')}: {told.get('counted')} of {told.get('sets')}{rule}"
    if one.kind == "version":
        return f"{told.get('version')}, of {told.get('deltas')} deltas"
    reason = f": {told['reason']}" if told.get("reason") else ""
    return f"{told.get('state', '')}{reason}"


@dataclass(frozen=True)
class Deed:
    """Something that can be done with a campaign, and what will happen."""

    action: str
    name: str
    permission: Permission
    kind: str
    consequences: tuple[str, ...]


def deeds(one: CampaignStanding) -> list[Deed]:
    """What can be done with a campaign as it stands."""
    found: list[Deed] = []
    if not one.has_ended and one.state != "rolling-back":
        if one.to_decide is not None:
            found.append(_approve(one, one.to_decide))
        if one.wish == "":
            found.append(_pause(one))
        if one.wish == "pause":
            found.append(_resume())
        if one.wish in ("", "pause"):
            found.append(_stop(one))
    if one.kind != "evaluate" and one.wish != "roll-back" and one.state != "rolling-back":
        found.append(_roll_back(one))
    return found


def deed(one: CampaignStanding, action: str) -> Deed | None:
    """One of them by its action; None where it can't be done as things stand."""
    return next((of for of in deeds(one) if of.action == action), None)


def seen(one: CampaignView) -> Seen:
    """The campaign as a page shows it."""
    return Seen(state=one.state, waiting=one.waiting, wish=one.wish)


def key_of(form_key: str, *what: str) -> str:
    """The idempotency key of a form with this content: a second press does nothing again, and what
    was changed meanwhile is another thing."""
    return hashlib.sha256("\0".join([form_key, *what]).encode()).hexdigest()


def _asked(one: CampaignStanding) -> str:
    return plural(one.asked, "device")


def _running(one: CampaignStanding) -> bool:
    return one.current is not None and one.current.state == "running"


def _approve(one: CampaignStanding, decision: DecisionView) -> Deed:
    stage = one.standing[decision.stage]
    count = plural(stage.devices, "device")
    if decision.what == "begin":
        told = (
            f"Stage {stage.stage} begins, with {count} that have joined so far.",
            f"{one.author} made it and may not approve it: two people stand behind it.",
        )
    else:
        told = (
            f"The gates are overruled: the stage's candidate goes to {count} as their current "
            "weights, and the campaign goes on.",
            "The other answers are to stop it, and to roll back.",
        )
    return Deed("approve", "Approve", Permission.APPROVE, "primary", told)


def _pause(one: CampaignStanding) -> Deed:
    first = (
        f"Round {one.round}, in which {_asked(one)} were asked, is brought to its end first."
        if _running(one)
        else "No round runs now."
    )
    told = (first, "No further round begins until somebody resumes it. Its devices stay its own.")
    return Deed("pause", "Pause", Permission.OPERATE, "", told)


def _resume() -> Deed:
    told = ("Rounds begin again where it was paused.",)
    return Deed("resume", "Resume", Permission.OPERATE, "primary", told)


def _stop(one: CampaignStanding) -> Deed:
    first = (
        f"Round {one.round} is cancelled at all gateways: {_asked(one)} were asked, "
        f"{plural(one.asked - one.accepted, 'device')} of them work in vain."
        if _running(one)
        else "No round runs now; none begins any more."
    )
    told = (
        first,
        "Devices keep the weights that they have now; to take those back, roll back instead.",
        "It ends as cancelled and can't be resumed. It takes up to 20 s to reach gateways.",
    )
    return Deed("stop", "Stop", Permission.OPERATE, "danger", told)


def _roll_back(one: CampaignStanding) -> Deed:
    joined = max((of.devices for of in one.standing), default=0)
    told = [
        f"Of {plural(joined, 'device')} that have joined, each that has weights of this campaign "
        "gets back what it had before.",
        "Devices that can't be reached are named at the end.",
    ]
    if one.made and one.state != "rolled-back":
        told.append(f"Version {one.made} is withdrawn: no campaign begins with it any more.")
    if _running(one):
        told.insert(0, f"Round {one.round} is cancelled at all gateways.")
    return Deed("roll-back", "Roll back", Permission.OPERATE, "danger", tuple(told))
