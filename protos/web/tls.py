"""TLS of an HTTP port, with certificates that may be replaced while it runs."""

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.channel.credential_files import check_ca, check_pair, read_file
from protos.process.watched_files import Followed


@dataclass(frozen=True, slots=True)
class HttpTls:
    """Paths of the PEM files.

    Args:
        prefix: The beginning of their settings' names, such as CONSOLE_TLS.
        cert: The server's certificate chain.
        key: Its key.
        client_ca: Asks for client certificates of this CA.
        required: Whether a client without a certificate is refused.
    """

    prefix: str
    cert: Path
    key: Path
    client_ca: Path | None = None
    required: bool = False

    def context(self) -> ssl.SSLContext:
        """Returns a context that follows the files: every handshake uses the newest.

        Raises:
            CredentialError: A file can't be used.
        """
        paths = [path for path in (self.cert, self.key, self.client_ca) if path is not None]
        followed = Followed(paths, self._read)

        def newest(connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
            connection.context = followed.now()

        context = self._read()
        # Called in every handshake, with or without a server name (Python documentation).
        context.sni_callback = newest  # type: ignore[assignment]  # typeshed has SSLSocket only
        return context

    def _read(self) -> ssl.SSLContext:
        settings = f"{self.prefix}_CERT_FILE", f"{self.prefix}_KEY_FILE"
        check_pair((settings[0], self.cert), (settings[1], self.key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key, password="")
        if self.client_ca is not None:
            ca = read_file(f"{self.prefix}_CLIENT_CA_FILE", self.client_ca)
            check_ca(f"{self.prefix}_CLIENT_CA_FILE", ca)
            context.load_verify_locations(cadata=ca.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED if self.required else ssl.CERT_OPTIONAL
        return context


def certificate_names(certificate: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the names in a peer's certificate by kind: SPIFFE ids, DNS names, common names.

    The first kind that a certificate has counts, as for gRPC.
    """
    names = certificate.get("subjectAltName", ())
    yield [name for kind, name in names if kind == "URI" and name.startswith("spiffe://")]
    yield [name for kind, name in names if kind == "DNS"]
    subject = certificate.get("subject", ())
    yield [value for part in subject for kind, value in part if kind == "commonName"]
