"""What onlookers are told of a round that runs: little, whatever the number of devices."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from fleet.campaign.planning import RoundPlan
from fleet.campaign.round_machine import RoundMachine
from fleet.store.figures import MOST_NAMED, of_a_kind


def progress_of(plan: RoundPlan, machine: RoundMachine) -> dict[str, Any]:
    """Counters of all gateways together, what has come of each of the largest, and the devices that
    have been waited for longest, with how long after the round's begin their task went out.

    Who has declined is counted, and may be among those: gateways name them at the round's end only.
    """
    still_open = (one for one in plan.assignments if machine.keeps(one.gateway, one.device))
    longest = heapq.nsmallest(
        MOST_NAMED, still_open, key=lambda one: (one.delay_seconds, one.device)
    )
    asked = Counter(one.gateway for one in plan.assignments)
    accepted = machine.accepted
    refused, declined = Counter[str](), Counter[str]()
    for answer in machine.told:
        refused.update(answer.refused)
        declined.update(answer.declined)
    return {
        "late": sum(one.late for one in machine.told),
        "duplicate": sum(one.duplicate for one in machine.told),
        "refused": dict(refused.most_common(MOST_NAMED)),
        "declined": dict(declined.most_common(MOST_NAMED)),
        "not_started": of_a_kind(machine.not_started.values()),
        "accepted_by": {name: accepted[name] for name, _ in asked.most_common(MOST_NAMED)},
        "open": [
            {"device": one.device, "gateway": one.gateway, "task_after": one.delay_seconds}
            for one in longest
        ],
        "bytes_up": machine.bytes_up,
    }
