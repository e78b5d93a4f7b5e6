"""The broker's certificate and its clients' CA, which may be replaced while it runs."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from protos.channel.credential_files import check_ca, check_pair, read_file
from protos.process.watched_files import Followed

CERT_FILE: Final = "BROKER_TLS_CERT_FILE"
KEY_FILE: Final = "BROKER_TLS_KEY_FILE"
CLIENT_CA_FILE: Final = "BROKER_TLS_CLIENT_CA_FILE"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the PEM files; without *client_ca* clients need no certificate."""

    cert: Path
    key: Path
    client_ca: Path | None

    def follow(self) -> Followed[grpc.ServerCertificateConfiguration]:
        """Returns the configuration that follows the files.

        Raises:
            CredentialError: A file can't be used.
        """
        paths = [path for path in (self.cert, self.key, self.client_ca) if path is not None]
        return Followed(paths, self._configuration)

    def credentials(
        self, followed: Followed[grpc.ServerCertificateConfiguration]
    ) -> grpc.ServerCredentials:
        """Returns credentials in which every handshake uses the newest of *followed*."""
        return grpc.dynamic_ssl_server_credentials(
            followed.now(),
            # Called in gRPC's own threads.
            followed.now,
            require_client_authentication=self.client_ca is not None,
        )

    def expiries_s(self) -> dict[str, float]:
        """Returns when the certificates expire, in Unix seconds, by the part they play.

        Of several in a file the first to expire counts. A file that is just being replaced
        is left out.
        """
        # Imported late: only brokers with TLS pay its ten megabytes of memory.
        from cryptography import x509  # noqa: PLC0415 - see above

        parts = {"broker": self.cert, "client_ca": self.client_ca}
        expiries = {}
        for part, path in parts.items():
            # A renewal may be under way, or the file unusable: then the old one is in use.
            with suppress(OSError, ValueError):
                if path is not None:
                    found = x509.load_pem_x509_certificates(path.read_bytes())
                    expiries[part] = min(one.not_valid_after_utc.timestamp() for one in found)
        return expiries

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key = read_file(CERT_FILE, self.cert), read_file(KEY_FILE, self.key)
        check_pair((CERT_FILE, self.cert), (KEY_FILE, self.key))
        ca = None
        if self.client_ca is not None:
            ca = read_file(CLIENT_CA_FILE, self.client_ca)
            check_ca(CLIENT_CA_FILE, ca)
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca)
