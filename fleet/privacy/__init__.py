"""Differential privacy, as logic: noise, what it costs, how deltas are clipped."""

from fleet.privacy.accounting import (
    LEAST_VARIANCE,
    Noise,
    epsilon,
    noise_multiplier,
    rho_within,
    sensitivity_squared,
    share_variance,
)
from fleet.privacy.clipping import ClipState, next_clip
from fleet.privacy.discrete_gaussian import (
    KEY_BYTES,
    MAX_DEVICE_VARIANCE,
    MAX_VARIANCE,
    discrete_gaussian,
)
from fleet.privacy.words import NOT_COVERED, promise

__all__ = [
    "KEY_BYTES",
    "LEAST_VARIANCE",
    "MAX_DEVICE_VARIANCE",
    "MAX_VARIANCE",
    "NOT_COVERED",
    "ClipState",
    "Noise",
    "discrete_gaussian",
    "epsilon",
    "next_clip",
    "noise_multiplier",
    "promise",
    "rho_within",
    "sensitivity_squared",
    "share_variance",
]
