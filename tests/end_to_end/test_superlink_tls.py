"""A service whose SuperLink listens beyond loopback, over real Flower processes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet.coordinator.settings import SuperLinkSettings
from fleet.coordinator.superlink import SuperNode
from fleet.ports import free_port
from fleet.security import Authority
from fleet.service.client import Client
from fleet.store import Gateways, SqlStore, Tokens
from tests.end_to_end.test_services import Services
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.node_keys import write_key
from tests.fleet.coordinator.plain_gateway import PlainGateway
from tests.patience import wait_for_service, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Site:
    """A service over TLS, and whom to believe."""

    services: Services
    client: Client
    authority: Authority
    keys: Path
    stack: contextlib.ExitStack

    def gateway(self, name: str) -> PlainGateway:
        socket = self.services.folder / f"{name}.sock"
        one = PlainGateway(name, socket, [small_model.device_entry(f"{name}-0", "a")])
        self.stack.callback(one.close)
        return one

    def node(self, name: str, of: PlainGateway, **options: Any) -> SuperNode:
        """A SuperNode that runs; `name` is that of its log, too."""
        folder = self.services.folder / f"node-{name}"
        address = f"127.0.0.1:{self.services.superlink.port}"
        return self.stack.enter_context(
            SuperNode(folder, address, of.name, of.socket_path, **options)
        )

    def wait_for(self, gateway: str, node: SuperNode) -> None:
        """Until the service has heard of a gateway, whose SuperNode is started again till then.

        As a gateway does: a SuperNode ends when the SuperLink doesn't know its key yet.
        """

        def is_heard() -> bool:
            node.start()
            return gateway in self.heard()

        wait_for_service(is_heard, node.log_tail)

    def heard(self) -> set[str]:
        return {one.gateway for one in self.client.gateways() if one.last_seen is not None}


@pytest.fixture
def site() -> Iterator[Site]:
    # Socket paths have to be short; pytest's folders aren't.
    with tempfile.TemporaryDirectory(prefix="tf") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        authority = Authority.create(folder / "ca", "test")
        issued = authority.issue("superlink", ("superlink.barn.local", "127.0.0.1"))
        keys = folder / "keys"
        keys.mkdir()
        store = SqlStore(f"sqlite:///{folder / 'store.sqlite'}")
        stack.callback(store.close)
        _, secret = Tokens(store).issue("test", "admin", 86_400)
        for gateway in ("north", "south", "west"):
            Gateways(store).add(gateway, gateway)
        link = SuperLinkSettings(
            port=free_port(),
            host="0.0.0.0",
            certificate=issued.certificate,
            key=issued.key,
            ca=authority.certificate,
            gateway_keys=keys,
        )
        services = Services(folder, store, secret, link)
        stack.callback(services.stop)
        client = services.serve("first")
        wait_for_service(lambda: client.ready().ready, lambda: services.log("first"))
        yield Site(services, client, authority, keys, stack)


def test_a_gateway_that_knows_the_authority_and_is_known_by_its_key_gets_in_and_no_other(
    site: Site,
) -> None:
    ca, folder = site.authority.certificate, site.services.folder
    north, south, west = (site.gateway(one) for one in ("north", "south", "west"))
    key = write_key(folder / "north")
    (folder / "north.pub").rename(site.keys / "north.pub")
    other = Authority.create(folder / "other", "test").certificate
    outside = write_key(folder / "west")
    believes_another = site.node("south", south, ca=other, key=key)
    has_no_key = site.node("west", west, ca=ca)
    has_a_strange_key = site.node("west-again", west, ca=ca, key=outside)
    # The service's own ServerApp talks over TLS as well, or it would hear of nobody.
    site.wait_for("north", site.node("north", north, ca=ca, key=key))
    for one in (has_no_key, has_a_strange_key):
        wait_until(lambda one=one: not one.alive(), one.log_tail)
    log = folder / "flower" / "logs" / "superlink.log"
    wait_until(lambda: "retrying" in believes_another.log_tail(), believes_another.log_tail)
    assert north.requests
    assert not south.requests
    assert not west.requests
    assert site.heard() == {"north"}, log.read_text()[-3000:]

    # Once its key lies there, too.
    (folder / "west.pub").rename(site.keys / "west.pub")
    wait_until(lambda: log.read_text().count("Created node_id") == 2, "the key to be taken")
    site.wait_for("west", has_a_strange_key)
    assert site.heard() == {"north", "west"}


def test_whoever_loses_their_key_is_out_and_a_new_one_lets_them_in_again(site: Site) -> None:
    ca, folder = site.authority.certificate, site.services.folder
    north = site.gateway("north")
    key = write_key(folder / "north")
    public = (folder / "north.pub").rename(site.keys / "north.pub")
    node = site.node("north", north, ca=ca, key=key)
    site.wait_for("north", node)
    (site.keys / "north.pub").unlink()
    wait_until(lambda: not node.alive(), node.log_tail)
    write_key(folder / "north")
    (folder / "north.pub").rename(public)
    heard = len(north.requests)

    def is_back() -> bool:
        node.start()  # as a gateway does, until it is let in
        return len(north.requests) > heard

    wait_for_service(is_back, node.log_tail)
