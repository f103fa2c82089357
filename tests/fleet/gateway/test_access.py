"""Users of a site's broker as the coordinator says, judged by a real Mosquitto."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import ConfigurationError, GatewayError, StoreError
from fleet.gateway.access import AccessBook, read_entries
from fleet.gateway.broker import (
    OWN_FILE,
    PASSWORD_FILE,
    PID_FILE,
    Broker,
    BrokerConfig,
    Tls,
    new_passwords,
    password_hash,
    write_broker_config,
)
from fleet.ports import free_port
from fleet.security import Authority
from tests.fleet.gateway.broker_client import Client
from tests.fleet.gateway.deltas import GATEWAY
from tests.fleet.gateway.site import FakeDevice, Site
from tests.patience import PATIENCE_SECONDS, wait_until

MakeSite = Callable[[list[str]], Site]

# What docs/howto/broker.md promises, and a hundred times what it takes.
ENDS_WITHIN_SECONDS = 10.0

NAMES = ["north", "south", "cow-1", "cow-2", "cow-3"]
PASSWORDS = new_passwords(NAMES)
HASHES = {name: password_hash(password) for name, password in PASSWORDS.items()}


def page(*devices: str, gateways: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Any:
    return {
        **{name: {"role": "device", "hash": HASHES[name]} for name in devices},
        **{name: {"role": "gateway", "hash": HASHES[name]} for name in gateways},
        **dict.fromkeys(without),
    }


class Kept:
    """A broker and the book of its users."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder / "ca", "barn")
        issued = self.authority.issue("broker", ["127.0.0.1"])
        self.tls = Tls(issued.certificate, issued.key, free_port(), "127.0.0.1")
        config = BrokerConfig("barn", {"north": PASSWORDS["north"]}, port=free_port(), tls=self.tls)
        self.broker = Broker(folder / "broker", config)
        self.path = folder / "book.json"
        self.book = AccessBook(self.broker.folder, self.path)
        self.clients: list[Client] = []

    def apply(self, entries: Any, cursor: int = 1) -> None:
        self.book.apply(read_entries(entries), cursor)

    def login(self, name: str, *, tls: bool = False, password: str = "") -> Client:
        authority = self.authority.certificate if tls else None
        client = Client(self.broker, name, password or PASSWORDS[name], authority=authority)
        self.clients.append(client)
        return client

    def may_enter(self, name: str, password: str = "") -> bool:
        return self.login(name, password=password).refusal is None

    def files(self) -> dict[str, tuple[bytes, int, int]]:
        """What anybody would notice of a change."""
        found = [path for path in self.broker.folder.iterdir() if path.suffix != ".log"]
        return {
            path.name: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
            for path in (*found, *([self.path] if self.path.exists() else []))
        }


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    with made.broker:
        yield made
        for client in made.clients:
            client.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_live_connection_of_a_removed_device_ends_and_the_others_stay(
    kept: Kept, tls: bool
) -> None:
    kept.apply(page("cow-1", "cow-2"))
    north, removed, other = kept.login("north"), kept.login("cow-1", tls=tls), kept.login("cow-2")
    assert removed.may_write("fleet/barn/dev/cow-1/status")
    begin = time.monotonic()
    kept.apply(page(without=("cow-1",)), cursor=2)
    assert removed.ended.wait(ENDS_WITHIN_SECONDS)
    print(f"the connection ended after {time.monotonic() - begin:.3f} s")
    wait_until(lambda: removed.refusal is not None, "it tries again and is refused")
    assert not kept.may_enter("cow-1")
    assert other.may_write("fleet/barn/dev/cow-2/status")
    assert not other.ended.is_set()
    assert not north.ended.is_set()


def test_of_removals_one_right_after_the_other_all_take_effect(kept: Kept) -> None:
    # Mosquitto loses a SIGHUP while it asks all connections for their passwords again: that
    # takes as long with a few and slow hashes as with thousands.
    names = [f"cow-{number}" for number in range(20)]
    salt = bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", b"moo", salt, 9999, 64)
    slow = "$7$9999$" + "$".join(base64.b64encode(part).decode() for part in (salt, digest))
    kept.apply({name: {"role": "device", "hash": slow} for name in names})
    clients = {name: kept.login(name, password="moo") for name in names}
    for number, name in enumerate(names[:6], 2):
        kept.apply({name: None}, number)
        # The first one's ends early, while the broker has the others before it.
        assert clients[name].ended.wait(ENDS_WITHIN_SECONDS), name
    assert not any(clients[name].ended.is_set() for name in names[6:])


def test_a_new_device_may_log_in_when_its_entry_has_come(kept: Kept) -> None:
    kept.apply(page("cow-1"))
    assert not kept.may_enter("cow-3")
    kept.apply(page("cow-3"), cursor=2)
    assert kept.may_enter("cow-3")
    assert kept.may_enter("cow-1")


def test_a_device_with_a_new_password_is_out_until_it_uses_that(kept: Kept) -> None:
    kept.apply(page("cow-1"))
    live = kept.login("cow-1")
    entry = {"role": "device", "hash": password_hash("new")}
    kept.apply({"cow-1": entry}, cursor=2)
    assert live.ended.wait(PATIENCE_SECONDS)
    assert not kept.may_enter("cow-1")
    assert kept.may_enter("cow-1", "new")


def test_the_gateway_itself_is_never_locked_out(kept: Kept) -> None:
    north = kept.login("north")
    north.subscribe("fleet/barn/gw/north/+/delta")
    other_hash = password_hash("other")
    kept.apply(page("cow-1"))
    for cursor, entries in enumerate(
        (
            {},
            {"north": None},
            {"north": {"role": "device", "hash": other_hash}},
            {"north": {"role": "gateway", "hash": other_hash}},
            {"north": None, "cow-1": None},
        ),
        2,
    ):
        kept.apply(entries, cursor)
        assert (kept.broker.folder / PASSWORD_FILE).read_text().count("north:") == 1
        kept.apply(page("cow-1", "cow-2"), cursor)
        assert kept.may_enter("cow-2")
        cow = kept.login("cow-1")
        assert cow.may_write("fleet/barn/gw/north/cow-1/delta")
        assert north.next() == "fleet/barn/gw/north/cow-1/delta"
        kept.apply(page(without=("cow-2",)), cursor)
    assert not north.ended.is_set()
    assert kept.may_enter("north")


def test_a_gateway_of_the_coordinator_has_a_gateways_rights_as_long_as_it_is_one(
    kept: Kept,
) -> None:
    kept.apply(page("cow-1", gateways=("south",)))
    south, cow = kept.login("south"), kept.login("cow-1")
    assert south.may_write("fleet/barn/to/cow-1/task")
    assert cow.may_write("fleet/barn/gw/south/cow-1/delta")
    kept.apply(page("south"), cursor=2)
    assert not south.may_write("fleet/barn/to/cow-1/task")
    assert not cow.may_write("fleet/barn/gw/south/cow-1/delta")
    assert south.may_write("fleet/barn/dev/south/status"), "it is a device now"
    assert not south.ended.is_set()


def test_what_is_lost_with_the_brokers_folder_is_made_again_of_the_book(kept: Kept) -> None:
    kept.apply(page("cow-1", "cow-2"), cursor=7)
    kept.broker.kill()
    for path in kept.broker.folder.iterdir():
        path.unlink()
    again = AccessBook(kept.broker.folder, kept.path)
    again.keep()
    assert again.cursor == 7
    assert again.entries == read_entries(page("cow-1", "cow-2"))
    kept.broker.start()
    assert all(kept.may_enter(name) for name in ("north", "cow-1", "cow-2"))
    assert not kept.may_enter("cow-3")
    secret = [PASSWORD_FILE, "access", OWN_FILE]
    for path in (kept.path, *(kept.broker.folder / name for name in secret)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_somebody_wrote_into_the_brokers_files_goes_with_the_next_page(kept: Kept) -> None:
    kept.apply(page("cow-1"))
    with (kept.broker.folder / PASSWORD_FILE).open("a") as file:
        file.write(f"cow-3:{HASHES['cow-3']}\n")
    kept.broker.reload()
    wait_until(lambda: kept.may_enter("cow-3"))
    intruder = kept.login("cow-3")
    kept.apply({}, cursor=2)
    assert intruder.ended.wait(PATIENCE_SECONDS)


def test_a_page_that_comes_twice_changes_nothing(kept: Kept) -> None:
    entries = page("cow-1", without=("cow-2",))
    kept.apply(entries, cursor=3)
    before, told = kept.files(), kept.broker.log_path.read_text().count("ACL pattern")
    kept.apply(entries, cursor=3)
    assert kept.files() == before
    assert kept.may_enter("cow-1")
    assert kept.broker.log_path.read_text().count("ACL pattern") == told, "nor is the broker told"


GOOD = {"role": "device", "hash": HASHES["cow-3"]}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([], "entries must be a map"),
        (None, "entries must be a map"),
        ({"cow\nroot": GOOD}, r"'cow\\nroot' is no name"),
        ({"cow-3\n": GOOD}, r"'cow-3\\n' is no name"),
        ({"cow:x": GOOD}, "'cow:x' is no name"),
        ({"#": GOOD}, "'#' is no name"),
        ({"": GOOD}, "'' is no name"),
        ({7: GOOD}, "7 is no name"),
        ({"x" * 10_000_000: GOOD}, "xxx…? is no name"),
        ({"cow-3": {**GOOD, "hash": HASHES["cow-3"] + "\n"}}, "cow-3: hash must be"),
        ({"cow-3": {**GOOD, "hash": HASHES["cow-3"] + "\nroot:x"}}, "cow-3: hash must be"),
        ({"cow-3": {**GOOD, "hash": "$7$101$" + "A" * 10_000_000}}, "cow-3: hash must be"),
        ({"cow-3": {**GOOD, "hash": HASHES["cow-3"].replace("101", "1" * 9)}}, "cow-3: hash must"),
        ({"cow-3": {**GOOD, "hash": HASHES["cow-3"].replace("$7$", "$6$")}}, "cow-3: hash must be"),
        ({"cow-3": {**GOOD, "hash": "plain text"}}, "cow-3: hash must be .* 'plain text'"),
        ({"cow-3": {**GOOD, "hash": b"x"}}, "cow-3: hash must be .* a bytes"),
        ({"cow-3": {**GOOD, "role": "admin"}}, "cow-3: role must be device or gateway.*'admin'"),
        ({"cow-3": {**GOOD, "role": ["device"]}}, "cow-3: role must be device or gateway"),
        ({"cow-3": {"role": "device"}}, "cow-3: role and hash are wanted"),
        ({"cow-3": {**GOOD, "more": 1}}, "cow-3: role and hash are wanted"),
        ({"cow-3": "device"}, "cow-3: role and hash are wanted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_entries_are_refused_by_name_and_change_nothing(
    tmp_path: Path, entries: Any, problem: str
) -> None:
    config = BrokerConfig("barn", {"north": PASSWORDS["north"]}, port=free_port())
    write_broker_config(tmp_path / "broker", config)
    book = AccessBook(tmp_path / "broker", tmp_path / "book.json")
    before = {path: path.read_bytes() for path in (tmp_path / "broker").iterdir()}
    if isinstance(entries, dict):
        entries = {**page("cow-1"), **entries}
    with pytest.raises(GatewayError, match=problem) as refused:
        book.apply(read_entries(entries), 1)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in (tmp_path / "broker").iterdir()} == before
    assert (book.cursor, book.entries) == (0, {})


def test_a_page_that_could_not_take_effect_is_not_in_the_book_and_may_come_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.apply(page("cow-1"))
    live = kept.login("cow-1")

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("fleet.gateway.broker_reload.os.kill", refused)
    for _ in range(2):
        with pytest.raises(GatewayError, match="can't be told to read its files again"):
            kept.apply(page(without=("cow-1",)), cursor=2)
        assert kept.book.cursor == 1
        assert kept.book.entries.keys() == {"cow-1"}
    monkeypatch.undo()
    kept.apply(page(without=("cow-1",)), cursor=2)
    assert live.ended.wait(PATIENCE_SECONDS)
    assert kept.book.cursor == AccessBook(kept.broker.folder, kept.path).cursor == 2


def test_without_a_running_broker_pages_are_taken_and_count_when_it_starts(kept: Kept) -> None:
    kept.apply(page("cow-1", "cow-2"))
    kept.broker.kill()
    assert (kept.broker.folder / PID_FILE).exists(), "it couldn't take it away"
    kept.apply(page("cow-3", without=("cow-1",)), cursor=2)
    kept.broker.start()
    assert [kept.may_enter(name) for name in NAMES[2:]] == [False, True, True]


def test_a_folder_that_is_no_brokers_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="make it one with: tinyfleet broker config"):
        AccessBook(tmp_path / "none", tmp_path / "book.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / OWN_FILE).write_text('{"fleet": "barn", "gateways": {"north": "x"}, "config": ""}')
    with pytest.raises(ConfigurationError, match=f"{OWN_FILE}: can't be read"):
        AccessBook(tmp_path, tmp_path / "book.json")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "can't be used"),
        ("[]", "can't be used"),
        ('{"version": 9}', "version 9 isn't 1"),
        ('{"version": 1, "cursor": 0, "own": {}, "entries": {"a b": null}}', "'a b' is no name"),
    ],
)
def test_a_book_that_is_damaged_is_named(tmp_path: Path, text: str, problem: str) -> None:
    write_broker_config(tmp_path / "broker", BrokerConfig("barn", {"north": "n"}))
    (tmp_path / "book.json").write_text(text)
    with pytest.raises(StoreError, match=f"book.json: .*{problem}.*move it away"):
        AccessBook(tmp_path / "broker", tmp_path / "book.json")


# ---- over the gateway's socket -----------------------------------------------------------


def keeping(make_site: MakeSite, names: list[str]) -> Site:
    site = make_site(names)
    site.stop_gateway()
    broker = site.settings.broker.model_copy(update={"folder": site.broker.folder})
    site.settings = site.settings.model_copy(update={"broker": broker})
    site.start_gateway()
    return site


def entries_of(site: Site, *names: str) -> dict[str, Any]:
    return {name: {"role": "device", "hash": password_hash(site.passwords[name])} for name in names}


def test_the_coordinator_lets_devices_in_and_takes_them_out_over_the_socket(
    make_site: MakeSite,
) -> None:
    site = keeping(make_site, ["cow-1", "cow-2"])
    assert site.client.hello()["access_cursor"] == 0
    entries = entries_of(site, "cow-1", "cow-2")
    assert site.client.access(entries, 5) == {"cursor": 5, "is_kept": True}
    assert site.client.hello()["access_cursor"] == 5
    removed, other = site.add("cow-1"), site.add("cow-2")
    with pytest.raises(GatewayError, match=r"'cow\\n-1' is no name"):
        site.client.access({"cow\n-1": None}, 6)
    with pytest.raises(GatewayError, match="cursor must be"):
        site.client.access({"cow-1": None}, -1)
    begin = time.monotonic()
    assert site.client.access({"cow-1": None}, 7) == {"cursor": 7, "is_kept": True}
    site.until(lambda: not removed.client.is_connected(), "the broker ends the connection")
    print(f"the connection ended {time.monotonic() - begin:.3f} s after the request")
    assert other.client.is_connected()
    site.stop_gateway()
    site.start_gateway()
    assert site.client.hello()["access_cursor"] == 7
    site.until(lambda: site.is_online("cow-2"), "cow-2 is as it was")
    assert not removed.client.is_connected(), "the restart brings it back to life"


def test_a_book_that_is_moved_away_begins_again_with_the_gateway_let_in(
    make_site: MakeSite,
) -> None:
    site = keeping(make_site, ["cow-1"])
    entries = entries_of(site, "cow-1")
    site.client.access(entries, 5)
    site.add("cow-1")
    site.stop_gateway()
    store = site.settings.store
    store.with_name(store.name + ".access.json").unlink()
    site.start_gateway()
    assert site.client.hello()["access_cursor"] == 0
    own = json.loads((site.broker.folder / OWN_FILE).read_text())
    assert own["gateways"].keys() == {GATEWAY}
    site.client.access(entries, 5)
    site.until(lambda: site.is_online("cow-1"), "it comes back by itself")


def test_a_gateway_without_the_brokers_folder_keeps_nothing(make_site: MakeSite) -> None:
    site = make_site(["cow-1"])
    before = {path: os.stat(path).st_mtime_ns for path in site.broker.folder.glob("[apo]*")}
    assert "access_cursor" not in site.client.hello()
    assert site.client.access({"cow-1": None}, 5) == {"cursor": 5, "is_kept": False}
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
    device: FakeDevice = site.add("cow-1")
    assert site.is_online(device.name)
