"""What a figure of privacy says and what it doesn't, in words for operators."""

from __future__ import annotations

NOT_COVERED = "scores, losses, numbers of samples, who takes part, and when"
"""What no ε of ours is about."""


def promise(epsilon: float, delta: float, noise: str, least_devices: int) -> str:
    """What (ε, δ) promise to whom; ``noise`` is the campaign's place of it.

    Whoever shows an ε shows this beside it.
    """
    if noise == "devices":
        who = f"who has sums of sets of {least_devices} devices or more, as the coordinator has"
        trust = (
            "Devices that tell the coordinator their own noise take it out of the sum: with m of "
            f"them a cost counts {least_devices} / ({least_devices} - m) times."
        )
    else:
        who = "who has released weights"
        trust = "The coordinator sees sums without noise: against it there are masks alone."
    return (
        f"Whether a device's data are in what was learned: the odds that anybody {who}, gives to "
        f"that change by a factor of e^{epsilon:.3g} at most, but for a chance of {delta:.2g}. "
        f"{trust} Not covered by ε: {NOT_COVERED}."
    )
