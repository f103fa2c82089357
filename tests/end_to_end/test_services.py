"""Services over real Flower processes and gateways without MQTT: several campaigns at once, and a
second service that takes over when the first is killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet.campaign import CampaignConfig
from fleet.coordinator.settings import ApiSettings, CoordinatorSettings, SuperLinkSettings
from fleet.coordinator.superlink import SuperNode
from fleet.errors import ServiceError
from fleet.ports import free_port
from fleet.service.client import Client
from fleet.service.schema import DeviceToAdd
from fleet.store import ENDED_STATES, Gateways, SqlStore, Tokens
from tests import processes
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.oracle import assert_every_delta_counted_once
from tests.fleet.coordinator.plain_gateway import PlainGateway
from tests.patience import wait_for_service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERDS = ("cows", "goats", "sheep")


@dataclass
class Services:
    """A store, gateways that two services share, and the services that run."""

    folder: Path
    store: SqlStore
    secret: str
    superlink: SuperLinkSettings
    running: dict[str, tuple[subprocess.Popen[bytes], Client]] = field(default_factory=dict)

    def serve(self, name: str) -> Client:
        port = free_port()
        path = self.folder / f"{name}.toml"
        CoordinatorSettings(
            fleet="test",
            store="sqlite:///store.sqlite",
            api=ApiSettings(port=port),
            superlink=self.superlink,
        ).write(path)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fleet.cli", "serve", "--config", str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        client = Client(f"http://127.0.0.1:{port}", self.secret)
        self.running[name] = process, client
        wait_for_service(lambda: _answers(client), lambda: self.log(name))
        return client

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def kill(self, name: str) -> None:
        process, client = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        client.close()

    def stop(self) -> None:
        for process, client in self.running.values():
            client.close()
            process.send_signal(signal.SIGTERM)
        for process, _ in self.running.values():
            assert process.wait(60) == 0
        left = processes.running("superlink", str(self.folder / "flower"))
        assert not left, "a service that was told to stop has left its SuperLink behind"


def _answers(client: Client) -> bool:
    with contextlib.suppress(ServiceError):
        client.ready()
        return True
    return False


@pytest.fixture
def services() -> Iterator[Services]:
    # Socket paths have to be short; pytest's folders aren't.
    with tempfile.TemporaryDirectory(prefix="tf") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        store = SqlStore(f"sqlite:///{folder / 'store.sqlite'}")
        stack.callback(store.close)
        _, secret = Tokens(store).issue("test", "admin", 86_400)
        port = free_port()
        found = Services(folder, store, secret, SuperLinkSettings(port=port))
        for gateway in ("g1", "g2"):
            Gateways(store).add(gateway, f"site-{gateway}")
            devices = [
                small_model.device_entry(f"{gateway}-{number}", "ab"[number % 2])
                for number in range(12)
            ]
            one = PlainGateway(gateway, folder / f"{gateway}.sock", devices)
            stack.callback(one.close)
            stack.enter_context(
                SuperNode(folder / "nodes", f"127.0.0.1:{port}", gateway, one.socket_path)
            )
        stack.callback(found.stop)
        yield found


def provision(client: Client) -> None:
    for text in small_model.manifest_texts("a", "b").values():
        client.import_bundle("small", text, small_model.blob())
    client.add_devices(
        [
            DeviceToAdd(
                device=f"{gateway}-{number}",
                site=f"site-{gateway}",
                labels={"herd": HERDS[number % 3]},
            )
            for gateway in ("g1", "g2")
            for number in range(12)
        ]
    )


def config(name: str, **fields: object) -> CampaignConfig:
    settings = {"model": "small", "rounds": 2, "min_devices": 4, "deadline_seconds": 600, **fields}
    return CampaignConfig.model_validate({"name": name, **settings})


def test_campaigns_at_once_end_right_and_a_second_service_goes_on_where_the_first_was_killed(
    services: Services,
) -> None:
    first = services.serve("first")
    provision(first)
    wait_for_service(lambda: first.ready().ready, lambda: services.log("first"))
    second = services.serve("second")
    assert (first.ready().leader, second.ready().leader) == (True, False)
    # Both answer, whoever leads.
    assert second.models()[0].model == "small"

    campaigns = [
        (first, second)[number % 2]
        .start_campaign(config(herd, target=f'labels["herd"] == "{herd}"'))
        .campaign
        for number, herd in enumerate(HERDS)
    ]
    wait_for_service(
        lambda: all(len(second.campaign(one).rounds) >= 2 for one in campaigns),
        lambda: services.log("first"),
    )
    services.kill("first")
    # The machine of the first service has gone.
    processes.kill("flwr-serverapp", f"127.0.0.1:{services.superlink.port}")
    wait_for_service(
        lambda: all(second.campaign(one).state in ENDED_STATES for one in campaigns),
        lambda: services.log("second"),
    )
    assert second.ready().leader
    asked: dict[str, set[str]] = {}
    for one in campaigns:
        detail = second.campaign(one)
        assert (detail.state, detail.reason) == ("finished", "")
        assert [(of.round, of.state) for of in detail.rounds] == [
            (number, "done") for number in range(4)
        ]
        assert_every_delta_counted_once(services.store, one)
        asked[one] = {
            assignment["device"]
            for of in services.store.rounds(one)
            for assignment in of.plan["assignments"]
        }
    # Eight devices each, nobody in two.
    assert [len(names) for names in asked.values()] == [8, 8, 8]
    assert len(set().union(*asked.values())) == 24
    # Each began with the version that was newest then, and made one of its own.
    made = [second.campaign(one).made for one in campaigns]
    assert len(set(made)) == 3
