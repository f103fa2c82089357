"""The broker's configuration, judged by a real Mosquitto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import BrokerError, ConfigurationError
from fleet.gateway.broker import (
    HASH_PATTERN,
    Broker,
    BrokerConfig,
    Tls,
    new_passwords,
    password_hash,
    write_broker_config,
)
from fleet.ports import free_port
from fleet.protocol import Delta
from fleet.security import Authority
from tests.fleet.gateway.broker_client import Client

NAMES = ["cow-1", "cow-2"]
CHUNK = f"fleet/barn/blob/{'ab' * 8}/0/0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, dict[str, str]]]:
    passwords = new_passwords(["north", "south", *NAMES])
    config = BrokerConfig(
        "barn",
        {name: passwords[name] for name in ("north", "south")},
        {name: passwords[name] for name in NAMES},
        port=free_port(),
    )
    with Broker(tmp_path_factory.mktemp("broker"), config) as broker:
        yield broker, passwords


@pytest.fixture
def login(site: tuple[Broker, dict[str, str]]) -> Iterator[Any]:
    broker, passwords = site
    clients: list[Client] = []

    def connect(user: str, password: str | None = None) -> Client:
        clients.append(Client(broker, user, password or passwords[user]))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def test_passwords_are_checked_and_never_stored_in_plain_text(
    site: tuple[Broker, dict[str, str]], login: Any
) -> None:
    broker, passwords = site
    assert login("cow-1").refusal is None
    assert login("cow-2", "wrong").refusal is not None
    assert login("nobody", "wrong").refusal is not None
    written = "".join(p.read_text() for p in broker.folder.iterdir() if p.is_file())
    assert not any(password in written for password in passwords.values())


def test_a_device_may_only_use_its_own_topics(login: Any) -> None:
    cow = login("cow-1")
    assert cow.may_write("fleet/barn/dev/cow-1/announce")
    assert cow.may_write("fleet/barn/dev/cow-1/status")
    assert cow.may_write("fleet/barn/gw/north/cow-1/delta")
    assert cow.may_write("fleet/barn/gw/south/cow-1/delta")
    for topic in (
        "fleet/barn/dev/cow-2/announce",
        "fleet/barn/dev/cow-1/other",
        "fleet/barn/to/cow-1/task",
        "fleet/barn/to/cow-1/receipt",
        "fleet/barn/gw/north/cow-2/delta",
        CHUNK,
        "fleet/other/dev/cow-1/announce",
        "anything",
    ):
        assert not cow.may_write(topic), topic


def test_a_device_cannot_leave_messages_under_gateways_that_it_made_up(login: Any) -> None:
    cow = login("cow-1")
    for number in range(3):
        assert not cow.may_write(f"fleet/barn/gw/made-up-{number}/cow-1/delta")


def test_a_device_receives_nothing_of_others(login: Any) -> None:
    cow, other, north = login("cow-1"), login("cow-2"), login("north")
    own = {"fleet/barn/to/cow-1/task", "fleet/barn/to/cow-1/receipt"}
    cow.subscribe("#", "fleet/barn/to/cow-1/+")
    assert other.may_write("fleet/barn/gw/north/cow-2/delta")
    assert other.may_write("fleet/barn/dev/cow-2/announce")
    assert north.may_write("fleet/barn/to/cow-2/task")
    assert north.may_write("fleet/barn/to/cow-2/receipt")
    assert north.may_write(CHUNK)
    for topic in sorted(own):
        assert north.may_write(topic)
    last = f"fleet/barn/blob/{'ab' * 8}/0/1"
    assert north.may_write(last)
    assert set(iter(cow.next, last)) == {CHUNK, *own}


def test_a_gateway_sees_its_own_deltas_and_not_those_of_another(login: Any) -> None:
    north, south, cow = login("north"), login("south"), login("cow-1")
    for gateway in (north, south):
        gateway.subscribe("fleet/barn/gw/+/+/delta")
    for name in ("south", "north"):
        assert cow.may_write(f"fleet/barn/gw/{name}/cow-1/delta")
    assert south.next() == "fleet/barn/gw/south/cow-1/delta"
    assert north.next() == "fleet/barn/gw/north/cow-1/delta", "the other one didn't come before"
    assert not north.may_write("fleet/barn/dev/cow-1/announce")
    assert north.may_write("fleet/barn/gw/north/cow-1/delta"), "to take away what a device retained"


def test_the_longest_delta_passes_the_broker(login: Any) -> None:
    north, cow = login("north"), login("cow-1")
    north.subscribe("fleet/barn/gw/north/+/delta")
    cow.client.publish("fleet/barn/gw/north/cow-1/delta", bytes(Delta.MAX_BYTES), qos=1)
    assert north.next() == "fleet/barn/gw/north/cow-1/delta"


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with Broker(tmp_path / "one", BrokerConfig("barn", {}, port=free_port())) as first:
        second = Broker(tmp_path / "two", BrokerConfig("barn", {}, port=first.port))
        with pytest.raises(BrokerError, match="Address already in use"):
            second.start()


def test_with_tls_a_broker_listens_beside_loopback_and_guards_sessions_there_too(
    tmp_path: Path,
) -> None:
    authority = Authority.create(tmp_path / "a b", "barn")
    issued = authority.issue("broker", ["127.0.0.1"])
    tls = Tls(issued.certificate, issued.key, free_port(), "127.0.0.1")
    passwords = {"cow-1": "moo", "cow-2": "muh"}
    config = BrokerConfig("barn", {"north": "n"}, passwords, port=free_port(), tls=tls)
    with Broker(tmp_path / "site", config) as broker:
        plain = Client(broker, "north", "n")
        first = Client(broker, "cow-1", "moo", authority=authority.certificate)
        second = Client(broker, "cow-2", "muh", "cow-1", authority=authority.certificate)
        wrong = Client(broker, "cow-2", "wrong", authority=authority.certificate)
        assert [one.refusal for one in (plain, first, second)] == [None] * 3
        assert wrong.refusal is not None
        plain.subscribe("fleet/barn/dev/+/status")
        assert first.may_write("fleet/barn/dev/cow-1/status")
        assert second.may_write("fleet/barn/dev/cow-2/status")
        assert [plain.next(), plain.next()] == [f"fleet/barn/dev/{cow}/status" for cow in passwords]
        assert not first.ended.is_set(), "another client took its identifier"
        for one in (plain, first, second, wrong):
            one.close()
    with pytest.raises(ConfigurationError, match="can't stand in a line"):
        Tls(tmp_path / "a\nlistener 1", issued.key)


def test_hashes_have_the_one_form_that_is_let_in() -> None:
    assert all(HASH_PATTERN.fullmatch(password_hash(str(n))) for n in range(50))


def test_names_that_could_widen_the_access_list_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'#' is no name"):
        BrokerConfig("barn", {}, {"#": "secret"})
    with pytest.raises(ConfigurationError, match="one name; rename one"):
        BrokerConfig("barn", {"cow": "secret"}, {"cow": "secret"})


def test_the_templates_in_deploy_are_what_the_code_writes() -> None:
    folder = Path(__file__).parents[3] / "deploy" / "mosquitto"
    config = BrokerConfig("FLEET", {"GATEWAY": ""}, host="0.0.0.0")
    assert (folder / "mosquitto.conf").read_text() == config.config_text("/etc/mosquitto/tinyfleet")
    assert (folder / "access").read_text() == config.access_text()


def test_a_kill_while_files_are_written_leaves_the_old_ones_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_broker_config(tmp_path, BrokerConfig("barn", {"north": "a"}, {"cow": "b"}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fleet.files.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_broker_config(tmp_path, BrokerConfig("barn", {"north": "a"}, {"pig": "c"}))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    write_broker_config(tmp_path, BrokerConfig("barn", {"north": "a"}, {"pig": "c"}))
    assert "pig" in (tmp_path / "passwords").read_text()
    for name in ("passwords", "own.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == before.keys()
