"""`tinyfleet campaign`: a campaign's file, and campaigns of a service."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table

from fleet.campaign.files import file_schema, read_campaign
from fleet.campaign.planning import schedule
from fleet.campaign.start_requests import parameters_of
from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json, table
from fleet.errors import NotKnownError, ServiceError
from fleet.files import write_whole
from fleet.service.campaign_schema import CampaignPlan
from fleet.service.client import Client
from fleet.service.schema import CampaignDetail, CampaignView, SightView
from fleet.service.set_words import in_words

EXIT_NOT_FINISHED = 3
"""Of `watch` and `start --watch`, where a campaign ended in another way than well."""
LOOK_SECONDS = 1.0


def validate(path: Path, *, as_json: bool) -> None:
    """Check a file, and show the rounds that it asks for."""
    config = read_campaign(path)
    rounds = [
        (
            one.number,
            one.kind,
            config.stages[one.stage].name,
            parameters_of(config, one.kind, one.training_round),
        )
        for one in schedule(config)
    ]
    if as_json:
        print_json(
            {
                "campaign": config.model_dump(mode="json"),
                "rounds": [
                    {
                        "round": number,
                        "kind": kind.value,
                        "stage": stage,
                        "learning_rate": parameters.learning_rate,
                    }
                    for number, kind, stage, parameters in rounds
                ],
            }
        )
        return
    rows = [
        [
            str(number),
            stage,
            kind.value,
            f"{parameters.learning_rate:g}" if kind.action == "train" else "",
        ]
        for number, kind, stage, parameters in rounds
    ]
    columns = ["round", "stage", "kind", "learning rate"]
    console().print(table(f"Rounds of {config.name}", columns, rows))
    console().print(f"For {config.target or 'every device'}.", soft_wrap=True)


def print_schema() -> None:
    """The JSON Schema of a campaign's file, for editors."""
    print_json(file_schema())


def plan(client: Client, path: Path, *, as_json: bool) -> None:
    """What a campaign would do; nothing is done."""
    found = client.plan_campaign(read_campaign(path))
    if as_json:
        print_json({"plan": found.model_dump(mode="json")})
        return
    _print_plan(found)


def _print_plan(found: CampaignPlan) -> None:
    screen = console()
    screen.print(
        f"From {found.version}: {found.target.count:,} devices match, {found.ready:,} could take "
        f"part now.",
        soft_wrap=True,
    )
    rows = [[part, count] for part, count in found.target.reasons.items()]
    if rows:
        screen.print(table("Part of the filter that isn't true", ["part", "devices"], rows))
    rows = [[reason, count] for reason, count in found.skipped.items()]
    if rows:
        screen.print(table("Match, and can't take part now", ["reason", "devices"], rows))
    rows = [
        [
            one.stage,
            one.devices,
            "; ".join(
                f"{gate}: " + ("none" if drop is None else f"{100 * drop:.1f} points")
                for gate, drop in one.smallest_detectable_drop.items()
            ),
        ]
        for one in found.stages
    ]
    screen.print(table("Stages", ["stage", "devices", "smallest drop that gates notice"], rows))
    uses = [
        [one.name, one.devices, one.delta_values, "; ".join(one.reasons)] for one in found.plans
    ]
    screen.print(table("Update plans", ["plan", "devices", "values", "why no larger one"], uses))
    rows = [
        [
            one.name,
            one.board,
            one.devices,
            "; ".join(
                f"{action} {_cost(seconds, one.round_millijoules[action])}"
                for action, seconds in one.round_seconds.items()
            ),
            _cost(one.seconds, one.millijoules),
        ]
        for one in found.costs
    ]
    columns = ["plan", "board", "devices", "of a round", "of all rounds"]
    screen.print(table("What it takes of a device, as measured", columns, rows))
    screen.print(
        f"{found.rounds} rounds, at most {_long(found.longest_seconds)} by their deadlines "
        f"({_long(found.longest_round_seconds)} for one), {_expected(found)}; "
        f"about {found.bytes_down / 1e6:,.2f} MB down and {found.bytes_up / 1e6:,.2f} MB up in "
        f"all; {found.flash_slot_writes_per_device} versions written to a device's flash.",
        soft_wrap=True,
    )
    rows = [[one.name, one.devices, one.sets, one.smallest] for one in found.sets]
    if rows:
        columns = ["plan", "devices", "sets", "smallest set"]
        screen.print(table("Who hides in whom, if all took part", columns, rows))
    if found.too_few_to_hide:
        screen.print(
            f"{found.too_few_to_hide} devices that are ready wouldn't be asked: too few others "
            "train an update plan that they can carry.",
            soft_wrap=True,
        )
    _print_sights(found.who_sees)


def _cost(seconds: float | None, millijoules: float | None) -> str:
    if seconds is None:
        return "not measured yet"
    energy = "power not known" if millijoules is None else f"{millijoules / 1000:,.1f} J"
    return f"{seconds:,.1f} s, {energy}"


def _expected(found: CampaignPlan) -> str:
    if found.expected_seconds is None:
        return "how long they take isn't measured yet"
    return f"about {_long(found.expected_seconds)} as measured"


def _long(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:,.1f} days"


def start(client: Client, path: Path, *, watched: bool, as_json: bool) -> int:
    """Begin a campaign; returns the command's exit code."""
    view = client.start_campaign(read_campaign(path))
    if watched:
        return watch(client, view.campaign, as_json=as_json)
    _print_view(view, as_json=as_json)
    return 0


def show_list(client: Client, limit: int, *, as_json: bool) -> None:
    """Campaigns, newest first."""
    page = client.campaigns(limit=limit)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    rows = [
        [one.campaign, one.name, one.kind, one.state, one.base, one.made, one.reason]
        for one in page.campaigns
    ]
    columns = ["campaign", "name", "kind", "state", "from", "made", "reason"]
    console().print(table("Campaigns", columns, rows))


def find(client: Client, text: str) -> str:
    """A campaign's id, by its name (the newest of that name) or its first digits."""
    known = client.campaigns(limit=1000).campaigns
    for one in known:
        if one.name == text:
            return one.campaign
    found = [one.campaign for one in known if one.campaign.startswith(text)]
    if len(found) > 1:
        raise CommandError(f"{text} may be {' or '.join(found[:4])}: write more digits")
    if not found:
        raise NotKnownError(f"there is no campaign {text}; `tinyfleet campaign list` shows them")
    return found[0]


def show(client: Client, campaign: str, *, as_json: bool) -> None:
    """A campaign, whole."""
    detail = client.campaign(find(client, campaign))
    if as_json:
        print_json({"campaign": detail.model_dump(mode="json")})
        return
    for part in _picture(detail):
        console().print(part, soft_wrap=isinstance(part, str))
    for stage in detail.stages:
        for verdict in stage.verdicts:
            console().print(f"{stage.stage}: {verdict.outcome}: {verdict.reason}", soft_wrap=True)
    for gateway, why in detail.quarantined.items():
        console().print(f"gateway {gateway} is left out: {why}", soft_wrap=True)
    for device, why in list(detail.failed_devices.items())[:20]:
        console().print(f"device {device}: {why}", soft_wrap=True)
    if detail.config.masking is not None:
        trained = [one.round for one in detail.rounds if one.kind == "train"]
        sets = client.figures(detail.campaign, trained[-1]).sets if trained else None
        if sets is not None:
            console().print(f"Round {trained[-1]}: {in_words(sets)}", soft_wrap=True)
    _print_sights(detail.who_sees)


def _print_sights(sights: Iterable[SightView]) -> None:
    rows = [[one.who, one.sees] for one in sights]
    console().print(table("Who could see what", ["who", "sees"], rows))


def _picture(detail: CampaignDetail) -> list[Table | str]:
    stages = [
        [one.stage, one.devices, one.outcome or ("" if one.verdicts else "no gate yet")]
        for one in detail.stages
    ]
    rounds = [
        [one.round, one.kind, one.state, f"{one.accepted}/{one.wanted}", one.asked]
        for one in detail.rounds[-12:]
    ]
    waiting = f", waits for {detail.waiting}" if detail.waiting else ""
    reason = f": {detail.reason}" if detail.reason else ""
    made = f"; made {detail.made}" if detail.made else ""
    return [
        f"{detail.name} ({detail.campaign}, {detail.kind} from {detail.base}) is "
        f"{detail.state}{waiting}{reason}{made}",
        table("Stages", ["stage", "devices", "gates"], stages),
        table("Rounds", ["round", "kind", "state", "deltas", "asked"], rounds),
    ]


def watch(client: Client, campaign: str, *, as_json: bool) -> int:
    """Follow a campaign to its end; returns the command's exit code."""
    campaign = find(client, campaign)
    screen = console()
    detail = client.campaign(campaign)
    if as_json or not screen.is_terminal:
        said = ""
        while True:
            line = _line(detail)
            if line != said and not as_json:
                screen.print(line, soft_wrap=True)
            said = line
            if detail.has_ended:
                break
            time.sleep(LOOK_SECONDS)
            detail = _look(client, campaign, detail)
        if as_json:
            print_json({"campaign": detail.model_dump(mode="json")})
    else:
        with Live(Group(*_picture(detail)), console=screen, refresh_per_second=4) as live:
            while not detail.has_ended:
                time.sleep(LOOK_SECONDS)
                detail = _look(client, campaign, detail)
                live.update(Group(*_picture(detail)))
    return 0 if detail.state == "finished" else EXIT_NOT_FINISHED


def _look(client: Client, campaign: str, before: CampaignDetail) -> CampaignDetail:
    """As it is now; as before, while the service is being started again."""
    try:
        return client.campaign(campaign)
    except ServiceError:
        return before


def _line(detail: CampaignDetail) -> str:
    at = detail.rounds[-1] if detail.rounds else None
    where = f", round {at.round} ({at.kind}) {at.accepted}/{at.wanted}" if at else ""
    reason = f": {detail.reason}" if detail.reason else ""
    return f"{detail.name} is {detail.state}{where}{reason}"


def act(client: Client, campaign: str, action: str, *, as_json: bool) -> None:
    """Pause, resume, stop, roll-back, approve."""
    _print_view(client.act(find(client, campaign), action), as_json=as_json)


def clone(client: Client, campaign: str, out: Path | None, *, as_json: bool) -> None:
    """A campaign's file, to be changed and started again."""
    import yaml

    detail = client.campaign(find(client, campaign))
    config = detail.config.as_file()
    if as_json:
        print_json({"campaign": config})
        return
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if out is None:
        print(text, end="")
    else:
        write_whole(out, text)
        console().print(f"{out} has it; change it and start it again.", soft_wrap=True)


def export(client: Client, campaign: str, out: Path) -> None:
    """All rounds' reports, as JSON or Parquet by the file's ending."""
    campaign = find(client, campaign)
    detail = client.campaign(campaign)
    rows = [
        {"campaign": campaign, "round": one.round, "kind": one.kind, **report}
        for one in detail.rounds
        for report in client.reports(campaign, one.round).reports
    ]
    if out.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    elif out.suffix == ".json":
        import json

        facts = {"campaign": detail.model_dump(mode="json"), "reports": rows}
        write_whole(out, json.dumps(facts, indent=1))
    else:
        raise CommandError(f"{out}: its ending says what it is to be: .json or .parquet")
    console().print(f"{len(rows):,} reports are in {out}.", soft_wrap=True)


def _print_view(view: CampaignView, *, as_json: bool) -> None:
    if as_json:
        print_json({"campaign": view.model_dump(mode="json")})
        return
    wish = {"pause": " and is to pause", "stop": " and is to stop"}.get(view.wish, "")
    reason = f": {view.reason}" if view.reason else ""
    console().print(f"{view.name} ({view.campaign}) is {view.state}{wish}{reason}", soft_wrap=True)
