"""What a campaign says about differential privacy, and what that means for a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from fleet.aggregation.mean import PlanSum
from fleet.campaign.masking import USUAL_BOUND, Masking, Protection
from fleet.errors import CampaignError
from fleet.privacy import (
    KEY_BYTES,
    MAX_DEVICE_VARIANCE,
    MAX_VARIANCE,
    ClipState,
    Noise,
    discrete_gaussian,
    next_clip,
    sensitivity_squared,
    share_variance,
)
from fleet.protocol import fields

Entropy: TypeAlias = Callable[[int], bytes]
"""So many bytes that nobody else has: `os.urandom`."""

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
    isn't asked any more, and where too few are left training ends; no limit where left out."""


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
    def protection(self) -> Protection:
        """What devices are told."""
        variance = self.noise_variance if self.noise == "devices" else 0
        return Protection(self.clip, self.norm_share, variance, self.least_devices)

    @property
    def coordinator_variance(self) -> int:
        """What the coordinator adds to each sum."""
        return self.noise_variance if self.noise == "coordinator" else 0

    def public_rho(self, sets: int, values: int) -> float:
        """What the round costs against those who see what is released of it.

        That is made of the sum of so many ``sets`` where the rule adds them up. One that counts
        nothing takes its noise with it.
        """
        if self.noise == "coordinator":
            return self.rho
        noise = Noise(self.noise_variance, self.least_devices * sets)
        return noise.rho(sensitivity_squared(self.clip, self.norm_share), values)


def first_clip(privacy: Privacy) -> ClipState:
    """The clip of a campaign's first round."""
    return ClipState(float(privacy.clip))


def round_privacy(privacy: Privacy, masking: Masking, clip: ClipState, values: int) -> RoundPrivacy:
    """What a training round says, with the clip that those before it have led to.

    ``values`` is how many there are in the largest of its plans. The devices' shares are sized for
    the smallest set that is unmasked. Raises `CampaignError` where devices can't draw so much.
    """
    shares = masking.least_devices if privacy.noise == "devices" else 1
    whole, norm_share = clip.whole, 0
    if privacy.adaptive is not None:
        if whole > (most := _largest_clip(privacy, shares)):
            clip = ClipState(float(most), clip.share_within)
            whole = clip.whole
        norm_share = max(1, min(masking.value_bound or USUAL_BOUND, whole // _NORM_SHARE))
    squared = sensitivity_squared(whole, norm_share)
    variance = share_variance(privacy.noise_multiplier, squared, shares)
    if privacy.noise == "devices" and variance > MAX_DEVICE_VARIANCE:
        raise CampaignError(
            f"privacy: each of {shares} devices would have to add noise of variance {variance}, "
            f"more than {MAX_DEVICE_VARIANCE}; make clip or noise_multiplier less, or "
            "masking.least_devices more"
        )
    if variance >= MAX_VARIANCE:
        raise CampaignError(
            f"privacy: the coordinator would have to add noise of variance {variance}, which is "
            "2^60 or more; make clip or noise_multiplier less"
        )
    return RoundPrivacy(
        clip=whole,
        exact_clip=clip.clip,
        norm_share=norm_share,
        noise=privacy.noise,
        noise_variance=variance,
        least_devices=masking.least_devices,
        rho=Noise(variance, shares).rho(squared, values + bool(norm_share)),
    )


def _largest_clip(privacy: Privacy, shares: int) -> int:
    """Beyond it the noise can't be drawn, the norm's value included."""
    most = MAX_DEVICE_VARIANCE * shares if privacy.noise == "devices" else MAX_VARIANCE // 2
    room = most / (1 + 1 / _NORM_SHARE**2)
    return max(1, math.floor(math.sqrt(room) / privacy.noise_multiplier))


def with_noise(
    parts: Sequence[Sequence[PlanSum]], variance: int, entropy: Entropy
) -> list[list[PlanSum]]:
    """What a rule may go on from: each plan's sum in each part with the coordinator's noise.

    ``parts`` are those of `AggregationRule.of_sets`. A rule adds up the sums of a plan in a part,
    so one of them that counts has the noise of all.
    """
    return [_with_noise(part, variance, entropy) for part in parts]


def _with_noise(part: Sequence[PlanSum], variance: int, entropy: Entropy) -> list[PlanSum]:
    found: list[PlanSum] = []
    for one in part:
        if one.weight and all(one.plan != other.plan for other in found if other.weight):
            noise = discrete_gaussian(entropy(KEY_BYTES), variance, one.values.size)
            found.append(replace(one, values=one.values + noise))
        else:
            found.append(one)
    return found


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
