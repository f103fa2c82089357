"""Which SuperNodes a SuperLink lets in, without Flower."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fleet.coordinator.control import Node
from fleet.coordinator.gateway_keys import GatewayKeys, check_key, read_keys
from fleet.errors import ConfigurationError, FlowerError
from tests.fleet.coordinator.node_keys import write_key


class Link:
    """Stands for a SuperLink's control interface; as there, a key that is out is out for good."""

    def __init__(self) -> None:
        self.known: list[Node] = []
        self.asked = 0
        self.is_away = False

    def nodes(self) -> tuple[Node, ...]:
        self.asked += 1
        if self.is_away:
            raise FlowerError("it is away")
        return tuple(self.known)

    def let_in(self, gateway: str, public_key: bytes) -> None:
        assert public_key not in [one.public_key for one in self.known]
        self.known.append(Node(len(self.known), public_key, False))

    def take_out(self, node: int) -> None:
        assert not self.known[node].is_out
        self.known[node] = Node(node, self.known[node].public_key, True)

    def inside(self) -> set[bytes]:
        return {one.public_key for one in self.known if not one.is_out}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.mkdir()
    return made


def test_those_are_let_in_whose_keys_lie_in_the_folder(folder: Path) -> None:
    link = Link()
    keys = GatewayKeys(folder, link)  # type: ignore[arg-type]
    write_key(folder / "north")
    keys.look()
    assert link.inside() == set(read_keys(folder).values())
    assert len(link.inside()) == 1
    write_key(folder / "south")
    keys.look()
    (folder / "north.pub").unlink()
    keys.look()
    assert link.inside() == {read_keys(folder)["south"]}


def test_a_new_key_of_a_gateway_takes_the_place_of_the_old_one(folder: Path) -> None:
    link = Link()
    keys = GatewayKeys(folder, link)  # type: ignore[arg-type]
    for _ in range(2):
        write_key(folder / "north")
        keys.look()
    assert len(link.known) == 2
    assert link.inside() == {read_keys(folder)["north"]}


def test_nothing_is_asked_for_while_nothing_changes(folder: Path) -> None:
    link = Link()
    keys = GatewayKeys(folder, link)  # type: ignore[arg-type]
    write_key(folder / "north")
    keys.look()
    keys.look()
    assert link.asked == 1


def test_a_folder_that_can_not_be_read_takes_nobody_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link()
    keys = GatewayKeys(folder, link)  # type: ignore[arg-type]
    write_key(folder / "north")
    keys.look()
    elsewhere = folder.rename(folder.parent / "gone")
    keys.look()
    keys.look()
    assert len(link.inside()) == 1
    assert caplog.text.count("is no folder") == 1
    (elsewhere / "south.pub").write_text("no key")
    elsewhere.rename(folder)
    keys.look()
    assert len(link.inside()) == 1
    assert "south.pub: can't be read as a key" in caplog.text


def test_a_superlink_that_is_away_is_asked_again(folder: Path) -> None:
    link = Link()
    keys = GatewayKeys(folder, link)  # type: ignore[arg-type]
    write_key(folder / "north")
    link.is_away = True
    keys.look()
    link.is_away = False
    keys.look()
    assert len(link.inside()) == 1


def test_a_key_that_was_taken_out_is_named_and_others_are_let_in(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link()
    keys = GatewayKeys(folder, link)  # type: ignore[arg-type]
    write_key(folder / "north")
    keys.look()
    aside = (folder / "north.pub").rename(folder / "north.aside")
    keys.look()
    aside.rename(folder / "north.pub")
    write_key(folder / "south")
    keys.look()
    assert "gateway north was taken out before" in caplog.text
    assert link.inside() == {read_keys(folder)["south"]}


def test_a_key_of_two_gateways_and_a_name_that_is_none_are_refused(folder: Path) -> None:
    write_key(folder / "north")
    (folder / "south.pub").write_bytes((folder / "north.pub").read_bytes())
    with pytest.raises(ConfigurationError, match="another gateway's key"):
        read_keys(folder)
    (folder / "south.pub").rename(folder / "so uth.pub")
    with pytest.raises(ConfigurationError, match="no gateway's name"):
        read_keys(folder)


def test_a_key_of_another_kind_is_refused_on_both_sides(folder: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    (folder / "north.pub").write_bytes(
        other.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    with pytest.raises(ConfigurationError, match="another kind; make one with: ssh-keygen"):
        read_keys(folder)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "north").write_bytes(pem)
    with pytest.raises(ConfigurationError, match=r"superlink_key .* can't be read"):
        check_key(folder / "north")
    check_key(write_key(folder / "north"))
