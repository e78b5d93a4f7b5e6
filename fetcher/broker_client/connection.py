"""The channel to the broker; reopened when its certificates are replaced."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import grpc

from fetcher.broker_client.verdicts import is_elsewhere
from protos.channel.access import Access, addresses_of
from protos.channel.credential_files import CredentialError
from protos.channel.options import CLIENT, SEVERAL, Options
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Listener = Callable[[], None]
IDLE = grpc.ChannelConnectivity.IDLE
FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
# A busy machine may take so long until a new thread runs.
FIRST_LOOK_S: Final = 2.0


class Reopening(ABC):
    """A channel to one of the brokers at *address*, which may be several.

    It follows the leader and the certificates: `refresh` opens a new channel to the next
    address, or to the same name again, which may stand for several brokers.

    Raises:
        CredentialError: A file of *access* can't be used, or a token would travel in plaintext.
    """

    def __init__(self, address: str, access: Access) -> None:
        self._addresses = addresses_of(address)
        self._access = access
        self._lock = threading.Lock()
        self._problem = ""
        access.check(address)
        self._certificates = access.read()
        # Increases with every new channel.
        self.turn = 0
        self._next = 0
        self._open()

    @property
    def tries(self) -> int:
        """How often to look for the leader; a name may stand for several brokers."""
        return max(3, len(self._addresses))

    def is_elsewhere(self, exc: grpc.RpcError) -> bool:
        """Returns whether another broker may serve what failed with *exc*."""
        return is_elsewhere(exc, several=len(self._addresses) > 1)

    def refresh(self, turn: int, exc: grpc.RpcError) -> bool:
        """Opens a new channel if the broker is elsewhere or the certificates are new.

        Args:
            turn: The value of `turn` before the call.
            exc: The error with which the call failed.

        Returns:
            Whether the channel is another one now, also if another thread has opened it.
        """
        with self._lock:
            if turn != self.turn:
                return True
            elsewhere = self.is_elsewhere(exc)
            if not self._read_certificates() and not elsewhere:
                return False
            self._move(self._next + elsewhere)
            return True

    def try_next(self) -> None:
        """Opens a new channel to the next address."""
        with self._lock:
            self._move(self._next + 1)

    def _move(self, number: int) -> None:
        self._next = number % len(self._addresses)
        self.turn += 1
        self._leave()
        # Calls under way keep the old channel; it ends with the last of them.
        self._open()

    def _read_certificates(self) -> bool:
        """Returns whether there are new ones on disk."""
        if self._access.ca_file is None:
            return False
        try:
            certificates = self._access.read()
        except CredentialError as exc:
            if str(exc) != self._problem:
                log.warning("changed certificates are unusable: %s", exc)
            self._problem = str(exc)
            return False
        if certificates == self._certificates:
            return False
        self._certificates = certificates
        self._problem = ""
        log.info("new certificates taken for the broker at %s", self._addresses[self._next])
        return True

    @property
    def _target(self) -> tuple[str, Options]:
        """The address of the next channel, and its options."""
        return self._addresses[self._next], CLIENT if len(self._addresses) == 1 else SEVERAL

    @abstractmethod
    def _open(self) -> None:
        """Makes channel and stub."""

    @abstractmethod
    def _leave(self) -> None:
        """Detaches from the channel, which is about to be replaced."""


class Connection(Reopening):
    """The blocking client's channel."""

    def __init__(self, address: str, access: Access) -> None:
        self._on_loss: Listener | None = None
        self._state: grpc.ChannelConnectivity | None = None
        super().__init__(address, access)

    @property
    def stub(self) -> pb_grpc.TokenBrokerServiceStub:
        """The stub for the next call; a refresh replaces it."""
        return self._stub

    def on_loss(self, listener: Listener) -> None:
        """Calls *listener* whenever the connection is lost, from grpc's own thread."""
        self._on_loss = listener

    def close(self) -> None:
        """Disconnects."""
        # gRPC's thread fails with a traceback if the channel closes before its first look.
        self._is_watched.wait(FIRST_LOOK_S)
        self._leave()
        self._channel.close()

    def _open(self) -> None:
        self._channel = self._access.channel(*self._target, self._certificates)
        self._stub = pb_grpc.TokenBrokerServiceStub(self._channel)
        self._state = None
        self._is_watched = threading.Event()
        self._channel.subscribe(self._changed)

    def _leave(self) -> None:
        self._channel.unsubscribe(self._changed)

    def _changed(self, state: grpc.ChannelConnectivity) -> None:
        # The first report is of the new channel; gRPC leaves out states that pass quickly.
        before, self._state = self._state, state
        self._is_watched.set()
        lost = state is FAILED or (state is IDLE and before is not None)
        if lost and self._on_loss is not None:
            self._on_loss()


class AsyncConnection(Reopening):
    """The asyncio client's channel; the client watches its state."""

    channel: grpc.aio.Channel
    # The generated type stubs have one class for both kinds of channel.
    stub: Any

    async def close(self) -> None:
        """Disconnects."""
        await self.channel.close(None)

    def _open(self) -> None:
        self.channel = self._access.aio_channel(*self._target, self._certificates)
        self.stub = pb_grpc.TokenBrokerServiceStub(self.channel)

    def _leave(self) -> None:
        """Does nothing: the client compares `channel` with the one it watches."""
