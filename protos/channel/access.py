"""How a client connects to the broker: TLS, its certificate or token, and readable errors.

The same for every Python program. Certificates and tokens are files, because they are
replaced while programs run: a token is read for every call, certificates at every
`Access.read`.
"""

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from protos.channel.credential_files import CredentialError, check_ca, check_pair, read_file
from protos.channel.options import ANY_FIRST, CLIENT, Options

CA_FILE: Final = "BROKER_TLS_CA_FILE"
CERT_FILE: Final = "BROKER_TLS_CLIENT_CERT_FILE"
KEY_FILE: Final = "BROKER_TLS_CLIENT_KEY_FILE"
SERVER_NAME: Final = "BROKER_TLS_SERVER_NAME"
TOKEN_FILE: Final = "BROKER_TOKEN_FILE"  # noqa: S105 - the name of a setting

# Stands before an error in grpc's details: ipv4:10.0.0.1:50051: or ipv6:%5B::1%5D:50051:.
ADDRESS: Final = re.compile(r"^ipv[46]:\S+?:\d+: ")
REASON_LENGTH_MAX: Final = 200

# gRPC sends every channel through the proxy of https_proxy or http_proxy, loopback included.
DIRECT: Final = ("grpc.enable_http_proxy", 0)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The content of the files when they were read, as PEM; the key never shows."""

    ca: bytes | None = None
    chain: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """A client's files; without any the client uses plaintext and has no identity.

    Args:
        ca_file: CA of the broker's certificate; without it there is no TLS.
        cert_file: The client's certificate chain, for mutual TLS.
        key_file: The key of *cert_file*.
        server_name: The name in the broker's certificate, if it is not the address.
        token_file: File with a bearer token.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""
    token_file: Path | None = None

    def read(self) -> Certificates:
        """Reads the certificates from their files.

        Raises:
            CredentialError: A file is missing, unreadable or unusable.
        """
        if (self.cert_file is None) != (self.key_file is None):
            raise CredentialError(f"{CERT_FILE} and {KEY_FILE} belong together: set both or none")
        if self.ca_file is None:
            if self.cert_file or self.server_name:
                given = CERT_FILE if self.cert_file else SERVER_NAME
                raise CredentialError(f"{given} is for TLS: set {CA_FILE} too")
            return Certificates()
        ca = read_file(CA_FILE, self.ca_file)
        check_ca(CA_FILE, ca)
        if self.cert_file is None or self.key_file is None:
            return Certificates(ca)
        chain, key = read_file(CERT_FILE, self.cert_file), read_file(KEY_FILE, self.key_file)
        check_pair((CERT_FILE, self.cert_file), (KEY_FILE, self.key_file))
        return Certificates(ca, chain, key)

    def check(self, address: str) -> None:
        """Checks that a channel to *address*, or to each of several, can be opened.

        Raises:
            CredentialError: A file is wrong, or a token would travel in plaintext.
        """
        self.read()
        if self.token_file is None:
            return
        read_token(self.token_file)
        if not self.protects_tokens(address):
            raise CredentialError(
                f"{TOKEN_FILE}: a token must not travel to {address} in plaintext: set {CA_FILE}"
            )

    def protects_tokens(self, address: str) -> bool:
        """Returns whether a token may travel to *address*: in TLS, or within this machine."""
        return self.ca_file is not None or is_local(address)

    def channel(
        self, address: str, options: Options = CLIENT, certificates: Certificates | None = None
    ) -> grpc.Channel:
        """Opens a channel to *address*, with *certificates* if they have been read already.

        Raises:
            CredentialError: As `check`.
        """
        options, credentials = self._way(address, options, certificates)
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    def aio_channel(
        self, address: str, options: Options = CLIENT, certificates: Certificates | None = None
    ) -> grpc.aio.Channel:
        """Opens a channel for the running event loop.

        Raises:
            CredentialError: As `check`.
        """
        options, credentials = self._way(address, options, certificates)
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=options)

    def _way(
        self, address: str, options: Options, certificates: Certificates | None
    ) -> tuple[Options, grpc.ChannelCredentials | None]:
        """Returns options and credentials of a channel; without credentials it is plaintext."""
        self.check(address)
        if all(name != ANY_FIRST[0] for name, _ in options):
            options = (*options, ANY_FIRST)
        if is_local(address):
            options = (*options, DIRECT)
        if self.ca_file is None and self.token_file is None:
            return options, None
        if self.server_name:
            options = (*options, ("grpc.ssl_target_name_override", self.server_name))
        return options, self._credentials(certificates)

    def _credentials(self, certificates: Certificates | None) -> grpc.ChannelCredentials:
        if self.ca_file is None:
            # Plaintext; gRPC lets it connect to this machine only.
            credentials = grpc.local_channel_credentials()
        else:
            has = certificates or self.read()
            credentials = grpc.ssl_channel_credentials(has.ca, has.key, has.chain)
        if self.token_file is None:
            return credentials
        bearer = grpc.metadata_call_credentials(BearerToken(self.token_file))
        return grpc.composite_channel_credentials(credentials, bearer)

    def trouble(self, details: str | None) -> str:
        """Returns the TLS problem in *details* of an UNAVAILABLE, with its remedy; else ""."""
        details = details or ""
        if "CERTIFICATE_VERIFY_FAILED" in details:
            if "expired" in details:
                return "the broker's certificate has expired: renew its BROKER_TLS_CERT_FILE"
            return f"the broker's certificate is not from the CA in {CA_FILE}: use the right CA"
        if "Hostname Verification" in details:
            return (
                "the broker's certificate does not name this address: use a name that it holds"
                f" in BROKER_ADDRESS or {SERVER_NAME}"
            )
        if "WRONG_VERSION_NUMBER" in details:
            return f"the broker speaks no TLS: unset {CA_FILE}, or give it BROKER_TLS_CERT_FILE"
        if "failed to connect" in details and _hung_up(details):
            return self._hung_up()
        return ""

    def silence(self, address: str, details: str | None) -> str:
        """Returns in one line why *address* gives no answer, from *details* of an UNAVAILABLE."""
        details = details or ""
        trouble = self.trouble(details)
        if trouble or "failed to connect" in details or not details:
            reason = trouble or _last_error(details)
            return f"no broker answers at {address}: {reason}".removesuffix(": ")
        return f"the connection to the broker at {address} broke: {_last_error(details)}"

    def _hung_up(self) -> str:
        """Returns the likely cause of a connection that the broker closed in the handshake."""
        if self.ca_file is None:
            return f"it hangs up on plaintext: if it uses TLS, set {CA_FILE}"
        if self.cert_file is None:
            return f"it hangs up: if it wants a client certificate, set {CERT_FILE} and {KEY_FILE}"
        return (
            f"it hangs up: {CERT_FILE} may have expired, or not be from the CA in the broker's"
            " BROKER_TLS_CLIENT_CA_FILE"
        )


class BearerToken(grpc.AuthMetadataPlugin):
    """Adds the token to every call, as read from its file at that moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = read_token(path)

    def __call__(
        self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None:
        """Adds the token; while its file is unreadable, the last one read."""
        with suppress(CredentialError):
            self._token = read_token(self._path)
        callback((("authorization", f"Bearer {self._token}"),), None)


def read_token(path: Path, setting: str = TOKEN_FILE) -> str:
    """Returns the token in *path*, which *setting* names, without a line break at its end.

    Raises:
        CredentialError: There is none.
    """
    token = read_file(setting, path).strip()
    if not token:
        raise CredentialError(f"{setting}: {path} is empty: put the token in it")
    if not token.isascii() or not token.decode().isprintable() or b" " in token:
        raise CredentialError(f"{setting}: {path} holds blanks or strange characters")
    return token.decode()


def addresses_of(text: str) -> list[str]:
    """Returns the addresses in *text*, with commas between; a gRPC target of several is one."""
    if text.startswith(("ipv4:", "ipv6:", "unix:")):
        return [text]
    return [address.strip() for address in text.split(",")]


def is_local(address: str) -> bool:
    """Returns whether *address*, gRPC targets or host:port, is on this machine only."""
    for each in address.split(","):
        if each.startswith("unix:"):
            continue
        host = re.sub("^(dns|ipv4|ipv6):", "", each.strip()).rpartition("/")[2]
        if not is_loopback(host.rpartition(":")[0].strip("[]")):
            return False
    return True


def is_loopback(host: str) -> bool:
    """Returns whether *host*, a name or an IP address, is this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hung_up(details: str) -> bool:
    return any(word in details for word in ("Socket closed", "reset", "Broken pipe", "EOF"))


def _last_error(details: str) -> str:
    """Returns the cause at the end of gRPC's chain of errors, without kind and address."""
    cause = details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
    return ADDRESS.sub("", " ".join(cause.split()))[:REASON_LENGTH_MAX]
