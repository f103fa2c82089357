"""What a service is told, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.coordinator.settings import CoordinatorSettings, LinkTls
from fleet.errors import ConfigurationError

PLAIN = 'fleet = "barn"\n[superlink]\n'
TLS = 'certificate = "s.crt"\nkey = "s.key"\nca = "ca.crt"\n'
KEYS = 'gateway_keys = "keys"\n'


def read(folder: Path, superlink: str) -> CoordinatorSettings:
    path = folder / "coordinator.toml"
    path.write_text(PLAIN + superlink)
    return CoordinatorSettings.read(path)


def test_a_superlink_listens_on_loopback_without_tls_where_nothing_is_said(tmp_path: Path) -> None:
    link = read(tmp_path, "port = 9092\n").superlink
    assert (link.host, link.tls, link.gateway_keys) == ("127.0.0.1", None, None)


def test_files_of_a_superlink_are_relative_to_the_settings(tmp_path: Path) -> None:
    link = read(tmp_path, f'port = 9092\nhost = "0.0.0.0"\n{TLS}{KEYS}').superlink
    assert link.tls == LinkTls(tmp_path / "s.crt", tmp_path / "s.key", tmp_path / "ca.crt")
    assert link.gateway_keys == tmp_path / "keys"
    attached = read(tmp_path, 'address = "h:1"\nca = "ca.crt"\n').superlink
    assert (attached.address, attached.ca, attached.tls) == ("h:1", tmp_path / "ca.crt", None)


def test_all_is_kept_for_ever_where_nothing_is_said(tmp_path: Path) -> None:
    kept = read(tmp_path, "port = 1\n").retention
    assert (kept.reports_days, kept.events_days, kept.weights_days) == (None, None, None)
    kept = read(tmp_path, "port = 1\n[retention]\nevents_days = 90\n").retention
    assert (kept.reports_days, kept.events_days, kept.weights_days) == (None, 90.0, None)


@pytest.mark.parametrize("said", ["reports_days = 0", "events_days = -1", "audit_days = 90"])
def test_what_would_delete_all_or_the_audit_log_is_refused(tmp_path: Path, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"retention\.\w+_days: "):
        read(tmp_path, f"port = 1\n[retention]\n{said}\n")


@pytest.mark.parametrize(
    "said", ["port = 1\n", f'port = 1\nhost = "0.0.0.0"\n{TLS}{KEYS}', 'address = "h:1"\n']
)
def test_settings_come_back_as_they_were_written(tmp_path: Path, said: str) -> None:
    settings = read(tmp_path, said)
    settings.write(tmp_path / "again.toml")
    assert CoordinatorSettings.read(tmp_path / "again.toml") == settings


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("", "either a port"),
        ('port = 1\naddress = "h:1"\n', "either a port"),
        ('address = "h:1"\nhost = "0.0.0.0"\n', "only its address and ca"),
        ('address = "h:1"\nkey = "s.key"\n', "only its address and ca"),
        ('port = 1\ncertificate = "s.crt"\nkey = "s.key"\n', "go together"),
        ('port = 1\nca = "ca.crt"\n', "go together"),
        ('port = 1\nhost = "0.0.0.0"\n', "in the clear.*Give certificate, key, ca"),
        (f'port = 1\nhost = "10.0.0.5"\n{KEYS}', "more than this machine"),
        (f'port = 1\nhost = "0.0.0.0"\n{TLS}', "anybody could be a gateway"),
    ],
)
def test_a_superlink_that_others_could_use_is_refused_with_what_to_do(
    tmp_path: Path, said: str, problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        read(tmp_path, said)


UNMASKER = """fleet = "barn"
[signing]
key = "keys/task.key"
keyring = "keys/keyring"
authority = "keys/authority.pub"
[[unmaskers]]
url = "URL"
token_file = "vets.token"
key = "vets.pub"
operated_by = "the vets"
"""


def test_keys_and_unmaskers_are_relative_to_the_settings_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(UNMASKER.replace("URL", "https://10.0.0.3:8091"))
    settings = CoordinatorSettings.read(path)
    assert settings.signing is not None
    assert settings.signing.key == tmp_path / "keys" / "task.key"
    assert settings.signing.authority == tmp_path / "keys" / "authority.pub"
    (one,) = settings.unmaskers
    assert (one.key, one.token_file) == (tmp_path / "vets.pub", tmp_path / "vets.token")
    assert settings.shown()["unmaskers"][0]["operated_by"] == "the vets"
    again = tmp_path / "again.toml"
    settings.write(again)
    assert CoordinatorSettings.read(again) == settings


@pytest.mark.parametrize("url", ["http://10.0.0.3:8091", "ftp://10.0.0.3", "https://host/path"])
def test_an_unmasker_whose_token_others_could_read_is_refused(tmp_path: Path, url: str) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(UNMASKER.replace("URL", url))
    with pytest.raises(ConfigurationError, match="url"):
        CoordinatorSettings.read(path)
