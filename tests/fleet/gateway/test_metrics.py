"""A gateway's figures: a real process, a real Mosquitto, what an HTTP client gets."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client.parser import text_string_to_metric_families

from fleet.gateway.refusals import KINDS
from tests.fleet.gateway.deltas import GATEWAY, delta_chunks
from tests.fleet.gateway.site import Site
from tests.observed import gateway_with_metrics, text_at
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with gateway_with_metrics(["cow-0", "cow-1", "spy"]) as made:
        yield made


def figures(site: Site) -> dict[str, float]:
    """Samples that are told of the gateway, with the reason where there is one."""
    found = {}
    for family in text_string_to_metric_families(text_at(site)):
        for one in family.samples:
            labels = dict(one.labels)
            if one.name.startswith(("tinyfleet_gateway", "tinyfleet_broker")):
                assert labels.pop("gateway") == site.settings.gateway
            found["/".join((one.name, *labels.values()))] = one.value
    return found


def test_what_a_round_brings_is_counted(site: Site) -> None:
    values = np.arange(1000, dtype=np.int32)
    site.add("cow-0", lambda task: (values, 20))
    site.add("cow-1")
    before = figures(site)
    assert before["tinyfleet_gateway_rounds"] == 0
    site.start(names=["cow-0", "cow-1"])
    task = site.devices["cow-1"].tasks.get(timeout=PATIENCE_SECONDS).task
    site.devices["cow-1"].send([replace(one, lease=9) for one in delta_chunks(task, values, 20)])
    count = "tinyfleet_gateway_deltas_refused_total/wrong-lease"
    site.until(lambda: figures(site)[count] == 1, "the delta is refused")
    assert figures(site)["tinyfleet_gateway_rounds"] == 1
    site.devices["cow-1"].send(delta_chunks(task, values, 20))
    reply = site.collect_closed()
    found = figures(site)
    assert found["tinyfleet_gateway_rounds"] == 0
    assert found["tinyfleet_gateway_deltas_accepted_total"] == reply["accepted"] == 2
    assert found["tinyfleet_gateway_tasks_total"] == 2
    sent = sum(one["payload_bytes"] for one in reply["reports"])
    assert found["tinyfleet_gateway_delta_bytes_total"] == sent
    assert found["tinyfleet_gateway_store_bytes"] > 0
    assert found["tinyfleet_gateway_asked_age_seconds"] < PATIENCE_SECONDS
    assert found["tinyfleet_disk_size_bytes/store"] > found["tinyfleet_disk_free_bytes/store"] > 0
    assert found["process_resident_memory_bytes"] > 0


def test_a_broker_that_goes_and_comes_back_shows_with_what_it_says_of_itself(site: Site) -> None:
    def clients() -> float:
        return figures(site).get("tinyfleet_broker_clients", 0)

    # The access list lets the gateway read them.
    site.until(lambda: clients() >= 1, "the broker's figures are there")
    found = figures(site)
    assert found["tinyfleet_gateway_broker_connected"] == 1
    assert found["tinyfleet_broker_dropped_messages_total"] == 0
    assert found["tinyfleet_broker_stored_messages"] >= found["tinyfleet_broker_retained_messages"]
    connections = found["tinyfleet_gateway_broker_connections_total"]
    site.kill_broker()
    site.until(
        lambda: figures(site)["tinyfleet_gateway_broker_connected"] == 0, "the broker is away"
    )
    assert not [name for name in figures(site) if name.startswith("tinyfleet_broker_")]
    site.broker.start()
    site.until(
        lambda: figures(site)["tinyfleet_gateway_broker_connections_total"] == connections + 1,
        "it is back",
    )
    site.until(lambda: clients() >= 1, "and says of itself what it said before")


def test_what_a_broker_says_of_itself_is_for_gateways_and_not_for_devices(site: Site) -> None:
    heard: dict[str, list[str]] = {"spy": [], GATEWAY: []}
    let_in: set[str] = set()
    clients = []
    site.kill_gateway()  # one connection for each name
    try:
        for name, topics in heard.items():
            client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
            client.username_pw_set(name, site.passwords[name])
            client.on_message = lambda client, into, message: into.append(message.topic)
            client.on_subscribe = lambda *_, name=name: let_in.add(name)
            client.user_data_set(topics)
            client.connect("127.0.0.1", site.config.port)
            client.loop_start()
            client.subscribe("$SYS/#")
            clients.append(client)
        site.until(lambda: let_in == heard.keys(), "both are let in, and answered")
        # Twice: what was told at once could have been on its way to the spy.
        for _ in range(2):
            heard[GATEWAY].clear()
            site.until(lambda: "$SYS/broker/uptime" in heard[GATEWAY], "the gateway reads them")
        assert heard["spy"] == []
    finally:
        for client in clients:
            client.disconnect()
            client.loop_stop()
        site.start_gateway()


def test_no_message_of_the_brokers_own_is_taken_for_one_of_the_fleet(site: Site) -> None:
    assert "$SYS" not in site.log


def test_every_reason_that_the_specification_names_is_counted_from_the_start(site: Site) -> None:
    text = (ROOT / "docs" / "specification" / "gateway.md").read_text("utf-8")
    part = text[text.index("Refusal reasons: ") : text.index("`malformed` is counted per message")]
    assert {"late", "duplicate", *re.findall(r"`([a-z-]+)`", part)} == set(KINDS)
    kinds = [name for name in figures(site) if "refused_total/" in name]
    assert {name.split("/")[1] for name in kinds} == set(KINDS)


def test_a_port_that_is_taken_is_named(site: Site) -> None:
    with gateway_with_metrics([]) as other:
        other.kill_gateway()
        other.settings = other.settings.model_copy(update={"metrics": site.settings.metrics})
        other.settings.write(other.folder / "gateway.toml")
        command = [sys.executable, "-m", "fleet.gateway", "--config"]
        ended = subprocess.run(
            [*command, str(other.folder / "gateway.toml")], capture_output=True, text=True
        )
    assert ended.returncode == 1
    assert f"{site.settings.metrics.port}" in ended.stderr
    assert "choose another 'port'" in ended.stderr


def test_a_gateway_that_is_asked_for_no_metrics_loads_nothing_of_them() -> None:
    code = "import sys, fleet.gateway.daemon; assert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
