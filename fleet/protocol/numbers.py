"""What the numbers in messages stand for (wire.md), and their names for people and reports."""

from __future__ import annotations

from enum import IntEnum


class DeviceState(IntEnum):
    """What a device is doing."""

    OFFLINE = 0
    IDLE = 1
    FETCHING = 2
    SCORING = 3
    TRAINING = 4
    SENDING = 5
    DECLINED = 6
    FAILED = 7


class Reason(IntEnum):
    """Why a device declined or failed, or what befell it."""

    NONE = 0
    UNKNOWN_PLAN = 1
    NOT_ENOUGH_SRAM = 2
    WEIGHTS_DIGEST_MISMATCH = 3
    WEIGHTS_SIZE_MISMATCH = 4
    SCORE_DROPPED = 5
    DEADLINE_PASSED = 6
    NO_SAMPLES = 7
    FLASH_FAILURE = 8
    MALFORMED_TASK = 9
    WEIGHTS_OF_ANOTHER_MODEL = 10
    RESTARTED_AFTER_FAULT = 11
    RESTARTED_BY_WATCHDOG = 12
    OLDER_LEASE = 13
    REFUSED_BY_GATEWAY = 14
    UNKNOWN_CODING = 15
    NOT_SIGNED = 16
    OTHER_UNMASKERS = 17
    NO_PERSONAL_TENSORS = 18
    PERSONAL_UNUSABLE = 19
    NO_RANDOM_NUMBERS = 20


class Action(IntEnum):
    """What a task asks for."""

    SCORE = 0
    TRAIN = 1
    RELEASE = 2


class Coding(IntEnum):
    """How a delta's values become bytes."""

    RICE = 0
    MASKED = 1


class Weighting(IntEnum):
    """How much a device's delta counts in the sum."""

    SAMPLES = 0
    UNIFORM = 1


class Personal(IntEnum):
    """What a task does with the personal tensors of its plan."""

    NOTHING = 0
    BESIDE = 1
    FROZEN = 2
    ALONE = 3
    LOCAL = 4


class Kept(IntEnum):
    """What a device's application works with."""

    SHARED = 0
    PERSONAL = 1
    LOCAL = 2


KEPT_WITH_PERSONAL, KEPT_WITH_LOCAL = 0x40, 0x80
"""Beside what is kept: `correct_after` is with personal tensors, `correct_local` was measured."""


def kept_of(kept: int) -> str:
    """Name of what a delta says that the application works with."""
    return number_name(Kept, kept & 0x3F)


class ReceiptResult(IntEnum):
    """What became of a delta."""

    COUNTED = 0
    REFUSED = 1
    LATE = 2


class ResetCause(IntEnum):
    """Why a device started."""

    POWER_ON = 0
    RESET_PIN = 1
    SOFTWARE = 2
    WATCHDOG = 3
    FAULT = 4
    BROWN_OUT = 5
    UNKNOWN = 255


CHARGING = 0x80
"""Beside a charge: something feeds the device from outside."""


def charge_of(battery: int) -> tuple[int | None, bool | None]:
    """Percent, and whether it charges, of a message's `battery`; None where nobody knows."""
    percent = battery & ~CHARGING
    return (None, None) if percent > 100 else (percent, bool(battery & CHARGING))


def number_name(kind: type[IntEnum], value: int) -> str:
    """Name of a number for people and reports; unknown ones keep their number."""
    try:
        return kind(value).name.lower().replace("_", "-")
    except ValueError:
        return f"{_KIND_NAMES[kind]}-{value}"


_KIND_NAMES: dict[type[IntEnum], str] = {
    DeviceState: "state",
    Reason: "reason",
    Action: "action",
    Coding: "coding",
    Weighting: "weighting",
    ReceiptResult: "result",
    ResetCause: "reset",
    Kept: "kept",
}


def state_name(state: int) -> str:
    """Name of a device state."""
    return number_name(DeviceState, state)


def reason_name(reason: int) -> str:
    """Name of a reason."""
    return number_name(Reason, reason)
