"""The benchmark of the registry runs, and sees all devices."""

from __future__ import annotations

from benchmarks import registry
from fleet.store import Registry, SqlStore


def test_every_filter_is_measured_over_all_devices() -> None:
    store = SqlStore()
    figures = registry.measure(Registry(store), 300)
    assert sum(name.startswith("preview: ") for name in figures) == len(registry.FILTERS)
    assert all(value > 0 for value in figures.values())
    assert len(store_devices := Registry(store).page(registry.Filter.parse(""), limit=1000)) == 300
    assert all(one.observed is not None for one in store_devices)
    store.close()
