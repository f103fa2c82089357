"""Who could see what of a campaign's devices, in words: the one place that says it to people.

Command line, API, dashboard and demo show these lines. What they rest on: docs/design/privacy.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet.campaign.config import CampaignConfig


@dataclass(frozen=True)
class Sight:
    """What somebody could see, or do; `who` may be several."""

    who: str
    sees: str


@dataclass(frozen=True)
class Setting:
    """How a service is set up.

    `is_signed`: whether its tasks are signed. `operators`: who runs each unmasker, an empty text
    for whoever runs the service itself.
    """

    is_signed: bool = False
    operators: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Who else than the service's owner runs unmaskers."""
        return tuple(dict.fromkeys(one for one in self.operators if one))


def who_sees(config: CampaignConfig, setting: Setting) -> tuple[Sight, ...]:
    """Who could see what in a campaign, and who could command devices."""
    lines = _of_plain() if config.masking is None else _of_masked(config, setting)
    return (
        *lines,
        Sight(
            "broker, gateways, coordinator",
            "who takes part and when, scores, losses and numbers of samples of each device",
        ),
        _commands(setting),
    )


def _of_plain() -> list[Sight]:
    return [
        Sight("broker and gateways", "each device's changes of the weights"),
        Sight("coordinator", "sums of each update plan at each gateway, of one device as well"),
    ]


def _of_masked(config: CampaignConfig, setting: Setting) -> list[Sight]:
    assert config.masking is not None
    least = config.masking.least_devices
    lines = [
        Sight("broker and gateways", "random numbers, and no device's changes of the weights"),
        Sight("coordinator", f"sums of sets of {least} devices and more, never of fewer"),
        Sight(_unmaskers(setting), "who was in which set, and no values"),
    ]
    together = (
        "each device's changes of the weights, if a gateway and every unmasker are put together"
    )
    if not setting.operators:
        lines.append(Sight("nobody yet", "sums: the settings have no unmasker, so rounds wait"))
    elif setting.others:
        lines.append(Sight(f"you and {_joined(setting.others)} together", together))
    else:
        lines.append(
            Sight(
                "you",
                f"{together}: one owner runs both, so masks are separation of duty alone. Nobody "
                "sees a device's changes by accident or with one machine's disk; you can, if you "
                "want to",
            )
        )
    lines.append(
        Sight(
            "whoever enrols devices at the unmaskers",
            "a set's rest: who fills a set with made-up devices learns what the others sum up to",
        )
    )
    return lines


def _unmaskers(setting: Setting) -> str:
    count = len(setting.operators)
    if not setting.others:
        return "unmaskers" if count > 1 else "unmasker"
    return f"{'unmaskers' if count > 1 else 'unmasker'} ({_joined(setting.others)})"


def _joined(names: Sequence[str]) -> str:
    return " and ".join(names)


def _commands(setting: Setting) -> Sight:
    if setting.is_signed:
        return Sight(
            "whoever has the task key",
            "commands devices; brokers and gateways can delay and drop tasks, and make none",
        )
    return Sight(
        "whoever has the broker or a gateway",
        "commands devices: this service signs no tasks",
    )
