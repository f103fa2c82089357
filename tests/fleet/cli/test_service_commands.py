"""Commands that talk to a service, over one in this process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from fleet.cli import main
from fleet.service.client import Client
from fleet.store import Audit, SqlStore, Tokens
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import Site, make_site, measured, with_power

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def site() -> Site:
    return make_site(SqlStore())


@pytest.fixture
def tinyfleet(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command as an admin; gives its exit code and what it printed."""

    def connect(*_: object, **__: object) -> Client:
        return site.client()

    monkeypatch.setattr("fleet.cli._service.connect", connect)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(one) for one in arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


def facts(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def campaign_file(folder: Path, **fields: Any) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "model": "small", "rounds": 2, **fields}))
    return path


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("devices list", "devices"),
        ("devices preview true", "count"),
        ("devices show d0", "device"),
        ("devices add n1 --at home", "devices"),
        ("devices label d0 line=c", "device"),
        ("devices rotate d0", "devices"),
        ("devices retire d0", "device"),
        ("gateways list", "gateways"),
        ("gateways add g9 --at home", "gateway"),
        ("gateways retire gw1", "gateway"),
        ("models list", "models"),
        ("models show small", "model"),
        ("models compare small:1 small:1", "comparison"),
        ("models release small:1", "version"),
        ("campaign list", "campaigns"),
        ("tokens list", "tokens"),
        ("tokens issue bob --role viewer", "token"),
        ("audit", "audit"),
        ("webhooks add http://h/ --event gate", "webhook"),
        ("webhooks list", "webhooks"),
    ],
)
def test_a_command_prints_facts_for_programs_and_words_for_people(
    tinyfleet: Command, line: str, key: str
) -> None:
    assert key in facts(tinyfleet(*line.split(), "--json"))
    if " add " not in line:  # a second time it is there already
        code, out, err = tinyfleet(*line.split())
        assert (code, err) == (0, "")
        assert out.strip()


def test_a_label_is_set_and_taken_away(tinyfleet: Command) -> None:
    set_one = facts(tinyfleet("devices", "label", "d0", "room=a=b", "line=", "--json"))
    assert set_one["device"]["labels"] == {"room": "a=b"}
    code, out, err = tinyfleet("devices", "label", "d0", "room")
    assert (code, out) == (1, "")
    assert err == "error: label room: write NAME=VALUE, or NAME= to take it away\n"


def test_passwords_of_a_csv_file_go_to_a_file_of_ones_own(
    tinyfleet: Command, site: Site, tmp_path: Path
) -> None:
    path, out = tmp_path / "d.csv", tmp_path / "passwords.csv"
    path.write_text("device,site,line\nn1,home,a\nn2,yard,\n", encoding="utf-8-sig")
    found = facts(tinyfleet("devices", "import", path, "--out", out, "--json"))
    assert found == {"devices": [{"device": "n1"}, {"device": "n2"}], "passwords": str(out)}
    assert out.stat().st_mode & 0o777 == 0o600
    assert [one.split(",")[0] for one in out.read_text().splitlines()] == ["device", "n1", "n2"]
    assert site.client().device("n1").labels == {"line": "a"}
    assert site.client().device("n2").labels == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column device"),
        (b"device,line\nn1,a\n", "has no column site"),
        (b"device,site\nn1,home\nn2\n", "line 3: it has more or fewer fields"),
        (b"device,site\nn1,home,x\n", "line 2: it has more or fewer fields"),
        (b"device,site\nn1,home\nn 2,home\n", "line 3: device"),
        (b"device,site\nn1,h\xff\n", "isn't UTF-8 text"),
        (b"device,site\n", "names no device"),
        (b"device,site\nn1,home\nn1,home\n", "device n1 is in the registry already"),
    ],
)
def test_a_mistake_in_a_csv_file_is_named_and_nothing_is_added(
    tinyfleet: Command, site: Site, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    code, out, err = tinyfleet("devices", "import", path)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert len(site.client().devices().devices) == 6


def test_passwords_of_those_that_are_in_are_told_when_a_later_one_is_refused(
    tinyfleet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.service.client.DEVICES_AT_ONCE", 1)
    path, out = tmp_path / "d.csv", tmp_path / "passwords.csv"
    path.write_text("device,site\nn1,home\nd0,home\n")
    code, _, err = tinyfleet("devices", "import", path, "--out", out)
    assert (code, "d0 is in the registry already" in err) == (1, True)
    assert [one.split(",")[0] for one in out.read_text().splitlines()] == ["device", "n1"]


def test_devices_are_exported_whole_or_not_at_all(tinyfleet: Command, tmp_path: Path) -> None:
    out = tmp_path / "devices.jsonl"
    export = ("devices", "export", "--out", out, "--filter")
    assert tinyfleet(*export, 'labels.line == "a"')[0] == 0
    rows = [json.loads(one) for one in out.read_text().splitlines()]
    assert [(one["device"], one["labels"]["line"]) for one in rows] == [
        (name, "a") for name in ("d0", "d2", "d4")
    ]
    assert tinyfleet("devices", "export", "--filter", "retired")[1] == ""
    code, _, err = tinyfleet(*export, "what")
    assert (code, "what" in err) == (1, True)
    assert len(out.read_text().splitlines()) == 3
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_refused_is_one_line_and_code_1(tinyfleet: Command) -> None:
    for line in ("devices show d9", "models show none", "campaign show none", "models release x"):
        code, out, err = tinyfleet(*line.split())
        assert (code, out, len(err.splitlines())) == (1, "", 1), line
        assert err.startswith("error: ")


def test_a_campaign_is_cloned_as_it_was_started(
    tinyfleet: Command, site: Site, tmp_path: Path
) -> None:
    stages = [{"name": "first", "devices": 1, "gates": [{"gate": "score"}]}]
    path = campaign_file(
        tmp_path,
        stages=stages,
        windows=[{"start": "22:00", "end": "06:00"}],
        aggregation={"rule": "server-momentum"},
    )
    planned = facts(tinyfleet("campaign", "plan", path, "--json"))
    assert planned["plan"]["ready"] == 4
    started = facts(tinyfleet("campaign", "start", path, "--json"))["campaign"]["campaign"]
    copy = tmp_path / "copy.yaml"
    assert tinyfleet("campaign", "clone", started[:6], "--out", copy)[0] == 0
    again = facts(tinyfleet("campaign", "start", copy, "--json"))["campaign"]["campaign"]
    assert again != started
    assert site.client().campaign(again).config == site.client().campaign(started).config


def test_a_campaign_is_found_by_its_name_or_by_digits_that_are_its_own(
    tinyfleet: Command, site: Site, tmp_path: Path
) -> None:
    path = campaign_file(tmp_path)
    newest = [
        facts(tinyfleet("campaign", "start", path, "--json"))["campaign"]["campaign"]
        for _ in range(17)
    ][-1]
    shown = facts(tinyfleet("campaign", "show", "test", "--json"))["campaign"]
    assert shown["campaign"] == newest
    digits = Counter(one.campaign[0] for one in site.client().campaigns().campaigns)
    (first, count), *_ = digits.most_common(1)
    assert count > 1, "there are 16 digits"
    code, _, err = tinyfleet("campaign", "stop", first)
    assert code == 1
    assert f"error: {first} may be" in err
    assert "write more digits" in err


def test_a_plan_says_what_a_campaign_takes_as_far_as_it_was_measured(
    tinyfleet: Command, site: Site, tmp_path: Path
) -> None:
    path = campaign_file(tmp_path, rounds=1)
    before = tinyfleet("campaign", "plan", path)[1]
    assert before.count("not measured yet") == 8
    assert "(2 min for one), how long they take isn't measured yet" in before
    for kind, steps in (("train", 5), ("score-last", 0), ("release", 0)):
        measured(site, kind, {"d0": 20, "d1": 30}, steps)
    with_power(site, "a", 132)
    after = tinyfleet("campaign", "plan", path)[1]
    assert "score 20.0 s, 2.6 J; train 20.0 s, 2.6 J; release 20.0 s, 2.6 J" in after
    assert "60.0 s, 7.9 J" in after
    assert "90.0 s, power not known" in after
    assert "3 rounds, at most 6 min by their deadlines (2 min for one), about 2 min as" in after
    slow = campaign_file(tmp_path, rounds=500, pace={"spread_seconds": 86_400})
    assert (
        "at most 502.7 days by their deadlines (24.0 h for one)"
        in (tinyfleet("campaign", "plan", slow)[1])
    )


def test_watching_ends_with_code_3_where_a_campaign_did_not_end_well(
    tinyfleet: Command, site: Site, tmp_path: Path
) -> None:
    for state, code in (("finished", 0), ("cancelled", 3), ("undecided", 3)):
        tinyfleet("campaign", "start", campaign_file(tmp_path))
        newest = site.client().campaigns().campaigns[0].campaign
        site.store.end_campaign(newest, "", state)
        assert tinyfleet("campaign", "watch", newest, "--json")[0] == code


def test_reports_are_exported_by_the_files_ending(
    tinyfleet: Command, site: Site, tmp_path: Path
) -> None:
    tinyfleet("campaign", "start", campaign_file(tmp_path))
    of = site.client().campaigns().campaigns[0].campaign
    site.store.claim(of, "x")
    site.store.begin_round(of, "x", 0, "score", {"weights": small_model.blob().hex()[:64]})
    report = {"device": "d0", "held_out": 10, "correct_before": 7}
    site.store.finish_round(of, "x", 0, "done", {}, [report], None)
    for name in ("r.json", "r.parquet"):
        assert tinyfleet("campaign", "export", "test", "--out", tmp_path / name)[0] == 0
    row = {"campaign": of, "round": 0, "kind": "score", **report}
    assert json.loads((tmp_path / "r.json").read_text())["reports"] == [row]
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == [row]
    code, _, err = tinyfleet("campaign", "export", "test", "--out", tmp_path / "r.txt")
    assert (code, "its ending says" in err) == (1, True)


def test_the_first_administrator_is_made_on_the_services_machine_and_only_once(
    tinyfleet: Command, tmp_path: Path
) -> None:
    config = tmp_path / "coordinator.toml"
    config.write_text('fleet = "barn"\nstore = "sqlite:///s.sqlite"\n')
    made = facts(tinyfleet("tokens", "first", "ada", "--config", config, "--json"))["token"]
    store = SqlStore(f"sqlite:///{tmp_path / 's.sqlite'}")
    token = Tokens(store).check(made["secret"])
    assert (token.who, token.role) == ("ada", "admin")
    (entry,) = Audit(store).page()
    assert (entry.who, entry.action) == ("ada", "tokens.first")
    code, _, err = tinyfleet("tokens", "first", "eve", "--config", config)
    assert code == 1
    assert "there is somebody who is admin already: ask ada" in err
    Tokens(store).revoke(token.token)
    assert facts(tinyfleet("tokens", "first", "eve", "--config", config, "--json"))
    store.close()
