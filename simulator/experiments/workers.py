"""Where devices run: in this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

import re

from simulator.errors import ExperimentError
from simulator.experiments.setting import MakePool
from simulator.virtual.pool import LocalPool, ProcessPool

_RAY = re.compile(r"ray(?:/(?P<actors>[1-9]\d{0,4}))?(?::(?P<address>\S+))?")


def pool_with(workers: int | str) -> MakePool:
    """Pools with so many processes, in this one where it is one; or what a text says.

    ``ray``: a local cluster that is started for it; ``ray:ADDRESS``: one that runs already. As many
    actors as the cluster has processors, or ``ray/8``, ``ray/8:ADDRESS``.

    Raises: ExperimentError where it says something else.
    """
    if str(workers).isdecimal() and 1 <= int(workers) <= 4096:
        number = int(workers)
        return LocalPool if number == 1 else lambda one: ProcessPool(one, number)
    found = _RAY.fullmatch(str(workers))
    if found is None:
        raise ExperimentError(
            f"workers {workers}: give a number of processes, from 1, or ray, ray:ADDRESS, ray/8"
        )
    from simulator.experiments.ray_pool import RayPool  # it takes a second, and may not be there

    actors = int(found["actors"]) if found["actors"] else None
    return lambda population: RayPool(population, actors, found["address"])
