"""The channel to the broker; made anew when the certificates it was made with are replaced."""

import logging
import threading
from collections.abc import Callable

import grpc

from protos.channel.access import Access
from protos.channel.credential_files import CredentialError
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Listener = Callable[[grpc.ChannelConnectivity], None]


class Connection:
    """A channel to *address*.

    Raises:
        CredentialError: A file of *access* can't be used, or a token would travel in plaintext.
    """

    def __init__(self, address: str, access: Access) -> None:
        self._address = address
        self._access = access
        self._listener: Listener | None = None
        self._lock = threading.Lock()
        self._problem = ""
        self._certificates = access.read()
        self._open()

    def subscribe(self, listener: Listener) -> None:
        """Have *listener* told every change of the connection, from grpc's own thread."""
        self._listener = listener
        self._channel.subscribe(listener)

    @property
    def stub(self) -> pb_grpc.TokenBrokerServiceStub:
        """For calls; ask for it before each."""
        return self._stub

    def refresh(self) -> None:
        """After a failed call: with new certificates on disk, use them from now on."""
        if self._access.ca_file is None:
            return
        with self._lock:
            try:
                certificates = self._access.read()
            except CredentialError as exc:
                self._say(str(exc))
                return
            if certificates != self._certificates:
                self._certificates = certificates
                self._unsubscribe()
                # Calls under way keep the old channel; it ends with the last of them.
                self._open()
                self._say("")
                log.info("new certificates taken for the broker at %s", self._address)

    def close(self) -> None:
        """Disconnect."""
        self._unsubscribe()
        self._channel.close()

    def _open(self) -> None:
        self._channel = self._access.channel(self._address, certificates=self._certificates)
        self._stub = pb_grpc.TokenBrokerServiceStub(self._channel)
        if self._listener is not None:
            self._channel.subscribe(self._listener)

    def _unsubscribe(self) -> None:
        if self._listener is not None:
            self._channel.unsubscribe(self._listener)

    def _say(self, problem: str) -> None:
        """Log *problem* when it is a new one."""
        if problem and problem != self._problem:
            log.warning("changed certificates make no sense: %s", problem)
        self._problem = problem
