"""A certificate authority of a fleet's own: who is the broker, the coordinator, a gateway.

Its folder has the authority's certificate (`ca.crt`, which everybody gets) and key (`ca.key`, which
stays), and the certificates that it has issued. Keys are of P-256, which every TLS library speaks;
files with keys are readable by their owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.clock import Clock, SystemClock
from fleet.errors import CertificateError
from fleet.protocol import fields

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
"""What common TLS libraries accept at most of a server."""
# Clocks of sites may be behind ours.
BACKDATED = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, as files."""

    name: str
    certificate: Path
    key: Path
    expires: datetime.datetime
    fingerprint: str
    """SHA-256 of the certificate in hex."""


class Authority:
    """Issues certificates; its folder is all that it is."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        """Use the authority in `folder`. Raises `CertificateError` where there is none."""
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._clock = clock or SystemClock()
        try:
            self._root = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise CertificateError(
                f"{folder} has no certificate authority that can be used ({error}); "
                "make one with: tinyfleet ca init FOLDER"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{folder / 'ca.key'} holds a key of another kind than ours")
        if key.public_key() != self._root.public_key():
            raise CertificateError(f"ca.key of {folder} isn't the key of its ca.crt")
        self._key = key

    @classmethod
    def create(cls, folder: Path, fleet: str, clock: Clock | None = None) -> Authority:
        """A new authority for a fleet. Raises `CertificateError` where the folder has one."""
        fields.name("certificate", "fleet", fleet)
        if (folder / "ca.key").exists() or (folder / "ca.crt").exists():
            raise CertificateError(
                f"{folder} has a certificate authority already; what it has issued would be worth "
                "nothing with another one: use it, or another folder"
            )
        now = _now(clock or SystemClock())
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tinyfleet {fleet}")])
        root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True)
        _write_key(folder / "ca.key", key)
        (folder / "ca.crt").write_bytes(root.public_bytes(serialization.Encoding.PEM))
        return cls(folder, clock)

    @property
    def expires(self) -> datetime.datetime:
        """When nothing that it has issued is worth anything any more."""
        return self._root.not_valid_after_utc

    def issue(self, name: str, hosts: Sequence[str] = ()) -> Certificate:
        """A certificate for `name`; one that it had before is replaced.

        `hosts` are the names and addresses under which it is reached, where it is a server;
        without them it is good for clients only.
        """
        fields.name("certificate", "name", name)
        if name == "ca":
            raise CertificateError("a certificate can't be called ca: that is the authority's")
        now = _now(self._clock)
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + datetime.timedelta(days=CERTIFICATE_DAYS), self.expires))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if hosts:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        issued = builder.sign(self._key, hashes.SHA256())
        # The key first: who finds a certificate finds its key.
        _write_key(self.folder / f"{name}.key", key)
        path = self.folder / f"{name}.crt"
        path.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        return _described(name, path, issued)

    def issued(self) -> tuple[Certificate, ...]:
        """All that lie in the folder, in order of their names."""
        found = []
        for path in sorted(self.folder.glob("*.crt")):
            if path != self.certificate:
                try:
                    certificate = x509.load_pem_x509_certificate(path.read_bytes())
                except ValueError as error:
                    raise CertificateError(f"{path} is no certificate ({error})") from None
                found.append(_described(path.stem, path, certificate))
        return tuple(found)


def _described(name: str, path: Path, certificate: x509.Certificate) -> Certificate:
    return Certificate(
        name,
        path,
        path.with_suffix(".key"),
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or len(host) > 253 or not all(_is_label(part) for part in host.split(".")):
        raise CertificateError(
            f"{host!r} is neither a host's name nor an address, such as broker.local or 10.0.0.5"
        )
    return x509.DNSName(host)


def _is_label(part: str) -> bool:
    letters = part.replace("-", "")
    return (
        0 < len(part) <= 63
        and part.isascii()
        and letters.isalnum()
        and not part.startswith("-")
        and not part.endswith("-")
    )


def _now(clock: Clock) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(clock.wall(), datetime.UTC).replace(microsecond=0)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # Made anew, so that it never has the rights of a file that was there.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
