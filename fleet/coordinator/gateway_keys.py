"""Which SuperNodes a SuperLink lets in: those whose public keys lie in a folder, as GATEWAY.pub.

The keys are those of `ssh-keygen -t ecdsa`, as Flower wants them. Flower takes no key a second time
that was taken out: whoever comes back has a new one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.coordinator.control import Control
from fleet.errors import ConfigurationError, FleetError
from fleet.protocol.fields import NAME_PATTERN

logger = logging.getLogger(__name__)

MAKE = "make one with: ssh-keygen -t ecdsa -b 384 -N '' -f GATEWAY"


def read_keys(folder: Path) -> dict[str, bytes]:
    """The public keys in a folder as PEM, by gateway. Raises `ConfigurationError`."""
    if not folder.is_dir():
        raise ConfigurationError(f"gateway_keys {folder}: is no folder; put each GATEWAY.pub there")
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.pub")):
        if NAME_PATTERN.fullmatch(path.stem) is None:
            raise ConfigurationError(f"{path}: {path.stem!r} is no gateway's name")
        try:
            key = serialization.load_ssh_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(f"{path}: can't be read as a key ({error}); {MAKE}") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigurationError(f"{path}: is a key of another kind; {MAKE}")
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if pem in found.values():
            raise ConfigurationError(f"{path}: is another gateway's key as well; {MAKE}")
        found[path.stem] = pem
    return found


def check_key(path: Path) -> None:
    """Raises `ConfigurationError` where a file holds no private key that a SuperNode can use."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"superlink_key {path}: can't be read ({error}); {MAKE}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"superlink_key {path}: is a key of another kind; {MAKE}")


class GatewayKeys:
    """Keeps a SuperLink to the keys of a folder."""

    def __init__(self, folder: Path, control: Control) -> None:
        """Nothing is read or asked for before the first `look`."""
        self._folder = folder
        self._control = control
        self._known: dict[str, bytes] | None = None
        self._problem = ""

    def look(self) -> None:
        """Let in whose key has come, take out whose key has gone.

        Where the folder can't be read nobody is; what is wrong is logged once.
        """
        try:
            wanted = read_keys(self._folder)
            if wanted != self._known:
                self._bring_about(wanted)
                self._known = wanted
            problem = ""
        except FleetError as error:
            problem = str(error)
        if problem != self._problem:
            self._problem = problem
            if problem:
                logger.error("keys of gateways stay as they are: %s", problem)

    def _bring_about(self, wanted: dict[str, bytes]) -> None:
        nodes = {one.public_key: one for one in self._control.nodes()}
        for key, node in nodes.items():
            if key not in wanted.values() and not node.is_out:
                self._control.take_out(node.id)
                logger.info("SuperNode %d is let in no more: its key is gone", node.id)
        spent = []
        for gateway, key in wanted.items():
            if key not in nodes:
                self._control.let_in(gateway, key)
                logger.info("the SuperNode of gateway %s is let in by its key", gateway)
            elif nodes[key].is_out:
                spent.append(gateway)
        if spent:
            raise ConfigurationError(
                f"the key of gateway {spent[0]} was taken out before, and Flower takes none twice; "
                f"{MAKE}"
            )
