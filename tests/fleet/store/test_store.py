"""One suite for all stores, and what only a file can show."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from fleet.errors import StoreError
from fleet.store import (
    Lease,
    Login,
    Logins,
    Part,
    SqlStore,
    Store,
    SupersededError,
    WeightsVersion,
    sqlite_url,
)
from fleet.store.database import open_engine
from fleet.store.tables import metadata

V0 = WeightsVersion(0, "00" * 32, b"blob-0", b"master-0")
V1 = WeightsVersion(1, "11" * 32, b"blob-1", b"master-1")
REPORTS = [{"device": "b", "correct_after": 3}, {"device": "a", "correct_after": 2}]


KINDS = ("memory", "sqlite", "postgres")


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, new_database: Callable[[str], str | None]) -> str | None:
    return new_database(request.param)


@pytest.fixture
def store(url: str | None) -> Iterator[Store]:
    made: Store = SqlStore(url)
    made.create_campaign("c1", '{"name": "x"}', {"bundle": "{}"}, V0)
    yield made
    made.close()


@pytest.fixture(params=KINDS[1:])
def lasting(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """The URL of a database that outlives a process."""
    return new_database(request.param)


def test_a_new_campaign_is_pending_with_its_first_weights(store: Store) -> None:
    record = store.campaign("c1")
    assert (record.state, record.config, record.driver) == ("pending", '{"name": "x"}', "")
    assert store.manifests("c1") == {"bundle": "{}"}
    assert store.latest_weights("c1") == V0
    assert store.rounds("c1") == ()


def test_campaigns_are_listed_in_the_order_of_their_creation(store: Store) -> None:
    store.create_campaign("a0", "{}", {}, V0)
    assert [one.id for one in store.campaigns()] == ["c1", "a0"]


def test_an_id_is_used_once(store: Store) -> None:
    with pytest.raises(StoreError, match="choose another id"):
        store.create_campaign("c1", "{}", {}, V0)


def test_unknown_things_are_named(store: Store) -> None:
    for ask in (store.campaign, store.manifests, store.latest_weights, store.rounds):
        with pytest.raises(StoreError, match="c9"):
            ask("c9")
    with pytest.raises(StoreError, match="no round 4"):
        store.round("c1", 4)
    with pytest.raises(StoreError, match="version 4"):
        store.weights("c1", 4)


def test_a_round_keeps_the_plan_it_began_with(store: Store) -> None:
    store.claim("c1", "d1")
    store.begin_round("c1", "d1", 1, "train", {"seed": 1, "list": [1, 2]})
    again = store.begin_round("c1", "d1", 1, "train", {"seed": 2})
    assert again.plan == {"seed": 1, "list": [1, 2]}
    assert again.state == "running"


def test_a_version_and_its_parts_are_stored_together_or_not_at_all(store: Store) -> None:
    store.claim("c1", "d1")
    first = [Part(1, "g2", 0, 4), Part(1, "g1", 0, 2)]
    store.make_version("c1", "d1", V1, first)
    assert store.latest_weights("c1") == V1
    assert store.parts("c1") == (first[1], first[0])
    second = Part(1, "g1", 1, 5)
    with pytest.raises(StoreError, match="version 1 already"):
        store.make_version("c1", "d1", V1, [second])
    store.claim("c1", "d2")
    with pytest.raises(SupersededError):
        store.make_version("c1", "d1", replace(V1, version=2), [second])
    assert store.parts("c1") == (first[1], first[0])
    store.make_version("c1", "d2", replace(V1, version=2), [second])
    assert store.parts("c1") == (first[1], second, first[0])
    assert store.latest_weights("c1").version == 2


def test_counters_of_a_round_rise_after_its_end_and_never_fall(store: Store) -> None:
    store.claim("c1", "d1")
    store.begin_round("c1", "d1", 1, "train", {})
    assert not store.raise_counters("c1", "d1", 1, {"late": 1}), "it still runs"
    result = {"accepted": 2, "late": 1, "refused": {"crc": 1}}
    store.finish_round("c1", "d1", 1, "done", result, REPORTS, V1)
    assert store.raise_counters("c1", "d1", 1, {"late": 3, "refused": {"coding": 2}})
    assert store.raise_counters("c1", "d1", 1, {"late": 2, "refused": {"crc": 0}})
    assert store.round("c1", 1).result == {
        "accepted": 2,
        "late": 3,
        "refused": {"crc": 1, "coding": 2},
    }
    assert not store.raise_counters("c1", "d1", 2, {"late": 1}), "there is no such round"
    store.claim("c1", "d2")
    with pytest.raises(SupersededError):
        store.raise_counters("c1", "d1", 1, {"late": 9})


def test_a_round_ends_once_with_reports_and_weights(store: Store) -> None:
    store.claim("c1", "d1")
    store.begin_round("c1", "d1", 1, "train", {})
    store.note_progress("c1", "d1", 1, 1)
    assert [one.accepted for one in store.round_summaries("c1")] == [1]
    assert store.finish_round("c1", "d1", 1, "done", {"accepted": 2}, REPORTS, V1)
    other = WeightsVersion(2, "22" * 32, b"", b"")
    assert not store.finish_round("c1", "d1", 1, "done", {"accepted": 9}, [], other)
    assert store.round("c1", 1).result == {"accepted": 2}
    assert store.latest_weights("c1") == V1
    assert store.weights("c1", 0) == V0
    assert [one["device"] for one in store.reports("c1", 1)] == ["a", "b"]


def test_an_end_that_fails_leaves_nothing_behind(store: Store) -> None:
    store.claim("c1", "d1")
    store.begin_round("c1", "d1", 1, "train", {})
    with pytest.raises(StoreError, match="already"):
        store.finish_round("c1", "d1", 1, "done", {}, REPORTS, V0)
    assert store.round("c1", 1).state == "running"
    assert store.reports("c1", 1) == ()


def test_a_superseded_driver_can_write_nothing(store: Store) -> None:
    store.claim("c1", "old")
    store.begin_round("c1", "old", 1, "train", {})
    assert store.claim("c1", "new").driver == "new"
    for write in (
        lambda: store.begin_round("c1", "old", 2, "train", {}),
        lambda: store.note_progress("c1", "old", 1, 1),
        lambda: store.take_leases("c1", "old", {"a": 0}),
        lambda: store.quarantine("c1", "old", "north", "odd"),
        lambda: store.finish_round("c1", "old", 1, "done", {}, [], V1),
        lambda: store.end_campaign("c1", "old", "failed"),
        lambda: store.driver_lives("c1", "old", 5.0),
    ):
        with pytest.raises(SupersededError, match="taken over by new"):
            write()
    assert store.latest_weights("c1") == V0
    assert store.finish_round("c1", "new", 1, "done", {}, [], V1)


def test_a_driver_that_lives_is_seen(store: Store) -> None:
    store.claim("c1", "d1")
    assert store.campaign("c1").driver_seen == 0.0
    assert store.driver_lives("c1", "d1", 12.5).driver_seen == 12.5
    assert store.campaign("c1").driver_seen == 12.5


def test_an_ended_campaign_stays_as_it_ended(store: Store) -> None:
    store.claim("c1", "d1")
    store.end_campaign("c1", "d1", "failed", "no devices")
    store.end_campaign("c1", "", "finished")
    record = store.claim("c1", "d2")
    assert (record.state, record.reason, record.driver) == ("failed", "no devices", "d1")
    with pytest.raises(StoreError, match="isn't a state"):
        store.end_campaign("c1", "", "running")


def test_a_stop_request_is_seen(store: Store) -> None:
    assert store.campaign("c1").wish == ""
    store.ask("c1", "stop")
    assert store.campaign("c1").wish == "stop"


def test_a_campaign_that_has_ended_is_asked_for_nothing_and_no_other_for_what_there_is_not(
    store: Store,
) -> None:
    with pytest.raises(StoreError, match="'fly' is nothing that a campaign can be asked for"):
        store.ask("c1", "fly")
    store.end_campaign("c1", "", "failed")
    for wish in ("pause", "stop", "roll-back", ""):
        with pytest.raises(StoreError, match=r"has ended \(failed\) already"):
            store.ask("c1", wish)
    assert store.campaign("c1").wish == ""


def test_a_look_shows_only_the_rounds_that_changed_since_the_last(store: Store) -> None:
    store.claim("c1", "d1")
    plan = {"assignments": [{}, {}, {}], "wanted": 2}
    store.begin_round("c1", "d1", 1, "train", plan)
    (begun,) = store.round_summaries("c1")
    assert (begun.kind, begun.state, begun.asked, begun.wanted) == ("train", "running", 3, 2)
    assert store.round_summaries("c1", begun.revision) == ()
    store.begin_round("c1", "d1", 2, "train", plan)
    store.note_progress("c1", "d1", 2, 1)
    (second,) = store.round_summaries("c1", begun.revision)
    assert (second.number, second.accepted) == (2, 1)
    store.finish_round("c1", "d1", 1, "done", {"accepted": 2}, [], V1)
    (first,) = store.round_summaries("c1", second.revision)
    assert (first.number, first.state, first.accepted) == (1, "done", 2)
    with pytest.raises(StoreError, match="no round 9"):
        store.note_progress("c1", "d1", 9, 1)


def test_a_lease_number_of_a_device_only_grows(store: Store) -> None:
    store.claim("c1", "d1")
    assert store.take_leases("c1", "d1", {"a": 0, "b": 6}) == {
        "a": Lease("c1", 1),
        "b": Lease("c1", 7),
    }
    assert store.take_leases("c1", "d1", {"a": 1}) == {"a": Lease("c1", 1)}, "it is the same lease"
    seen_more = store.take_leases("c1", "d1", {"a": 40})
    assert seen_more == {"a": Lease("c1", 41)}, "another store had leased the device"
    assert store.take_leases("c1", "d1", {"a": 0})["a"].number == 41


def test_a_device_has_one_campaign_at_a_time(store: Store) -> None:
    store.create_campaign("c2", "{}", {}, V0)
    store.claim("c1", "d1")
    store.claim("c2", "d2")
    store.take_leases("c1", "d1", {"a": 0})
    assert store.take_leases("c2", "d2", {"a": 0}) == {"a": Lease("c1", 1)}
    store.end_campaign("c1", "d1", "finished")
    assert store.take_leases("c2", "d2", {"a": 0}) == {"a": Lease("c2", 2)}


def test_a_quarantined_gateway_keeps_its_first_reason(store: Store) -> None:
    store.claim("c1", "d1")
    assert store.quarantined("c1") == {}
    store.quarantine("c1", "d1", "north", "its sum doesn't fit")
    store.quarantine("c1", "d1", "north", "something else")
    assert store.quarantined("c1") == {"north": "its sum doesn't fit"}


def test_what_a_store_hands_out_is_the_callers_own(store: Store) -> None:
    store.claim("c1", "d1")
    store.begin_round("c1", "d1", 1, "train", {"tasks": [1]}).plan["tasks"].append(2)
    assert store.round("c1", 1).plan == {"tasks": [1]}


def test_many_threads_end_a_round_once(store: Store) -> None:
    store.claim("c1", "d1")
    store.begin_round("c1", "d1", 1, "train", {})
    ended: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: ended.append(store.finish_round("c1", "d1", 1, "done", {}, [], V1))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == [False] * 7 + [True]


def test_a_database_opened_again_has_everything(lasting: str) -> None:
    first = SqlStore(lasting)
    first.create_campaign("c1", "{}", {"b": "{}"}, V0)
    first.claim("c1", "d1")
    first.begin_round("c1", "d1", 1, "train", {"seed": 5})
    # Not closed: as if the process had died.
    second = SqlStore(lasting)
    assert second.campaign("c1").state == "running"
    assert second.round("c1", 1).plan == {"seed": 5}
    first.close()
    second.close()


def test_a_process_killed_while_it_ends_rounds_leaves_each_whole_or_not_begun(
    lasting: str,
) -> None:
    store = SqlStore(lasting)
    store.create_campaign("c1", "{}", {}, V0)
    program = f"""
from fleet.store import SqlStore, WeightsVersion
store = SqlStore({lasting!r})
store.claim("c1", "d1")
for number in range(1, 100000):
    store.begin_round("c1", "d1", number, "train", {{}})
    weights = WeightsVersion(number, "00", b"x" * 20000, b"y" * 20000)
    reports = [{{"device": str(index)}} for index in range(20)]
    store.finish_round("c1", "d1", number, "done", {{"accepted": 20}}, reports, weights)
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = 0
        while told < 30:
            told = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    rounds = SqlStore(lasting).rounds("c1")
    done = [one.number for one in rounds if one.state == "done"]
    assert len(done) >= 30
    assert store.latest_weights("c1").version == len(done) == max(done)
    assert all(len(store.reports("c1", number)) == 20 for number in done)
    assert all(store.reports("c1", one.number) == () for one in rounds if one.state != "done")


def test_two_services_that_begin_at_once_make_the_tables_once(lasting: str) -> None:
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(SqlStore(lasting))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == len(threads)
    for store in opened:
        assert store.campaigns() == ()
        store.close()


def test_all_who_open_a_new_file_at_once_get_it(tmp_path: Path) -> None:
    # SQLite refuses one in a hundred or so: often enough to be seen in fifty files.
    for number in range(50):
        start, opened = threading.Barrier(6), []

        def get(url: str, start: threading.Barrier, opened: list[object]) -> None:
            start.wait()
            engine = open_engine(sa.make_url(url))
            with engine.connect() as connection:
                opened.append(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
            engine.dispose()

        url = sqlite_url(tmp_path / f"{number}.sqlite")
        threads = [threading.Thread(target=get, args=(url, start, opened)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert opened == ["wal"] * 6


def test_campaigns_that_lease_at_once_never_get_the_same_device(lasting: str) -> None:
    setup = SqlStore(lasting)
    names = [f"d{number}" for number in range(40)]
    campaigns = [f"c{number}" for number in range(4)]
    for campaign in campaigns:
        setup.create_campaign(campaign, "{}", {}, V0)
        setup.claim(campaign, campaign)
    taken: dict[str, dict[str, Lease]] = {}

    def take(campaign: str) -> None:
        store = SqlStore(lasting)
        order = names if campaign in campaigns[::2] else names[::-1]
        taken[campaign] = store.take_leases(campaign, campaign, dict.fromkeys(order, 0))
        store.close()

    threads = [threading.Thread(target=take, args=(campaign,)) for campaign in campaigns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    setup.close()
    assert taken.keys() == set(campaigns)
    for name in names:
        assert len({leases[name].campaign for leases in taken.values()}) == 1


def test_the_migrations_make_the_tables_that_the_store_uses(lasting: str) -> None:
    SqlStore(lasting).close()
    engine = sa.create_engine(lasting)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


@contextlib.contextmanager
def as_of(revision: str, url: str) -> Iterator[sa.Connection]:
    """A transaction on a database that no later migration has seen."""
    engine = sa.create_engine(url)
    with as_file(files("fleet.store") / "migrations") as folder, engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        yield connection
    engine.dispose()


def test_a_campaign_that_was_to_stop_still_is_after_the_migration(lasting: str) -> None:
    with as_of("0002", lasting) as connection:
        for name, stops in (("c1", True), ("c2", False)):
            values = {"name": name, "stops": stops}
            connection.execute(
                sa.text(
                    "INSERT INTO campaigns (id, config, state, reason, driver, stop_requested, "
                    "driver_seen, revision) VALUES (:name, '{}', 'running', '', '', :stops, 0, 0)"
                ),
                values,
            )
    store = SqlStore(lasting)
    assert [(one.id, one.wish) for one in store.campaigns()] == [("c1", "stop"), ("c2", "")]
    store.close()


def test_logins_are_the_same_after_the_migration_and_one_may_be_known_at_two_sites(
    lasting: str,
) -> None:
    with as_of("0003", lasting) as connection:
        connection.execute(
            sa.text(
                "INSERT INTO access (name, site, role, hash, revision) VALUES "
                "('cow', 'barn', 'device', 'h1', 1), ('hen', 'barn', 'device', NULL, 2)"
            )
        )
    store = SqlStore(lasting)
    logins = Logins(store)
    before = (Login("cow", "device", "h1", 1), Login("hen", "device", None, 2))
    assert logins.changes("barn", 0) == before
    logins.grant("cow", "field", "device", "h2")
    assert [one.hash for one in logins.changes("barn", 2)] == [None]
    store.close()


def test_a_process_writes_no_more_once_a_newer_one_has_brought_the_tables_up_to_date(
    lasting: str,
) -> None:
    store = SqlStore(lasting)
    store.create_campaign("c1", "{}", {}, V0)
    engine = sa.create_engine(lasting)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(
        SupersededError, match=r"by a newer version .*revision 9999.* stop this one"
    ):
        store.claim("c1", "d1")
    assert store.campaign("c1").driver == ""
    store.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    lasting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqlStore(lasting)
    store.create_campaign("c1", "{}", {}, V0)
    head = store.revision
    with as_file(files("fleet.store") / "migrations") as folder:
        shutil.copytree(folder, tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "9999_next.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        f"revision, down_revision = '9999', {head!r}\n"
        "def upgrade():\n"
        "    op.create_table('next', sa.Column('x', sa.Integer()))\n"
        "    op.execute('DELETE FROM weights')\n"
        "    op.execute('SELECT nonsense FROM nowhere')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr("fleet.store.database.files", lambda package: tmp_path)
        with pytest.raises(StoreError, match="nowhere"):
            SqlStore(lasting)
    store.claim("c1", "d1")
    assert store.latest_weights("c1") == V0
    with store.reading() as connection:
        assert not sa.inspect(connection).has_table("next")
    store.close()


def test_a_store_that_fails_in_use_names_its_database(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = SqlStore(sqlite_url(path))
    store.create_campaign("c1", "{}", {}, V0)
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE reports")
    for use in (
        lambda: store.reports("c1", 0),
        lambda: store.create_campaign("c2", "{}", {}, WeightsVersion(0, "", "no bytes", None)),  # type: ignore[arg-type]
    ):
        with pytest.raises(StoreError, match=r"store\.sqlite can't be used"):
            use()
    store.close()


def test_a_file_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to have a header of a hundred bytes" * 3)
    with pytest.raises(StoreError, match="can't be used as a campaign store"):
        SqlStore(sqlite_url(text))
    newer = sqlite_url(tmp_path / "newer")
    SqlStore(newer).close()
    with sqlite3.connect(tmp_path / "newer") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="written by a newer version of this program"):
        SqlStore(newer)
    older = tmp_path / "older"
    with sqlite3.connect(older) as database:
        database.execute("CREATE TABLE campaigns (id TEXT)")
    with pytest.raises(StoreError, match="older than its migrations"):
        SqlStore(sqlite_url(older))


@pytest.mark.parametrize("url", ["", "no url", "oracle://x", "mysql+nothing://x"])
def test_an_address_that_is_none_is_refused_with_those_that_are(url: str) -> None:
    with pytest.raises(StoreError, match="use sqlite:///FILE or postgresql"):
        SqlStore(url or "::")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg:/me:secret@h/db",
        "postgresql+psycopg://me:secret@h:secret/db",
        "postgresql+psycopg://me:x@y:secret@h/db",
        "nothing://me:secret@h/db",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match="address can't be used") as caught:
        SqlStore(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(StoreError, match=r"db\?.*can't be used|127\.0\.0\.1") as caught:
        SqlStore("postgresql+psycopg://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_changes_within_a_transaction_are_done_together_or_not_at_all(store: SqlStore) -> None:
    def change() -> None:
        store.ask("c1", "pause")
        store.create_campaign("c2", "{}", {}, V0)
        assert [one.wish for one in store.campaigns()] == ["pause", ""]

    def fail() -> None:
        with store.writing():
            change()
            store.create_campaign("c2", "{}", {}, V0)

    with pytest.raises(StoreError, match="c2 already"):
        fail()
    assert [(one.id, one.wish) for one in store.campaigns()] == [("c1", "")]
    with store.writing():
        change()
    assert [(one.id, one.wish) for one in store.campaigns()] == [("c1", "pause"), ("c2", "")]


def test_another_thread_takes_no_part_in_a_transaction(lasting: str) -> None:
    store = SqlStore(lasting)
    store.create_campaign("c1", "{}", {}, V0)
    seen: list[str] = []
    look = threading.Thread(target=lambda: seen.append(store.campaign("c1").wish))
    with store.writing():
        store.ask("c1", "pause")
        look.start()
        look.join()
    assert (seen, store.campaign("c1").wish) == ([""], "pause")
    store.close()
