"""Access to a real broker process, with real certificates and tokens."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import pytest
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from broker.access.identities import METHODS
from broker.rpc.gate import LOG_EVERY_MS, PEERS_MAX, RefusalLog
from protos.channel.access import Access
from protos.channel.reasons import REASON_KEY, Reason
from protos.process.watched_files import file_version
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_certificates import ROLES, Company, Pair, table
from tests.fix_simulator import RunningSimulator
from tests.waiting import wait_until

Code = grpc.StatusCode
TIMEOUT_S = 60.0
SPIFFE = "spiffe://company.example/fetcher"
SERVICE = pb.DESCRIPTOR.services_by_name["TokenBrokerService"]

STAYS = "the old ones stay"
LOOKS = {
    "GetCaller",
    "GetBucket",
    "WatchBucket",
    "ListLeases",
    "ListCosts",
    "ExplainLease",
    "ListSpend",
}
READING = LOOKS | {"reflection", "channelz", "health"}
MAY = {
    "fetcher": READING | {"AcquireLease", "RenewLease", "SettleLease"},
    "operator": READING | {"SyncBucket", "PauseGrants", "ResumeGrants"},
    "viewer": READING,
    "nobody": {"health"},
}


@dataclass(frozen=True)
class ByToken:
    """A broker that asks for a token, the company that runs it, its certificate and its log."""

    broker: RunningBroker
    company: Company
    server: Pair
    log: Path


def call(channel: grpc.Channel, method: str) -> None:
    """Calls *method*, of the contract or of one of the services beside it, to its first answer."""
    stub: Any
    if method == "health":
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    elif method == "channelz":
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        stub.GetServers(channelz_pb2.GetServersRequest(), timeout=TIMEOUT_S)
    elif method == "reflection":
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        next(stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S))
    elif method == "WatchBucket":
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        next(stub.WatchBucket(pb.WatchBucketRequest()))
    else:
        request_type: type[Message] = getattr(pb, SERVICE.methods_by_name[method].input_type.name)
        getattr(pb_grpc.TokenBrokerServiceStub(channel), method)(request_type(), timeout=TIMEOUT_S)


def outcome(broker: RunningBroker, access: Access, method: str = "GetBucket") -> tuple[Code, str]:
    """The status and message with which a call ends."""
    with access.channel(broker.address) as channel:
        try:
            call(channel, method)
        except grpc.RpcError as exc:
            return exc.code(), exc.details() or ""
    return Code.OK, ""


def let_in(broker: RunningBroker, access: Access) -> set[str]:
    """Every method that passes the gate, whatever the status of an empty request."""
    refused = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
    # In this order granting is resumed after the pause.
    methods = sorted(MAY["fetcher"] | MAY["operator"])
    return {m for m in methods if outcome(broker, access, m)[0] not in refused}


def scraped(broker: RunningBroker, series: str) -> float:
    """The value of one series."""
    with urlopen(f"{broker.http_url}/metrics", timeout=TIMEOUT_S) as reply:
        lines = reply.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(series))


@pytest.fixture(scope="module")
def mutual(
    simulator: RunningSimulator, company: Company, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    """A broker that asks for a certificate."""
    server = company.issue("broker", "127.0.0.1", "localhost")
    tables = [table(role, role, certificates=[f"{role}.example"]) for role in ROLES]
    tables += [
        table("others", "fetcher", certificates=["others"]),
        table("robots", "fetcher", certificates=[SPIFFE]),
    ]
    broker = launch_broker(
        simulator.base_url,
        simulator.api_key,
        folder=tmp_path_factory.mktemp("mutual"),
        name="mutual",
        access=company.access(company.issue("viewer", "viewer.example")),
        broker_tls_cert_file=server.cert,
        broker_tls_key_file=server.key,
        broker_tls_client_ca_file=company.ca,
        # Its own test covers access to them: tests/protos/web/test_guard.py.
        metrics_open=True,
        broker_identities_file=company.identities(tables),
    )
    yield broker
    broker.program.stop()


def by_role(company: Company) -> Path:
    """The identities file: one identity of each role, with a token."""
    return company.identities(
        table(role, role, token=company.token(role).read_text()) for role in ROLES
    )


def launch_by_token(simulator: RunningSimulator, folder: Path, **more: Any) -> ByToken:
    """Starts a broker that asks for a token; *more* is for `launch_broker`."""
    # Its own test covers access to them: tests/protos/web/test_guard.py.
    more.setdefault("metrics_open", True)
    company = Company(folder)
    server = company.issue("broker", "127.0.0.1")
    broker = launch_broker(
        simulator.base_url,
        simulator.api_key,
        folder=folder,
        name="by-token",
        access=company.access(token=company.token("viewer")),
        broker_tls_cert_file=server.cert,
        broker_tls_key_file=server.key,
        broker_identities_file=by_role(company),
        **more,
    )
    return ByToken(broker, company, server, folder / "by-token.log")


@pytest.fixture(scope="module")
def by_token(
    simulator: RunningSimulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ByToken]:
    """A broker that asks for a token, left as it is."""
    started = launch_by_token(simulator, tmp_path_factory.mktemp("tokens"))
    yield started
    started.broker.program.stop()


@pytest.fixture(scope="module")
def changed(
    simulator: RunningSimulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ByToken]:
    """A broker for the tests that change its files."""
    started = launch_by_token(simulator, tmp_path_factory.mktemp("changed"))
    yield started
    started.broker.program.stop()


@pytest.fixture
def changing(changed: ByToken) -> Iterator[ByToken]:
    """It grants, nothing waits, and its files are as they were at first."""
    files = (changed.server.cert, changed.server.key)
    contents = [path.read_bytes() for path in files]
    yield changed
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    by_role(changed.company)
    operator = changed.company.access(token=changed.company.token("operator"))
    assert outcome(changed.broker, operator, "ResumeGrants")[0] is Code.OK
    wait_until(lambda: changed.broker.bucket().waiting == 0, "the end of all waits")


def test_every_method_has_its_roles() -> None:
    """No role may call a method that METHODS does not list."""
    assert set(METHODS) == set(SERVICE.methods_by_name)


@pytest.mark.parametrize("role", ROLES)
def test_a_certificate_opens_what_its_role_may(
    mutual: RunningBroker, company: Company, role: str
) -> None:
    """Every method with every role."""
    access = company.access(company.issue(role, f"{role}.example"))

    assert let_in(mutual, access) == MAY[role]


@pytest.mark.parametrize("role", ROLES)
def test_a_token_opens_what_its_role_may(by_token: ByToken, role: str) -> None:
    """Every method with every role, over TLS without client certificates."""
    broker, company = by_token.broker, by_token.company

    assert let_in(broker, company.access(token=company.token(role))) == MAY[role]


def test_without_credentials_only_health_answers(by_token: ByToken) -> None:
    """The refusal names the setting."""
    broker, company = by_token.broker, by_token.company
    code, said = outcome(broker, company.access())

    assert let_in(broker, company.access()) == MAY["nobody"]
    assert code is Code.UNAUTHENTICATED
    assert "BROKER_TOKEN_FILE" in said


def test_a_wrong_token_is_refused_and_not_repeated(
    by_token: ByToken,
) -> None:
    """Neither the answer nor the broker's log holds what was tried."""
    broker, company = by_token.broker, by_token.company
    stranger = company.token("stranger")
    before = scraped(broker, 'tokenbroker_refused_calls_total{reason="unknown_token"}')
    code, said = outcome(broker, company.access(token=stranger))

    assert code is Code.UNAUTHENTICATED
    assert "BROKER_TOKEN_FILE" in said
    assert stranger.read_text().strip() not in said + by_token.log.read_text()
    assert scraped(broker, 'tokenbroker_refused_calls_total{reason="unknown_token"}') == before + 1


def test_a_wrong_role_is_told_which_one_it_takes(mutual: RunningBroker, company: Company) -> None:
    """With the reason in the metadata, as every refusal has it."""
    access = company.access(company.issue("viewer", "viewer.example"))
    with access.channel(mutual.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, "PauseGrants")
    refusal: Any = caught.value

    assert refusal.code() is Code.PERMISSION_DENIED
    assert "viewer has the role viewer, but PauseGrants needs operator" in refusal.details()
    assert (REASON_KEY, "wrong_role") in refusal.trailing_metadata()


def test_a_certificate_that_nobody_entered_is_told_its_name(
    mutual: RunningBroker, company: Company
) -> None:
    """So that a person can enter it."""
    code, said = outcome(mutual, company.access(company.issue("x", "unheard-of.example")))

    assert code is Code.UNAUTHENTICATED
    assert "unheard-of.example" in said


def test_a_spiffe_id_goes_before_a_dns_name(mutual: RunningBroker, company: Company) -> None:
    """A workload's certificate may name hosts as well."""
    access = company.access(company.issue_spiffe(SPIFFE, "viewer.example"))

    assert outcome(mutual, access, "RenewLease")[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("client", "remedy"),
    [
        ("expired", "BROKER_TLS_CLIENT_CERT_FILE may have expired"),
        ("wrong_ca", "or not be from the CA"),
        ("missing", "wants a client certificate, set BROKER_TLS_CLIENT_CERT_FILE"),
        ("plaintext", "if it uses TLS, set BROKER_TLS_CA_FILE"),
        ("distrust", "not from the CA in BROKER_TLS_CA_FILE"),
    ],
)
def test_a_connection_without_a_valid_certificate_fails(
    mutual: RunningBroker, company: Company, tmp_path: Path, client: str, remedy: str
) -> None:
    """The handshake fails, and the client's error names the setting."""
    strangers = Company(tmp_path / "strangers")
    stranger = strangers.issue("viewer", "viewer.example")
    late = company.issue("late", "viewer.example", expired=True)
    access = {
        "expired": company.access(late),
        "wrong_ca": Access(company.ca, stranger.cert, stranger.key),
        "missing": company.access(),
        "plaintext": Access(),
        "distrust": strangers.access(stranger),
    }[client]
    code, details = outcome(mutual, access)

    assert code is Code.UNAVAILABLE
    assert remedy in access.trouble(details)


def test_a_lease_is_touched_by_its_own_identity_only(
    mutual: RunningBroker, company: Company
) -> None:
    """An identity can neither settle, renew nor abandon a lease of another one."""
    ours = company.access(company.issue("fetcher", "fetcher.example"))
    theirs = company.access(company.issue("others"))
    wanted = pb.AcquireLeaseRequest(
        lease_id="ours", holder="a", operation="deal", units=1, tokens_per_unit=5,
        priority=pb.PRIORITY_NORMAL,
    )  # fmt: skip
    with ours.channel(mutual.address) as one, theirs.channel(mutual.address) as two:
        stub, stranger = (pb_grpc.TokenBrokerServiceStub(channel) for channel in (one, two))
        grant = stub.AcquireLease(wanted, timeout=TIMEOUT_S).grant
        about: dict[str, Any] = {
            "lease_id": "ours", "holder": "a", "operation": "deal", "epoch": grant.epoch,
            "units": grant.units, "tokens": grant.tokens,
        }  # fmt: skip
        settle = pb.SettleLeaseRequest(**about, outcome=pb.OUTCOME_NOT_SENT)
        codes = []
        for attempt in (
            lambda: stranger.RenewLease(pb.RenewLeaseRequest(**about), timeout=TIMEOUT_S),
            lambda: stranger.SettleLease(settle, timeout=TIMEOUT_S),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                attempt()
            codes.append(caught.value.code())
        held = stub.ListLeases(pb.ListLeasesRequest(), timeout=TIMEOUT_S).leases
        stub.SettleLease(settle, timeout=TIMEOUT_S)

    assert codes == [Code.PERMISSION_DENIED] * 2
    assert [lease.holder for lease in held] == ["fetcher/a"]
    assert scraped(mutual, 'tokenbroker_refused_calls_total{reason="foreign_lease"}') == 2


def test_files_that_break_before_the_http_port_has_loaded_stop_no_broker(
    simulator: RunningSimulator, tmp_path: Path
) -> None:
    """The port loads late, and what was read at the start counts there, too."""
    scrapes, released = tmp_path / "scrapes", tmp_path / "released"
    scrapes.write_text("a-token-for-scrapes")
    started = launch_by_token(
        simulator,
        tmp_path,
        module=("tests.broker.held_pages", str(released)),
        metrics_token_file=scrapes,
        metrics_open=False,
    )
    tokens = ["a-token-for-scrapes", started.company.token("viewer").read_text().strip()]
    started.company.identities(["[half of a table"])
    scrapes.unlink()
    released.touch()

    try:
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"}
            url = f"{started.broker.http_url}/metrics"
            with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as reply:
                assert b"tokenbroker_balance_tokens" in reply.read()
        assert started.broker.program.running
    finally:
        started.broker.program.stop()


def test_new_identities_are_taken_while_it_runs(changing: ByToken) -> None:
    """The next call is checked against them; an invalid file leaves the old ones."""
    broker, company = changing.broker, changing.company
    anna = company.token("anna")
    book = company.identities([table("anna", "operator", token=anna.read_text())])
    steering = outcome(broker, company.access(token=anna), "PauseGrants")[0]
    forgotten = outcome(broker, company.access(token=company.token("viewer")))[0]
    lines = changing.log.read_text().count(STAYS)
    book.write_text("[broken")
    still = outcome(broker, company.access(token=anna))[0]

    assert (steering, forgotten, still) == (Code.OK, Code.UNAUTHENTICATED, Code.OK)
    wait_until(lambda: changing.log.read_text().count(STAYS) > lines, "the broker logs it")


def test_a_new_certificate_is_taken_while_it_runs(changing: ByToken, tmp_path: Path) -> None:
    """The next connection uses it; one without its key leaves the old one."""
    broker, company = changing.broker, changing.company
    viewer = company.token("viewer")
    successor = Company(tmp_path / "successor")
    pair, files = successor.issue("broker", "127.0.0.1"), changing.server
    refused = 'tokenbroker_followed_file_refused{file="certificates"}'
    before, lines = scraped(broker, refused), changing.log.read_text().count(STAYS)
    files.cert.write_bytes(pair.cert.read_bytes())
    without_key = outcome(broker, company.access(token=viewer))[0]
    half = scraped(broker, refused)
    files.key.write_bytes(pair.key.read_bytes())
    renewed = outcome(broker, successor.access(token=viewer))[0]
    distrusted = outcome(broker, company.access(token=viewer))[0]
    expiry = scraped(broker, 'tokenbroker_certificate_expiry_timestamp_seconds{file="broker"}')
    with urlopen(f"{broker.http_url}/healthz", timeout=TIMEOUT_S) as reply:
        state = json.load(reply)["files"]["certificates"]

    assert (without_key, renewed, distrusted) == (Code.OK, Code.OK, Code.UNAVAILABLE)
    assert (before, half, scraped(broker, refused)) == (0, 1, 0)
    assert expiry > time.time()
    assert state == {"version": file_version([files.cert, files.key]), "trouble": ""}
    wait_until(lambda: changing.log.read_text().count(STAYS) > lines, "the broker logs it")


def test_an_open_stream_ends_with_its_rights(changing: ByToken) -> None:
    """A watch ends when its identity is removed from the file."""
    broker, company = changing.broker, changing.company
    anna = company.token("anna")
    quick = Duration(nanos=50_000_000)
    request = pb.WatchBucketRequest(min_interval=quick, max_interval=quick)
    with company.access(token=company.token("viewer")).channel(broker.address) as channel:
        stream: Any = pb_grpc.TokenBrokerServiceStub(channel).WatchBucket(request, timeout=60)
        next(stream)
        company.identities([table("anna", "viewer", token=anna.read_text())])
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass

    assert caught.value.code() is Code.UNAUTHENTICATED


def test_a_wait_ends_without_a_grant_when_its_rights_have_ended(
    changing: ByToken, simulator: RunningSimulator
) -> None:
    """Rights are looked at again at the grant; its tokens are free at once."""
    broker, company = changing.broker, changing.company
    viewer = company.token("viewer")
    wanted = pb.AcquireLeaseRequest(
        lease_id="late", holder="a", operation="deal", units=1, tokens_per_unit=5,
        priority=pb.PRIORITY_NORMAL,
    )  # fmt: skip
    operator = company.access(token=company.token("operator"))
    fetcher = company.access(token=company.token("fetcher"))
    with fetcher.channel(broker.address) as one, operator.channel(broker.address) as two:
        steering = pb_grpc.TokenBrokerServiceStub(two)
        steering.PauseGrants(pb.PauseGrantsRequest(), timeout=TIMEOUT_S)
        waiting: Any = pb_grpc.TokenBrokerServiceStub(one).AcquireLease.future(wanted, timeout=60)
        wait_until(lambda: broker.bucket().waiting == 1, "it waits")
        company.identities([
            table("operator", "operator", token=company.token("operator").read_text()),
            table("viewer", "viewer", token=viewer.read_text()),
        ])  # fmt: skip
        steering.ResumeGrants(pb.ResumeGrantsRequest(), timeout=TIMEOUT_S)
        code = waiting.exception().code()
        bucket = broker.bucket()

    assert code is Code.UNAUTHENTICATED
    assert (bucket.open_leases, bucket.reserved, bucket.waiting) == (0, 0, 0)


def test_an_identity_has_a_greatest_priority_and_share(
    changing: ByToken,
) -> None:
    """Under whatever names its holders go, and whatever they ask for."""
    broker, company = changing.broker, changing.company
    tables = [
        table("viewer", "viewer", token=company.token("viewer").read_text()),
        table("operator", "operator", token=company.token("operator").read_text()),
        table("fetcher", "fetcher", token=company.token("fetcher").read_text())
        + 'priority_max = "low"\nshare_max = 0.5\n',
    ]
    company.identities(tables)
    operator = company.access(token=company.token("operator"))
    fetcher = company.access(token=company.token("fetcher"))
    wait_until(lambda: len(broker.bucket().budgets) == 1, "the share is applied")
    budget = broker.bucket().budgets[0]
    with fetcher.channel(broker.address) as one, operator.channel(broker.address) as two:
        steering = pb_grpc.TokenBrokerServiceStub(two)
        steering.PauseGrants(pb.PauseGrantsRequest(), timeout=TIMEOUT_S)
        calls = [
            pb_grpc.TokenBrokerServiceStub(one).AcquireLease.future(
                pb.AcquireLeaseRequest(
                    lease_id=name, holder=name, operation="deal", units=1, tokens_per_unit=1,
                    priority=pb.PRIORITY_HIGH,
                ),
                timeout=60,
            )
            for name in "ab"
        ]  # fmt: skip
        wait_until(lambda: broker.bucket().waiting == 2, "both wait")
        waits = steering.ListLeases(pb.ListLeasesRequest(), timeout=TIMEOUT_S).waiting
        steering.ResumeGrants(pb.ResumeGrantsRequest(), timeout=TIMEOUT_S)
        granted = [call.result().HasField("grant") for call in calls]

    assert granted == [True, True]
    assert (budget.name, budget.holder) == ("identity:fetcher", "fetcher/*")
    assert {wait.priority for wait in waits} == {pb.PRIORITY_LOW}


def test_refused_calls_are_logged_once_a_minute_and_counted_always() -> None:
    """Peers count without port, and apart by reason; the next line has the number left out."""
    with structlog.testing.capture_logs() as lines:
        log = RefusalLog()
        for at in range(1_000):
            log.note(Reason.UNKNOWN_TOKEN, f"ipv4:10.0.0.1:{40_000 + at}", at)
        log.note(Reason.WRONG_ROLE, "ipv4:10.0.0.1:40000", 1_000)
        log.note(Reason.UNKNOWN_TOKEN, "ipv4:10.0.0.1:40000", LOG_EVERY_MS)
        for number in range(3_000):
            log.note(Reason.NO_CREDENTIALS, f"ipv6:%5B::{number:x}%5D:1", LOG_EVERY_MS)

    assert [(line["reason"], line["left_out"]) for line in lines[:3]] == [
        ("unknown_token", 0), ("wrong_role", 0), ("unknown_token", 999),
    ]  # fmt: skip
    assert len(lines) <= PEERS_MAX + 3


def test_a_flood_of_refused_calls_leaves_one_line(by_token: ByToken) -> None:
    """And is counted to the last call."""
    broker, company = by_token.broker, by_token.company
    series = 'tokenbroker_refused_calls_total{reason="wrong_role"}'
    before = scraped(broker, series)
    with company.access(token=company.token("viewer")).channel(broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        for _ in range(300):
            with pytest.raises(grpc.RpcError):
                stub.PauseGrants(pb.PauseGrantsRequest(), timeout=TIMEOUT_S)

    assert scraped(broker, series) == before + 300
    assert by_token.log.read_text().count('"reason": "wrong_role"') <= 2
