"""What noise costs: zero-concentrated differential privacy (zCDP), and what it is as (ε, δ).

The unit is a device: the neighbour of a set is the same set in which one device's vector is zeros.
A vector has length at most Δ = √(clip² + norm_share²). A sum with Gaussian noise of variance V
costs rho = Δ² / 2V (Bun, Steinke 2016, arXiv 1605.02065; the discrete Gaussian likewise: Canonne,
Kamath, Steinke 2020, arXiv 2004.00010). Costs of rounds add up. No amplification by sampling is
claimed: gateways and brokers see who takes part.

Each observer has another sum. The *coordinator* sees every set's, with the noise of that set alone;
the *public* sees released weights, made of the sums of all sets together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

LEAST_VARIANCE = 4
"""Of a device's share: from there on a sum of shares is as good as one discrete Gaussian."""
_MOST_RHO = 1e6


@dataclass(frozen=True)
class Noise:
    """The noise of one sum: ``shares`` discrete Gaussians of ``variance`` each, added up.

    ``shares`` is 1 where the coordinator adds it, else how many devices can be counted on.
    """

    variance: int
    shares: int = 1

    def rho(self, sensitivity_squared: int, values: int) -> float:
        """What a round costs in zCDP where a device moves the sum by √``sensitivity_squared``.

        ``values`` is the number of values of the vector. A sum of discrete Gaussians is none: for
        the difference see Kairouz, Liu, Steinke 2021 (arXiv 2102.06387, proposition 14), here with
        the smaller one of its bounds without a 1-norm.
        """
        if self.variance < 1 or self.shares < 1:
            return math.inf
        total = self.variance * self.shares
        plain = sensitivity_squared / (2 * total)
        if self.shares == 1:
            return plain
        apart = self._distance_from_gaussian()
        length = math.sqrt(sensitivity_squared / total)
        return min(plain + apart * values, (length + apart * math.sqrt(values)) ** 2 / 2)

    def _distance_from_gaussian(self) -> float:
        """τ of that proposition, for one value."""
        exponent = 2 * math.pi**2 * self.variance
        return 10 * math.fsum(math.exp(-exponent * k / (k + 1)) for k in range(1, self.shares))


def sensitivity_squared(clip: int, norm_share: int = 0) -> int:
    """The most that one device adds to a sum, as the square of its length."""
    return clip**2 + norm_share**2


def share_variance(noise_multiplier: float, sensitivity: int, devices: int) -> int:
    """The least variance of each device's share so that ``devices`` of them give the noise.

    That is (``noise_multiplier`` · Δ)², ``sensitivity`` being Δ². With ``devices`` = 1 it is what a
    coordinator adds.
    """
    wanted = noise_multiplier**2 * sensitivity / devices
    return max(LEAST_VARIANCE, math.ceil(wanted))


def epsilon(rho: float, delta: float) -> float:
    """The ε at this δ of rho-zCDP, by `dp-accounting`: the best over orders of Rényi divergence."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it lies between 0 and 1")
    if rho < 0:
        raise ValueError(f"rho is {rho}: nobody gets privacy back")
    if rho == 0:
        return 0.0
    if rho > _MOST_RHO:
        return math.inf
    return _epsilon(rho, delta)


@lru_cache(maxsize=4096)
def _epsilon(rho: float, delta: float) -> float:
    # Brings SciPy and a second of imports, which only a private campaign has to wait for.
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS)
    accountant.compose(dp_accounting.ZCDpEvent(rho))
    return float(accountant.get_epsilon(delta))


_ORDERS = tuple(1 + 10 ** (step / 64) for step in range(-2 * 64 + 32, 7 * 64))
"""The package's own end at 1,024 and are coarse: small costs would look larger than they are."""


def rho_within(wanted: float, delta: float) -> float:
    """The largest rho whose ε at this δ is at most ``wanted``, to a millionth part below it."""
    if wanted <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while epsilon(high, delta) <= wanted and high < _MOST_RHO:
        low, high = high, 2 * high
    while high - low > 1e-6 * high and high > 1e-300:
        middle = (low + high) / 2
        if epsilon(middle, delta) <= wanted:
            low = middle
        else:
            high = middle
    return low


def noise_multiplier(wanted: float, delta: float, rounds: int) -> float:
    """The noise's deviation over Δ so that so many rounds cost a device (``wanted``, ``delta``)."""
    rho = rho_within(wanted, delta)
    return math.sqrt(rounds / (2 * rho)) if rho else math.inf
