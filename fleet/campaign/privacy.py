"""What a campaign says about differential privacy, and what that means for a round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from fleet.errors import CampaignError
from fleet.privacy import (
    MAX_DEVICE_VARIANCE,
    ClipState,
    Noise,
    discrete_gaussian,
    next_clip,
    sensitivity_squared,
    share_variance,
)
from fleet.protocol import fields
from fleet.protocol.masking import MOST_DEVICES

SPENT = "privacy-budget-spent"
"""Why a device isn't asked."""

# The share of a clip that a norm's value is: it costs 3 % of a round's noise.
_NORM_SHARE = 4


class AdaptiveClip(BaseModel):
    """The clip moves from round to round until `quantile` of the devices have a smaller norm.

    What devices say of their norms has the round's noise as well (arXiv 1905.03871).
    """

    model_config = fields.FORM

    quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the devices whose deltas aren't clipped."""
    rate: Annotated[float, Field(gt=0.0, le=2.0)] = 0.2
    """How fast: a round changes the clip by a factor of e^rate at most."""


class Privacy(BaseModel):
    """What a campaign's rounds may tell of any one device: clipped deltas, and noise."""

    model_config = fields.FORM

    clip: Annotated[int, Field(ge=1, lt=2**32)]
    """The longest delta (2-norm, in delta values) that counts as it is; longer ones are shortened
    to it. With `adaptive` that of the first round."""
    adaptive: AdaptiveClip | None = None
    """Follow the devices' norms instead of keeping one clip."""
    noise_multiplier: Annotated[float, Field(gt=0.0, le=1000.0)]
    """Standard deviation of the noise in a sum, in clips."""
    noise: Literal["devices", "coordinator"] = "devices"
    """Who adds it: each device a share under its mask, so that the coordinator sees noisy sums
    only; or the coordinator, which then is trusted."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    """For every (ε, δ): below one in the number of devices."""
    budget_epsilon: Annotated[float, Field(gt=0.0)] | None = None
    """A device that another round would take beyond it, at `delta` and over all of its campaigns,
    isn't asked any more; no limit where left out."""
    least_devices: Annotated[int, Field(ge=2, le=MOST_DEVICES)] = 20
    """Sets of fewer aren't unmasked; the devices' shares of the noise are sized for so many."""


@dataclass(frozen=True)
class RoundPrivacy:
    """What a round's plan says of clip and noise, fixed before its first message.

    `exact_clip` is the clip with its fraction, which later ones go on from. `noise_variance` is
    that of each device's share, or what the coordinator adds to a sum. `rho` is what the round
    costs each of its devices (zCDP): against the coordinator where devices add the noise, else
    against those who get what is released.
    """

    clip: int
    exact_clip: float
    norm_share: int
    noise: str
    noise_variance: int
    least_devices: int
    rho: float

    @property
    def device_variance(self) -> int:
        """The task's noise-variance."""
        return self.noise_variance if self.noise == "devices" else 0

    @property
    def coordinator_variance(self) -> int:
        """What the coordinator adds to each sum."""
        return self.noise_variance if self.noise == "coordinator" else 0

    def public_rho(self, sets: int, values: int) -> float:
        """What the round costs at most against those who see what is released of it.

        That is made of the sum of so many ``sets`` where the rule adds them up.
        """
        if self.noise == "coordinator":
            return self.rho
        noise = Noise(self.noise_variance, self.least_devices * sets)
        return noise.rho(sensitivity_squared(self.clip, self.norm_share), values)


def first_clip(privacy: Privacy) -> ClipState:
    """The clip of a campaign's first round."""
    return ClipState(float(privacy.clip))


def round_privacy(privacy: Privacy, clip: ClipState, value_bound: int, values: int) -> RoundPrivacy:
    """What a training round says, with the clip that those before it have led to.

    ``value_bound`` is the largest magnitude of a delta's value, ``values`` how many there are in
    the largest of its plans. Raises `CampaignError` where devices can't draw so much noise.
    """
    shares = privacy.least_devices if privacy.noise == "devices" else 1
    whole, norm_share = clip.whole, 0
    if privacy.adaptive is not None:
        if privacy.noise == "devices" and whole > _largest_clip(privacy):
            clip = ClipState(float(_largest_clip(privacy)), clip.share_within)
            whole = clip.whole
        norm_share = max(1, min(value_bound, whole // _NORM_SHARE))
    squared = sensitivity_squared(whole, norm_share)
    variance = share_variance(privacy.noise_multiplier, squared, shares)
    if privacy.noise == "devices" and variance > MAX_DEVICE_VARIANCE:
        raise CampaignError(
            f"privacy: each of {shares} devices would have to add noise of variance {variance}, "
            f"more than {MAX_DEVICE_VARIANCE}; make clip or noise_multiplier less, or "
            "least_devices more"
        )
    return RoundPrivacy(
        clip=whole,
        exact_clip=clip.clip,
        norm_share=norm_share,
        noise=privacy.noise,
        noise_variance=variance,
        least_devices=privacy.least_devices,
        rho=Noise(variance, shares).rho(squared, values + bool(norm_share)),
    )


def _largest_clip(privacy: Privacy) -> int:
    """Beyond it devices can't draw the noise, the norm's value included."""
    room = MAX_DEVICE_VARIANCE * privacy.least_devices / (1 + 1 / _NORM_SHARE**2)
    return max(1, math.floor(math.sqrt(room) / privacy.noise_multiplier))


@dataclass(frozen=True)
class Release:
    """What becomes of a sum over devices: `values` of their deltas (int64), with all its noise, and
    what their norm values came to."""

    values: npt.NDArray[np.int64]
    norm_sum: int


def release(says: RoundPrivacy, total: npt.NDArray[np.int64], key: bytes) -> Release:
    """What may go on from an unmasked sum: with the coordinator's noise where it adds it.

    ``total`` (shape: the plan's values, one more with a norm share) is over all sets of an update
    plan that go on as one sum; a rule that goes on with single sets has each of them pass here.
    ``key``: 32 bytes that nobody keeps.
    """
    if says.coordinator_variance:
        total = total + discrete_gaussian(key, says.coordinator_variance, total.size)
    if not says.norm_share:
        return Release(total, 0)
    return Release(total[:-1], int(total[-1]))


def clip_after(privacy: Privacy, says: RoundPrivacy, norm_sum: int, devices: int) -> ClipState:
    """The clip after a round whose ``devices``' norm values came to ``norm_sum``, with noise."""
    clip = ClipState(says.exact_clip)
    if privacy.adaptive is None:
        return clip
    adaptive = privacy.adaptive
    return next_clip(clip, norm_sum, says.norm_share, devices, adaptive.quantile, adaptive.rate)


def clip_from_json(privacy: Privacy, told: Mapping[str, Any] | None) -> ClipState:
    """What `clip_to_json` gave with the result of the last training round; the first without."""
    if not told:
        return first_clip(privacy)
    return ClipState(float(told["next_clip"]), told["share_within"])


def clip_to_json(clip: ClipState) -> dict[str, Any]:
    """What a round's result keeps."""
    return {"next_clip": clip.clip, "share_within": clip.share_within}


def problem_of(
    privacy: Privacy,
    *,
    trains: bool,
    coding: str,
    weighting: str,
    is_asynchronous: bool,
    cohort_size: int | None,
    sets: int,
) -> str:
    """Why a campaign can't have it, and what to do; empty where it can.

    ``sets`` are the parts into which the rule divides a cohort.
    """
    if not trains:
        return "scores aren't covered by it, and nothing else is sent; leave it out"
    if coding != "masked":
        return f"{coding} deltas are neither clipped nor do they get noise; say coding: masked"
    if weighting != "uniform":
        return "a device that counts more has more to hide; say weighting: uniform"
    if is_asynchronous:
        return "noise hides a device among those of its round; leave asynchronous out"
    if cohort_size is not None and cohort_size < sets * privacy.least_devices:
        return (
            f"least_devices: a cohort of {cohort_size} has no {sets} sets of "
            f"{privacy.least_devices}; make cohort_size more or least_devices less"
        )
    return ""
