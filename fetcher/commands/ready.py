"""The startup check of a container: configuration read, broker and schema seen."""

from fetcher.broker_client import BrokerClient
from fetcher.commands.alive import TIMEOUT_S, why_not_alive
from fetcher.settings import Settings
from protos.process.settings import key_fingerprint


def why_not_ready(settings: Settings) -> str | None:
    """Returns why the fetcher of this host has not begun to work; None once it has.

    A fetcher that reports as working has read its settings and seen the tables that its
    version needs. The broker must serve this client, for the same key.

    Raises:
        DatabaseError: Postgres gave no answer.
        BrokerClientError: The broker gave none, or refuses this client.
        SettingsError: A setting is missing.
    """
    fingerprint = key_fingerprint(settings.require_api_key())
    access = settings.require_access()
    if (reason := why_not_alive(settings)) is not None:
        return reason
    with BrokerClient(settings.broker_address, access=access) as broker:
        bucket = broker.get_bucket(timeout_s=TIMEOUT_S)
    if bucket.key_fingerprint not in {"", fingerprint}:
        return "the broker counts for another key: give both the same KEEPA_API_KEY"
    return None
