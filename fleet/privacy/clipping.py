"""The clip that follows a quantile of the devices' norms, learned from noisy counts alone.

Andrew, Thakkar, McMahan, Ramaswamy 2019, "Differentially Private Learning with Adaptive Clipping"
(arXiv 1905.03871): each device adds one value to its vector that says whether its norm was within
the clip (masking.md, norm-share), which the same noise hides as everything else. After a
round the clip moves by a factor of exp(-rate · (share within - quantile)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LARGEST_CLIP = (1 << 32) - 1


@dataclass(frozen=True)
class ClipState:
    """The clip that rounds have led to, in delta values, with its fraction.

    What a round has said of it (`share_within`) stands beside, for onlookers.
    """

    clip: float
    share_within: float | None = None

    @property
    def whole(self) -> int:
        """As devices are told, at least 1."""
        return min(max(1, round(self.clip)), _LARGEST_CLIP)


def next_clip(
    state: ClipState, norm_sum: int, norm_share: int, devices: int, quantile: float, rate: float
) -> ClipState:
    """The clip after a round whose ``devices`` said, in all and with noise, ``norm_sum``.

    ``norm_share`` is what each of them adds whose norm is within the clip. A share below 0 or
    above 1 is the noise's doing and counts as such. Without devices nothing changes.
    """
    if devices < 1 or norm_share < 1:
        return state
    share = min(1.0, max(0.0, norm_sum / (norm_share * devices)))
    clip = state.clip * math.exp(-rate * (share - quantile))
    return ClipState(min(max(1.0, clip), float(_LARGEST_CLIP)), share)
