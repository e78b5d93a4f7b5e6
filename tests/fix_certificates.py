"""Certificates, tokens and identities of a small company, as files."""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protos.channel.access import Access

DAY = dt.timedelta(days=1)
ROLES = ("fetcher", "operator", "viewer")


@dataclass(frozen=True)
class Pair:
    """A certificate chain and its key, as PEM files."""

    cert: Path
    key: Path


class Company:
    """A CA, and what it has issued into *folder*."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = folder / "ca.crt"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str, expired: bool = False, file: str = "") -> Pair:
        """A certificate with *name* as its common name, for *hosts*."""
        not_after = dt.datetime.now(dt.UTC) - DAY if expired else None
        leaf = self._authority.issue_cert(*hosts, common_name=name, not_after=not_after)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return self._write(file or name, chain, leaf.private_key_pem.bytes())

    def issue_spiffe(self, uri: str, *hosts: str) -> Pair:
        """A certificate for a SPIFFE id, with other names beside it."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self._authority.cert_pem.bytes())
        issuer_key = serialization.load_pem_private_key(
            self._authority.private_key_pem.bytes(), password=None
        )
        assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
        names = [x509.UniformResourceIdentifier(uri), *map(x509.DNSName, hosts)]
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .sign(issuer_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write("spiffe", certificate.public_bytes(pem), private)

    def access(self, pair: Pair | None = None, token: Path | None = None) -> Access:
        """The way in with a certificate or a token."""
        if pair is None:
            return Access(self.ca, token_file=token)
        return Access(self.ca, pair.cert, pair.key, token_file=token)

    def token(self, name: str) -> Path:
        """A file with a token for *name*."""
        path = self._folder / f"{name}.token"
        path.write_text(f"token-of-{name}-8c1f0e\n")
        return path

    def identities(self, tables: Iterable[str]) -> Path:
        """An identities file."""
        path = self._folder / "identities.toml"
        path.write_text("\n".join(tables))
        return path

    def _write(self, name: str, chain: bytes, key: bytes) -> Pair:
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.cert.write_bytes(chain)
        pair.key.write_bytes(key)
        return pair


def table(name: str, role: str, *, certificates: Iterable[str] = (), token: str = "") -> str:
    """A table of the identities file."""
    digests = [hashlib.sha256(token.strip().encode()).hexdigest()] if token else []
    return (
        f'[{name}]\nrole = "{role}"\ncertificates = {json.dumps(list(certificates))}\n'
        f"token_sha256 = {json.dumps(digests)}\n"
    )


@pytest.fixture(scope="session")
def company(tmp_path_factory: pytest.TempPathFactory) -> Company:
    """A CA that all tests trust; what they change they issue under names of their own."""
    return Company(tmp_path_factory.mktemp("company"))
