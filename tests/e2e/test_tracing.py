"""One page, one trace: from the wait for tokens to the write, across fetcher and broker."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from deploy.local.program import Program
from protos.process.logs import Seldom
from protos.process.settings import OtlpProtocol, TracingSettings
from protos.process.tracing import FLUSH_S
from tests.e2e.collection import fetch, write_query
from tests.e2e.otlp_receiver import OtlpReceiver, ReceivedSpan, receiving
from tests.fix_broker import StartBroker, StartProgram, environment
from tests.fix_gateway import launch_gateway
from tests.fix_simulator import StartSimulator
from tests.waiting import wait_until

SERVICE = "tokenbroker.v1.TokenBrokerService"
# Each step of a page, and its parent step.
PARENTS = {
    ("dealfetcher", "page"): None,
    ("dealfetcher", "wait"): "page",
    ("tokenbroker", f"{SERVICE}/AcquireLease"): "wait",
    ("dealfetcher", "call"): "page",
    ("dealfetcher", "settle"): "page",
    ("tokenbroker", f"{SERVICE}/SettleLease"): "settle",
    ("dealfetcher", "write"): "page",
}


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    """A collector for spans."""
    with receiving() as receiver:
        yield receiver


def parents(trace: list[ReceivedSpan]) -> dict[tuple[str, str], str | None]:
    """Each span's (service, name), and the name of its parent within the trace."""
    names = {span.span_id: span.name for span in trace}
    return {(span.service, span.name): names.get(span.parent_id) for span in trace}


def lines(program: Program, event: str) -> list[dict[str, object]]:
    """The log lines of *program* about *event*."""
    found = (json.loads(line) for line in program.output().splitlines() if line.startswith("{"))
    return [line for line in found if line["event"] == event]


def test_a_page_is_one_trace(
    receiver: OtlpReceiver,
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    tmp_path: Path,
) -> None:
    """Wait, call, settle and writes of a page are one trace, and log lines lead to it."""
    simulator = start_simulator(rate=60, deals=400)
    shared = {
        "otel_exporter_otlp_endpoint": receiver.url,
        "otel_bsp_schedule_delay": 100,
        "log_level": "debug",
    }
    broker = start_broker(simulator.base_url, simulator.api_key, **shared)
    fetcher = start_program(
        "fetcher",
        "run",
        keepa_base_url=simulator.base_url,
        keepa_api_key=simulator.api_key,
        broker_address=broker.address,
        database_url=database_url,
        queries=write_query(tmp_path / "queries", "wide", {}),
        **shared,
    )
    wait_until(
        lambda: fetch(database_url, "SELECT state FROM scans") == [("completed",)], "a scan"
    )
    fetcher.stop()
    broker.program.stop()
    pages = {
        (trace_id, str(span.attributes.get("page"))): parents(trace)
        for trace_id, trace in receiver.traces().items()
        for span in trace
        if span.name == "page" and "page" in span.attributes
    }
    read = {(line["trace_id"], str(line["page"])) for line in lines(fetcher, "page read")}
    granted = {str(line.get("trace_id")) for line in lines(broker.program, "lease granted")}

    assert len(pages) > 1
    assert all(steps == PARENTS for steps in pages.values())
    assert read == set(pages)
    assert {trace_id for trace_id, _ in pages} <= granted


def test_a_call_through_the_gateway_is_one_trace(
    receiver: OtlpReceiver,
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    tmp_path: Path,
) -> None:
    """Its wait, call and settle hang below it, and the broker's part below these."""
    simulator = start_simulator(rate=60, deals=10)
    shared = {"otel_exporter_otlp_endpoint": receiver.url, "otel_bsp_schedule_delay": 100}
    broker = start_broker(simulator.base_url, simulator.api_key, **shared)
    with launch_gateway(simulator, broker.address, folder=tmp_path, **shared) as gateway:
        url = f"{gateway.url}/category?key=alice&domain=1&category=0"
        assert requests.get(url, timeout=60).status_code == 200
    broker.program.stop()
    (trace,) = receiver.traces().values()

    assert parents(trace) == {
        ("keepagateway", "gateway"): None,
        ("keepagateway", "wait"): "gateway",
        ("tokenbroker", f"{SERVICE}/AcquireLease"): "wait",
        ("keepagateway", "call"): "gateway",
        ("keepagateway", "settle"): "gateway",
        ("tokenbroker", f"{SERVICE}/SettleLease"): "settle",
    }


def end_after_a_span(protocol: OtlpProtocol | None, endpoint: str) -> float:
    """Runs a process that makes one span; returns the seconds that its end took."""
    program = (
        "import sys, time\n"
        "from opentelemetry import trace\n"
        "from protos.process.tracing import exporting\n"
        f"with exporting('alone', {protocol!r}):\n"
        "    trace.get_tracer('alone').start_span('alone').end()\n"
        "    ended_s = time.monotonic()\n"
        "sdk = 'opentelemetry.sdk' in sys.modules\n"
        "print(time.monotonic() - ended_s, sdk, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(otel_exporter_otlp_endpoint=endpoint),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    took_s, sdk = done.stdout.split()
    assert sdk == str(protocol is not None)
    return float(took_s)


class GrpcCollector(TraceServiceServicer):
    """Takes spans over gRPC."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(  # noqa: N802 - gRPC's name
        self, request: ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Keeps their names."""
        groups = (scope.spans for one in request.resource_spans for scope in one.scope_spans)
        self.names += [span.name for spans in groups for span in spans]
        return ExportTraceServiceResponse()


def test_spans_travel_by_grpc_too() -> None:
    """OTEL_EXPORTER_OTLP_PROTOCOL=grpc works as well; no span is lost at the end."""
    collector, server = GrpcCollector(), grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # theirs
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    end_after_a_span("grpc", f"http://127.0.0.1:{port}")
    server.stop(None)

    assert collector.names == ["alone"]


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    """Spans without a collector delay the end by a second at most."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        took_s = end_after_a_span("http/protobuf", endpoint)

    assert took_s < FLUSH_S + 5


def test_nothing_is_loaded_without_a_collector() -> None:
    """A process without tracing doesn't load OpenTelemetry's SDK."""
    assert end_after_a_span(None, "") < FLUSH_S


@pytest.mark.parametrize(
    ("variables", "protocol"),
    [
        ({}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"},
            "http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
            None,
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_standard_variables_decide(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    protocol: str | None,
) -> None:
    """Tracing is off unless an endpoint or an exporter is named, and can be disabled."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert TracingSettings.load().protocol == protocol


def test_a_collector_that_is_away_is_not_logged_at_every_attempt() -> None:
    """The exporter's lines pass at once and then every five minutes; others always."""
    seldom = Seldom()

    def passes(name: str, at_s: float) -> bool:
        record = logging.makeLogRecord({"name": name, "created": at_s})
        return bool(seldom.filter(record))

    exporter = [passes("opentelemetry.exporter.otlp", at_s) for at_s in (0, 1, 299, 300, 301, 600)]
    ours = [passes("fetcher.work.worker", at_s) for at_s in (0, 1)]

    assert exporter == [True, False, False, True, False, True]
    assert ours == [True, True]
