"""The client with certificates and tokens, against a real broker that asks for them."""

from pathlib import Path

import pytest

from fetcher.broker_client import (
    AsyncBrokerClient,
    BrokerAwayError,
    BrokerClient,
    BrokerRefusedError,
    CallerView,
    Envelope,
    OnBehalf,
)
from protos.channel.access import Access
from tests.fix_broker import RunningBroker, StartBroker
from tests.fix_broker_client import hold, in_background
from tests.fix_certificates import Company, table
from tests.fix_simulator import RunningSimulator
from tests.waiting import wait_until

WAIT_S = 90.0


@pytest.fixture
def office(tmp_path: Path) -> Company:
    """A CA of this test alone."""
    return Company(tmp_path / "office")


@pytest.fixture
def broker(
    simulator: RunningSimulator, start_broker: StartBroker, office: Company
) -> RunningBroker:
    """A broker that asks for a certificate, and accepts a token as well."""
    server = office.issue("broker", "127.0.0.1")
    tables = [
        table("fetchers", "fetcher", certificates=["fetcher.example"],
              token=office.token("fetcher").read_text()),
        table("viewers", "viewer", certificates=["viewer.example"],
              token=office.token("viewer").read_text()),
    ]  # fmt: skip
    return start_broker(
        simulator.base_url,
        simulator.api_key,
        access=office.access(office.issue("viewer", "viewer.example")),
        broker_tls_cert_file=server.cert,
        broker_tls_key_file=server.key,
        broker_tls_client_ca_file=office.ca,
        broker_identities_file=office.identities(tables),
    )


def test_a_lease_is_taken_and_settled_with_a_certificate(
    broker: RunningBroker, office: Company
) -> None:
    """The broker counts it to the identity and the name of this process."""
    access = office.access(office.issue("fetcher", "fetcher.example"))
    with (
        BrokerClient(broker.address, holder="one", access=access) as client,
        client.lease("deal", tokens_per_unit=5, max_wait_s=WAIT_S) as lease,
    ):
        lease.calling()
        lease.settle_replied(Envelope(1_758_325_044_347, 2, 28, 5, 38_816, 20, 0.0))

    assert broker.bucket().totals.spent_tokens == 5


async def test_a_lease_on_behalf_is_its_callers(broker: RunningBroker, office: Company) -> None:
    """The caller's token counts in every call, and not the program's certificate."""
    access = office.access(office.issue("viewer", "viewer.example"))
    shop = OnBehalf("shop", office.token("fetcher").read_text().strip())
    async with AsyncBrokerClient(broker.address, access=access) as client:
        caller = await client.get_caller(shop)
        async with client.lease(
            "deal", tokens_per_unit=5, max_wait_s=WAIT_S, behalf=shop
        ) as lease:
            await lease.settle_not_sent()
        with pytest.raises(BrokerRefusedError, match="no such token"):
            await client.get_caller(OnBehalf("shop", "a stranger's"))
        with pytest.raises(BrokerRefusedError, match="viewers has the role viewer"):
            async with client.lease("deal"):
                pass

    assert caller == CallerView("fetchers", "fetcher")
    assert broker.bucket().totals.settles == 1
    assert shop.token not in repr(shop)


async def test_an_absence_ends_a_wait_before_its_deadline() -> None:
    """A gateway's callers learn soon that the broker is away, however long they would wait."""
    async with AsyncBrokerClient("127.0.0.1:1") as client:
        with pytest.raises(BrokerAwayError):
            async with client.lease("deal", max_wait_s=3600, absence_max_s=0.2):
                pass


def test_a_wrong_role_is_a_matter_for_a_person(broker: RunningBroker, office: Company) -> None:
    """The token is another's here, and counts before the certificate."""
    pair = office.issue("fetcher", "fetcher.example")
    access = office.access(pair, office.token("viewer"))
    with (
        BrokerClient(broker.address, access=access) as client,
        pytest.raises(BrokerRefusedError) as caught,
    ):
        hold(client)

    assert "viewers has the role viewer, but AcquireLease needs fetcher" in str(caught.value)


def test_a_broker_that_hangs_up_is_explained(broker: RunningBroker, office: Company) -> None:
    """In the error of a caller with a deadline, and in the log of one without."""
    with (
        BrokerClient(broker.address, access=office.access()) as client,
        pytest.raises(BrokerAwayError) as caught,
    ):
        hold(client, max_wait_s=0.2)

    assert "if it wants a client certificate, set BROKER_TLS_CLIENT_CERT_FILE" in str(caught.value)


def test_a_renewed_certificate_is_taken_up_without_a_restart(
    broker: RunningBroker, office: Company, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that waits for the broker with an expired one gets in once it is replaced."""
    caplog.set_level("INFO")
    mine = office.issue("fetcher", "fetcher.example", expired=True)
    client = BrokerClient(broker.address, access=office.access(mine))
    thread, errors = in_background(lambda: hold(client, max_wait_s=WAIT_S))
    wait_until(lambda: "may have expired" in caplog.text, "the client says why it waits")
    office.issue("fetcher", "fetcher.example")
    thread.join(WAIT_S)
    client.close()

    assert errors == []
    assert "new certificates taken" in caplog.text
    assert "answers again" in caplog.text


def test_a_replaced_token_is_taken_up_at_once(
    simulator: RunningSimulator, start_broker: StartBroker, office: Company
) -> None:
    """On one machine also without TLS."""
    token = office.token("fetcher")
    book = office.identities([table("fetchers", "fetcher", token=token.read_text())])
    broker = start_broker(
        simulator.base_url,
        simulator.api_key,
        access=Access(token_file=token),
        broker_identities_file=book,
    )
    mine = office.token("mine")
    with BrokerClient(broker.address, access=Access(token_file=mine)) as client:
        with pytest.raises(BrokerRefusedError) as caught:
            hold(client)
        mine.write_text(token.read_text())
        hold(client)

    assert "check BROKER_TOKEN_FILE" in str(caught.value)
