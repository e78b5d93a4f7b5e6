"""The broker's certificate and its clients' CA, which may be replaced while it runs."""

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

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials that follow the files: every handshake uses the newest.

        Raises:
            CredentialError: A file can't be used.
        """
        paths = [path for path in (self.cert, self.key, self.client_ca) if path is not None]
        followed = Followed(paths, self._configuration)
        return grpc.dynamic_ssl_server_credentials(
            followed.now(),
            # Called in gRPC's own threads.
            followed.now,
            require_client_authentication=self.client_ca is not None,
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key = read_file(CERT_FILE, self.cert), read_file(KEY_FILE, self.key)
        check_pair((CERT_FILE, self.cert), (KEY_FILE, self.key))
        ca = None
        if self.client_ca is not None:
            ca = read_file(CLIENT_CA_FILE, self.client_ca)
            check_ca(CLIENT_CA_FILE, ca)
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca)
