"""A reply of any size or shape costs a fetcher a bounded amount of memory, and one page."""

import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest

from fetcher.errors import KeepaError, KeepaResponseError, KeepaUnavailableError
from fetcher.keepa import REPLY_BYTES_MAX, Keepa, objects_bytes
from tests.fetcher.test_keepa import ENVELOPE, KEY, Answer, reply, serving

pytestmark = pytest.mark.slow

MEGABYTE = 1024 * 1024
# A container of docker-compose.yml has this much for a whole fetcher.
CONTAINER_BYTES = 256 * MEGABYTE
# Loads a fetcher's modules, makes one call, prints the error and the peak of its memory.
PROGRAM = """
import sys
import fetcher.work.worker
from fetcher.errors import KeepaError
from fetcher.keepa import Keepa
try:
    Keepa("key", base_url=sys.argv[1]).deals({"page": 0})
    print("fine")
except KeepaError as exc:
    print(type(exc).__name__)
status = open("/proc/self/status").read().split()
print(status[status.index("VmHWM:") + 1])
"""


def within(limit: int, make: Callable[[int], bytes]) -> bytes:
    """The largest body of *make* that is still decoded."""
    # No shape but one long text has a value in fewer than three bytes.
    least, most = 1, limit // 2
    while most - least > limit // 64:
        middle = (least + most) // 2
        body = make(middle)
        fits = len(body) <= limit and objects_bytes(body) <= 4 * limit
        least, most = (middle, most) if fits else (least, middle)
    return make(least)


SHAPES: dict[str, Callable[[int], bytes]] = {
    "lists": lambda n: b'{"a":[' + b"[]," * n + b"0]}",
    "objects": lambda n: b'{"a":[' + b'{"a":1},' * n + b"0]}",
    "numbers": lambda n: b'{"a":[' + b"777," * n + b"0]}",
    "names": lambda n: b'{"a":{' + b",".join(b'"%x":0' % i for i in range(n)) + b"}}",
    "wide": lambda n: b'{"a":"' + b"a" * n + "😀".encode() + b'"}',
}


def peak_bytes(base_url: str) -> tuple[str, int]:
    """How a call of a process of its own ends, and the most memory it took."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, base_url],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    outcome, kilobytes = done.stdout.split()
    return outcome, int(kilobytes) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_worst_reply_that_is_decoded_fits_a_container(shape: str) -> None:
    """Numbers, containers, names and wide characters each have their own way to grow."""
    with serving(reply(200, within(REPLY_BYTES_MAX, SHAPES[shape]))) as server:
        outcome, peak = peak_bytes(server.base_url)

    assert outcome == "fine"
    assert peak < CONTAINER_BYTES


@pytest.mark.parametrize(
    "body",
    [b"[" + b"[]," * 10_000_000 + b"0]", b" " * (REPLY_BYTES_MAX + 1),
     b'{"deals":{"dr":[' + b"[]," * 10_000_000 + b"0]}}", b"[" * 30_000_000],
    ids=["list", "blanks", "rows", "deep"],
)  # fmt: skip
def test_a_reply_that_would_not_fit_is_not_built(body: bytes) -> None:
    """Thirty kilobytes of gzip once took 813 MB."""
    with serving(reply(200, body)) as server:
        outcome, peak = peak_bytes(server.base_url)

    assert outcome in {"KeepaResponseError", "KeepaUnavailableError"}
    assert peak < CONTAINER_BYTES


def packed(encoding: str, body: bytes, *, length: int | None = None) -> Answer:
    """An answer with *body* as it is, and a header that names *encoding*."""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nConnection: close\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )

    def answer(connection: object) -> None:
        try:
            connection.sendall(head.encode() + body)  # type: ignore[attr-defined]
        except OSError:
            # The client has seen enough.
            return

    return answer


def asked(answer: Answer, bytes_max: int = MEGABYTE) -> KeepaError | dict[str, object]:
    """What a call with a small limit comes to."""
    with serving(answer) as server:
        client = Keepa(
            KEY, base_url=server.base_url, connect_timeout_s=10, read_timeout_s=30,
            reply_bytes_max=bytes_max,
        )  # fmt: skip
        try:
            with client:
                return client.deals({"page": 0}).body
        except KeepaError as exc:
            return exc


def bare_deflate(body: bytes) -> bytes:
    """*body* as some servers understand deflate: without zlib's header."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


BOMB = b" " * (50 * MEGABYTE)


@pytest.mark.parametrize(
    "answer",
    [
        packed("gzip", gzip.compress(BOMB)),
        packed("gzip", gzip.compress(BOMB), length=100_000_000),
        packed("GZIP", gzip.compress(b" " * 700_000) * 2),
        packed("gzip", gzip.compress(b"") * 60_000),
        packed("deflate", zlib.compress(BOMB)),
        packed("deflate", bare_deflate(BOMB)),
        packed("identity", BOMB),
    ],
    ids=["gzip", "length lies", "members", "empty members", "deflate", "bare deflate", "plain"],
)
def test_too_large_a_reply_is_given_up_by_name(answer: Answer) -> None:
    """The page is put aside with the setting and the remedy; asking again would cost again."""
    error = asked(answer)

    assert isinstance(error, KeepaResponseError)
    assert "too large for KEEPA_REPLY_MAX_BYTES=1048576" in str(error)
    assert not error.concerns_key


@pytest.mark.parametrize(
    "pack",
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress),
     ("deflate", bare_deflate), ("identity", bytes)],
    ids=["gzip", "x-gzip", "deflate", "bare deflate", "plain"],
)  # fmt: skip
def test_every_usual_encoding_is_read(pack: tuple[str, Callable[[bytes], bytes]]) -> None:
    """Two members of gzip included, which is one file to gzip."""
    encoding, compress = pack
    body = json.dumps(ENVELOPE | {"deals": {"dr": []}}).encode()
    halves = [body] if encoding != "gzip" else [body[:20], body[20:]]

    assert asked(packed(encoding, b"".join(map(compress, halves)))) == json.loads(body)


@pytest.mark.parametrize(
    "answer",
    [packed("br", b"whatever"), packed("gzip", b"no gzip"),
     packed("gzip", gzip.compress(BOMB)[:99])],
    ids=["brotli", "no gzip", "cut"],
)  # fmt: skip
def test_a_body_that_can_not_be_unpacked_is_worth_another_try(answer: Answer) -> None:
    """A garbled transfer is not the page's fault."""
    assert isinstance(asked(answer), KeepaUnavailableError)


@pytest.mark.parametrize("status", [429, 503])
def test_too_large_an_error_page_keeps_the_meaning_of_its_status(status: int) -> None:
    """A gateway's page of any size is no reason to put a page of deals aside."""
    error = asked(reply(status, BOMB))

    assert not isinstance(error, KeepaResponseError)
