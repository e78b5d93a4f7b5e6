"""A broker with a journal that is killed in the middle of its work, and started again."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from protos.channel.access import Access
from protos.channel.reasons import reason_of
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.e2e.collection import fetch, same_page_at_once, stored_deals, write_query
from tests.e2e.test_fleet import Fleet
from tests.fix_broker import RPC_TIMEOUT_S, RunningBroker, StartBroker, StartProgram, environment
from tests.fix_simulator import RunningSimulator, StartSimulator
from tests.waiting import wait_until

# Longer than any test: grants that come sooner came without a grace.
GRACE_MS = 600_000
NEVER_S = 3_600


def tokens_of(folder: Path, *names: str) -> tuple[Path, dict[str, Path]]:
    """An identities file with a fetcher for each name, and their token files."""
    files, entries = {}, []
    for name in names:
        files[name] = folder / f"{name}.token"
        files[name].write_text(f"token-of-{name}")
        digest = hashlib.sha256(files[name].read_bytes()).hexdigest()
        entries.append(f'[{name}]\nrole = "fetcher"\ntoken_sha256 = ["{digest}"]\n')
    identities = folder / "identities.toml"
    identities.write_text("\n".join(entries))
    return identities, files


def call(broker: RunningBroker, token: Path, method: str, request: Any) -> Any:
    """One RPC with the token in the file *token*."""
    with Access(token_file=token).channel(broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        return getattr(stub, method)(request, timeout=RPC_TIMEOUT_S)


def about(grant: pb.Grant) -> dict[str, Any]:
    """The fields of a lease that its client presents again."""
    return {
        "lease_id": grant.lease_id, "epoch": grant.epoch, "holder": "h", "operation": "deal",
        "units": grant.units, "tokens": grant.tokens,
    }  # fmt: skip


def test_a_killed_broker_goes_on_where_it_stood(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    empty_database_url: str,
    tmp_path: Path,
) -> None:
    """Same holds, same grants, no grace; each lease stays its identity's, and counts once."""
    simulator = start_simulator(rate=20, tick_seconds=NEVER_S, initial_tokens=50)
    identities, tokens = tokens_of(tmp_path, "ann", "bob")
    broker = start_broker(
        simulator.base_url,
        simulator.api_key,
        access=Access(token_file=tokens["ann"]),
        broker_database_url=empty_database_url,
        broker_leadership="sole",
        broker_identities_file=identities,
        broker_recovery_grace_ms=GRACE_MS,
    )
    wanted = pb.AcquireLeaseRequest(
        lease_id="a", holder="h", operation="deal", units=1, tokens_per_unit=5.0,
        priority=pb.PRIORITY_NORMAL, ttl=Duration(seconds=120),
    )  # fmt: skip
    grant = call(broker, tokens["ann"], "AcquireLease", wanted).grant
    wait_until(lambda: broker.bucket().journal.buffered == 0, "the journal has all")
    before = broker.bucket()
    broker.program.kill()
    broker.program.wait(RPC_TIMEOUT_S)
    broker.start()
    after = broker.bucket()
    again = call(broker, tokens["ann"], "AcquireLease", wanted).grant
    with pytest.raises(grpc.RpcError) as renewed:
        call(broker, tokens["bob"], "RenewLease", pb.RenewLeaseRequest(**about(grant)))
    settle = pb.SettleLeaseRequest(**about(grant), outcome=pb.OUTCOME_NOT_SENT)
    with pytest.raises(grpc.RpcError) as settled:
        call(broker, tokens["bob"], "SettleLease", settle)
    call(broker, tokens["ann"], "SettleLease", settle)
    call(broker, tokens["ann"], "SettleLease", settle)
    story = call(
        broker, tokens["ann"], "ExplainLease", pb.ExplainLeaseRequest(lease_id="a")
    ).events

    assert (before.open_leases, before.reserved) == (after.open_leases, after.reserved) == (1, 5)
    assert after.epoch > before.epoch
    assert (again.lease_id, again.tokens) == ("a", grant.tokens)
    assert 0 < again.ttl.seconds < 120
    assert reason_of(renewed.value) == reason_of(settled.value) == "foreign_lease"
    assert [event.kind for event in story] == ["granted", "carried", "settled"]
    assert broker.bucket().totals.settles == 1
    assert broker.bucket().open_leases == 0


def test_fetchers_ride_through_a_killed_broker(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    tmp_path: Path,
) -> None:
    """No page is lost, none read twice at once, no attempt is spent; the audit explains it."""
    simulator = start_simulator(
        rate=40, tick_seconds=1, initial_tokens=40, cache_seconds=0, deals=2_000,
        latency="50-200",
    )  # fmt: skip
    broker = start_broker(
        simulator.base_url,
        simulator.api_key,
        broker_database_url=database_url,
        broker_leadership="sole",
        broker_recovery_grace_ms=GRACE_MS,
    )
    fleet = Fleet(
        start_program,
        keepa_base_url=simulator.base_url,
        keepa_api_key=simulator.api_key,
        database_url=database_url,
        broker_address=broker.address,
        queries=write_query(tmp_path / "queries", "wide", {}),
    )
    fleet.add(2)
    for pages in (2, 4):
        wait_until(lambda pages=pages: done_pages(database_url) >= pages, f"{pages} pages")  # type: ignore[misc]  # as bound
        broker.program.kill()
        broker.program.wait(RPC_TIMEOUT_S)
        broker.start()
    wait_until(
        lambda: fetch(database_url, "SELECT state FROM scans") == [("completed",)], "the scan"
    )
    attempts = fetch(database_url, "SELECT max(attempts) FROM scan_pages")
    exit_codes = fleet.stop()
    wait_until(lambda: broker.bucket().journal.buffered == 0, "the journal has all")

    assert exit_codes == [0, 0]
    assert attempts == [(0,)]
    assert stored_deals(database_url) == simulator.served_deals()
    assert same_page_at_once(simulator.calls()) == []
    assert simulator.stats()["throttled"] <= 2
    check_audit(database_url, simulator, tmp_path)


def done_pages(database_url: str) -> int:
    """Number of pages read so far."""
    ((done,),) = fetch(database_url, "SELECT count(*) FROM scan_pages WHERE state = 'done'")
    return int(done)


def check_audit(database_url: str, simulator: RunningSimulator, folder: Path) -> None:
    """The audit reads the whole journal, and its sums are the simulator's."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", "audit", "-o", "json", "--tolerance", "10"],
        env=environment(broker_database_url=database_url),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert report["epochs"] == 3
    # Each kill may cost the records of its last milliseconds.
    assert abs(report["spent_tokens"] - simulator.stats()["spent"]) <= 10
