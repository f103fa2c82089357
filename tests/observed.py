"""The figures that a real service and a real gateway tell Prometheus."""

from __future__ import annotations

import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.campaign import RoundKind, RoundPlan
from fleet.gateway.config import MetricsSettings
from fleet.ports import free_port
from fleet.store import SqlStore
from tests.fleet.gateway.site import Site as GatewaySite
from tests.fleet.service.conftest import Site, campaign, make_site


@contextmanager
def busy_service(folder: Path, **options: object) -> Iterator[Site]:
    """A service with something to tell of everything: a campaign whose round runs and whose
    gate has failed, a webhook that fails, a disk."""
    folders = {"store": folder, "work": folder}
    site = make_site(
        SqlStore(), **{"deleted": lambda: {"reports": 1}, "folders": folders, **options}
    )
    try:
        ops, store = site.operations, site.store
        of = site.client().start_campaign(campaign()).campaign
        ops.gateways.seen("gw1")
        store.claim(of, "driver")
        plan = RoundPlan(1, RoundKind.TRAIN, 7, "", 4, (), {}, {})
        store.begin_round(of, "driver", 1, plan.kind.value, plan.to_json())
        store.note_progress(of, "driver", 1, 3)
        ops.stages.save_judged(of, 0, "fail", [])
        store.set_state(of, "driver", "waiting", "a gate failed", "gate:0")
        hook, _ = ops.webhooks.add("https://example.com/hook")
        ops.webhooks.failed(hook.webhook, "it answers 500", 0.0)
        site.ask("viewer", "GET", "/v1/campaigns")
        yield site
    finally:
        site.http.close()
        store.close()


@contextmanager
def gateway_with_metrics(names: list[str]) -> Iterator[GatewaySite]:
    """A gateway's process with its broker, whose settings ask for metrics."""
    # Not tmp_path: its name can be too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as folder:
        site = GatewaySite(Path(folder), names)
        # So that nobody waits 10 s for what the broker says of itself.
        with (site.broker.folder / "mosquitto.conf").open("a") as config:
            config.write("sys_interval 1\n")
        site.kill_broker()
        site.broker.start()
        metrics = MetricsSettings(port=free_port())
        site.settings = site.settings.model_copy(update={"metrics": metrics})
        try:
            site.start_gateway()
            yield site
        finally:
            site.close()


def text_at(site: GatewaySite) -> str:
    """What Prometheus would get of it now."""
    assert site.settings.metrics
    url = f"http://127.0.0.1:{site.settings.metrics.port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()
