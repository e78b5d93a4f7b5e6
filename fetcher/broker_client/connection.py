"""The channel to the broker; reopened when its certificates are replaced."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import grpc

from protos.channel.access import Access
from protos.channel.credential_files import CredentialError
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Listener = Callable[[grpc.ChannelConnectivity], None]


class Reopening(ABC):
    """A channel to *address* that follows its certificates.

    Raises:
        CredentialError: A file of *access* can't be used, or a token would travel in plaintext.
    """

    def __init__(self, address: str, access: Access) -> None:
        self._address = address
        self._access = access
        self._lock = threading.Lock()
        self._problem = ""
        self._certificates = access.read()
        self._open()

    def refresh(self) -> None:
        """Switches to new certificates on disk; call it after a failed call."""
        if self._access.ca_file is None:
            return
        with self._lock:
            try:
                certificates = self._access.read()
            except CredentialError as exc:
                if str(exc) != self._problem:
                    log.warning("changed certificates are unusable: %s", exc)
                self._problem = str(exc)
                return
            if certificates != self._certificates:
                self._certificates = certificates
                self._leave()
                # Calls under way keep the old channel; it ends with the last of them.
                self._open()
                self._problem = ""
                log.info("new certificates taken for the broker at %s", self._address)

    @abstractmethod
    def _open(self) -> None:
        """Makes channel and stub."""

    @abstractmethod
    def _leave(self) -> None:
        """Detaches from the channel, which is about to be replaced."""


class Connection(Reopening):
    """The blocking client's channel."""

    def __init__(self, address: str, access: Access) -> None:
        self._listener: Listener | None = None
        super().__init__(address, access)

    @property
    def stub(self) -> pb_grpc.TokenBrokerServiceStub:
        """The stub for the next call; a refresh replaces it."""
        return self._stub

    def subscribe(self, listener: Listener) -> None:
        """Calls *listener* at every change of the connection, from grpc's own thread."""
        self._listener = listener
        self._channel.subscribe(listener)

    def close(self) -> None:
        """Disconnects."""
        self._leave()
        self._channel.close()

    def _open(self) -> None:
        self._channel = self._access.channel(self._address, certificates=self._certificates)
        self._stub = pb_grpc.TokenBrokerServiceStub(self._channel)
        if self._listener is not None:
            self._channel.subscribe(self._listener)

    def _leave(self) -> None:
        if self._listener is not None:
            self._channel.unsubscribe(self._listener)


class AsyncConnection(Reopening):
    """The asyncio client's channel; the client watches its state."""

    channel: grpc.aio.Channel
    # The generated type stubs have one class for both kinds of channel.
    stub: Any

    async def close(self) -> None:
        """Disconnects."""
        await self.channel.close(None)

    def _open(self) -> None:
        self.channel = self._access.aio_channel(self._address, certificates=self._certificates)
        self.stub = pb_grpc.TokenBrokerServiceStub(self.channel)

    def _leave(self) -> None:
        """Does nothing: the client compares `channel` with the one it watches."""
