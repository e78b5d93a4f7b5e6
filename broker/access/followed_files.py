"""The files that the broker follows while it runs, all read at its start."""

import ssl
from dataclasses import dataclass
from functools import partial
from typing import Self

import grpc

from broker.access.budgets_file import BudgetsFile
from broker.access.identities import IdentityBook
from broker.access.tls import TlsFiles
from broker.settings import ServeSettings
from protos.process.scrape_token import scrape_token
from protos.process.watched_files import FileState, Followed
from protos.web.tls import HttpTls


@dataclass(frozen=True, slots=True)
class FollowedFiles:
    """None for a file that the broker does not have.

    One that can't be used ends the start; once it has been read, an invalid change is ignored.
    The HTTP port begins late, when leases may be out: it reads no file of its own.
    """

    budgets: BudgetsFile | None
    book: Followed[IdentityBook] | None
    tls: TlsFiles | None
    certificates: Followed[grpc.ServerCertificateConfiguration] | None
    # Follows its files by itself.
    http_tls: ssl.SSLContext | None
    scrape_token: Followed[str] | None

    @classmethod
    def of(cls, settings: ServeSettings) -> Self:
        """Reads the files that *settings* name.

        Raises:
            BudgetsFileError: The budgets can't be used.
            CredentialError: A file of certificates, identities or a token can't be used.
        """
        budgets, identities = settings.broker_budgets_file, settings.broker_identities_file
        cert, key = settings.broker_tls_cert_file, settings.broker_tls_key_file
        tls = None
        if cert is not None and key is not None:
            tls = TlsFiles(cert, key, settings.broker_tls_client_ca_file)
        return cls(
            budgets=None if budgets is None else BudgetsFile(budgets),
            book=None
            if identities is None
            else Followed([identities], partial(IdentityBook.read, identities)),
            tls=tls,
            certificates=None if tls is None else tls.follow(),
            http_tls=_http_tls(settings),
            scrape_token=scrape_token(settings),
        )

    def states(self) -> dict[str, FileState]:
        """The version of each that is in use."""
        followed = {
            "budgets": self.budgets,
            "identities": self.book,
            "certificates": self.certificates,
        }
        return {name: one.state for name, one in followed.items() if one is not None}

    def expiries_s(self) -> dict[str, float]:
        """When the certificates expire, in Unix seconds."""
        return {} if self.tls is None else self.tls.expiries_s()


def _http_tls(settings: ServeSettings) -> ssl.SSLContext | None:
    cert, key = settings.broker_http_tls_cert_file, settings.broker_http_tls_key_file
    if cert is None or key is None:
        return None
    return HttpTls("BROKER_HTTP_TLS", cert, key, settings.broker_http_tls_client_ca_file).context()
