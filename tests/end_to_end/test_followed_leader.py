"""Gateways follow whoever leads where each service has a SuperLink of its own, as in a cluster."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.coordinator.settings import SuperLinkSettings
from fleet.coordinator.superlink import SuperNode
from fleet.ports import free_port
from fleet.security import Authority
from fleet.store import Gateways, SqlStore, Tokens
from tests import processes
from tests.end_to_end.test_services import Services
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.node_keys import write_key
from tests.fleet.coordinator.plain_gateway import PlainGateway
from tests.patience import wait_for_service, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NAME = "superlink.farm.svc"
MACHINES = ("127.0.0.2", "127.0.0.3")
# Stands for a headless Service: the name has the addresses of all.
RESOLVER = f"""
import socket
usual = socket.getaddrinfo
def several(host, *rest, **named):
    if host != {NAME!r}:
        return usual(host, *rest, **named)
    return [one for where in {MACHINES!r} for one in usual(where, *rest, **named)]
socket.getaddrinfo = several
"""


@pytest.fixture
def folder(no_proxy: None) -> Iterator[Path]:
    # Socket paths have to be short; pytest's folders aren't.
    with tempfile.TemporaryDirectory(prefix="tf") as name:
        (Path(name) / "sitecustomize.py").write_text(RESOLVER, "utf-8")
        yield Path(name)


def test_a_gateway_follows_the_leader_by_a_name_that_has_the_addresses_of_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        authority = Authority.create(folder / "ca", "test")
        issued = authority.issue("superlink", (NAME, *MACHINES))
        key = write_key(folder / "north")
        (folder / "keys").mkdir()
        (folder / "north.pub").rename(folder / "keys" / "north.pub")
        store = SqlStore(f"sqlite:///{folder / 'store.sqlite'}")
        stack.callback(store.close)
        _, secret = Tokens(store).issue("test", "admin", 86_400)
        Gateways(store).add("north", "north")
        port = free_port()
        machines = []
        for number, host in enumerate(MACHINES):
            own = folder / f"m{number}"
            own.mkdir()
            link = SuperLinkSettings(
                port=port,
                host=host,
                certificate=issued.certificate,
                key=issued.key,
                ca=authority.certificate,
                gateway_keys=folder / "keys",
            )
            # One store for both.
            (own / "store.sqlite").symlink_to(folder / "store.sqlite")
            machines.append(Services(own, store, secret, link))
        first, second = machines
        leads = first.serve("first")
        wait_for_service(lambda: leads.ready().ready, lambda: first.log("first"))
        waits = second.serve("second")
        stack.callback(second.stop)
        north = PlainGateway("north", folder / "n.sock", [small_model.device_entry("n-0", "a")])
        stack.callback(north.close)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
        node = SuperNode(
            *(folder / "node", f"{NAME}:{port}", "north", north.socket_path),
            ca=authority.certificate,
            key=key,
        )
        stack.enter_context(node)

        def is_asked_again(than: int) -> bool:
            node.start()  # as a gateway does where its SuperNode has ended
            return len(north.requests) > than

        wait_until(lambda: is_asked_again(0), node.log_tail, look_seconds=0.5)
        assert not waits.ready().leader

        # The first machine has gone, with all that ran there.
        first.kill("first")
        processes.kill("superlink", str(first.folder))
        processes.kill(f"{MACHINES[0]}:{port}")
        asked = len(north.requests)
        wait_until(lambda: is_asked_again(asked), node.log_tail, look_seconds=0.5)
        assert waits.ready().leader
