"""The budgets file: its syntax, its reloads, and the holders that it limits."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.protobuf.duration_pb2 import Duration

from broker.__main__ import main
from broker.access.budgets_file import BudgetsFile, BudgetsFileError, read_budgets
from broker.commands.tables import bucket_table
from broker.core.budgets import Budget, Mode
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RunningBroker, environment, launch_broker
from tests.fix_simulator import RunningSimulator
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until

TEAM = '[budgets.team]\nholder = "team-*"\ntokens_per_hour = {}\n'


def written(folder: Path, text: str, name: str = "budgets.toml") -> Path:
    """A file with *text*."""
    path = folder / name
    path.write_text(text)
    return path


def test_a_budget_is_a_table(tmp_path: Path) -> None:
    """Its name is the table's; without holder or operation it covers all of them."""
    path = written(
        tmp_path, '[budgets.team]\nholder = "team-*"\nshare = 0.5\n[budgets.all]\nshare = 1\n'
    )

    assert read_budgets(path) == (
        Budget("team", holder="team-*", share=0.5),
        Budget("all", share=1),
    )


def test_json_says_the_same(tmp_path: Path) -> None:
    """Whatever the file is called."""
    path = written(
        tmp_path, ' {"budgets": {"b": {"operation": "product*", "tokens_per_hour": 9}}}'
    )

    assert read_budgets(path) == (Budget("b", operation="product*", tokens_per_hour=9),)


NESTED = """
[budgets.partners]
identity = "partners"
tokens_per_day = 5000
time_zone = "Europe/Berlin"

[budgets.laptops]
within = "partners"
holder = "laptop-*"
tokens_per_month = 1000
mode = "shadow"

[budgets.offers]
within = "laptops"
operation = "*offers*"
in_flight_max = 2
time_zone = "Asia/Tokyo"
"""


def test_budgets_lie_within_each_other(tmp_path: Path) -> None:
    """Identity and time zone are inherited; the mode is each budget's own."""
    partners, laptops, offers = read_budgets(written(tmp_path, NESTED))

    assert (partners.holder, partners.time_zone) == ("partners/*", "Europe/Berlin")
    assert (laptops.holder, laptops.time_zone) == ("partners/laptop-*", "Europe/Berlin")
    assert (laptops.within, laptops.mode) == (partners, Mode.SHADOW)
    assert (offers.holder, offers.time_zone, offers.mode) == (
        "partners/*", "Asia/Tokyo", Mode.ENFORCE,
    )  # fmt: skip
    assert offers.covers("partners/laptop-1", "product?offers=20")
    assert not offers.covers("partners/server", "product?offers=20")


def test_no_budgets_must_be_said(tmp_path: Path) -> None:
    """A file that an editor has just emptied lifts no limit."""
    assert read_budgets(written(tmp_path, "budgets = {}\n")) == ()
    with pytest.raises(BudgetsFileError, match="to have no budgets write: "):
        read_budgets(written(tmp_path, ""))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[budgets.b]\n", "budgets.b: limits nothing: give tokens_per_hour, share, tok"),
        ("[budgets.b]\nshare = 2\n", "budgets.b.share: Input should be less than or equal to 1"),
        ("[budgets.b]\nshare = nan\n", "budgets.b.share: Input should be"),
        ("[budgets.b]\ntokens_per_hour = 0\n", "budgets.b.tokens_per_hour: Input should be great"),
        ('[budgets.b]\ntokens_per_hour = "5"\n', "budgets.b.tokens_per_hour: Input should be a v"),
        ("[budgets.b]\nshares = 1\n", "budgets.b.shares: no such setting (did you mean share?)"),
        ("[budgets.b]\ntoken_per_day = 1\n", "no such setting (did you mean tokens_per_day?)"),
        ("[budgets.b]\nzzz = 1\n", "budgets.b.zzz: no such setting; there are: identity, holder"),
        ("[budgets.b]\ntokens_per_day = 0\n", "budgets.b.tokens_per_day: Input should be greater"),
        ("[budgets.b]\nin_flight_max = 0\n", "budgets.b.in_flight_max: Input should be greater"),
        ('[budgets.b]\nshare = 1\nmode = "shade"\n', "budgets.b.mode: Input should be 'enforce'"),
        ('[budgets.b]\nshare = 1\nidentity = "a/b"\n', "budgets.b.identity: String should match"),
        (
            '[budgets.b]\nshare = 1\ntime_zone = "Europe/Berlni"\n',
            "budgets.b.time_zone: 'Europe/Berlni' is no known time zone (did you mean Europe/B",
        ),
        ('[budgets.b]\nshare = 1\ntime_zone = "../etc"\n', "is no known time zone"),
        ('[budgets.b]\nshare = 1\ntime_zone = "Europe"\n', "is no known time zone"),
        (
            '[budgets.team]\nshare = 1\n[budgets.b]\nshare = 1\nwithin = "taem"\n',
            "budgets.b.within: no budget 'taem' (did you mean team?): name another table",
        ),
        (
            '[budgets.a]\nshare = 1\nwithin = "b"\n[budgets.b]\nshare = 1\nwithin = "a"\n',
            "budgets.b.within: a circle: a within b within a: take one of them out",
        ),
        ("[budget.b]\nshare = 1\n", "budget: no such setting (did you mean budgets?)"),
        ('[budgets."a b"]\nshare = 1\n', "budgets.a b: String should match"),
        ("[budgets.b\n", "neither TOML nor JSON: Expected ']'"),
        ("[budgets.b]\n[budgets.b]\n", "neither TOML nor JSON: Cannot declare"),
        ('{"budgets": {"b": {"share": 1}, "b": {}}}', "a name comes twice"),
        ("{", "neither TOML nor JSON: "),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    """In one line: the file, the entry, what to do."""
    path = written(tmp_path, text)

    with pytest.raises(BudgetsFileError) as caught:
        read_budgets(path)
    message = str(caught.value)

    assert message.startswith(f"BROKER_BUDGETS_FILE: {path}: ")
    assert told in message
    assert "\n" not in message


def test_a_file_is_read_again_only_once_it_rests(tmp_path: Path) -> None:
    """Two looks must find the same change: half a file may be half the limits."""
    file = BudgetsFile(written(tmp_path, TEAM.format(5)))

    looks = [file.changed()]
    written(tmp_path, TEAM.format(5)[:30])
    looks.append(file.changed())
    written(tmp_path, TEAM.format(700))
    looks += [file.changed(), file.changed()]
    file.read()
    looks += [file.changed(), file.changed()]

    assert looks == [False, False, False, True, False, False]
    assert file.budgets == (Budget("team", holder="team-*", tokens_per_hour=700),)


def test_a_bad_file_changes_nothing_and_is_read_once(tmp_path: Path) -> None:
    """So that one mistake is one line in the log; a file taken away is one too."""
    file = BudgetsFile(written(tmp_path, TEAM.format(5)))
    before, looks = file.budgets, []

    for spoil in (lambda: file.path.write_text("budgets"), file.path.unlink):
        spoil()
        looks += [file.changed(), file.changed()]
        with pytest.raises(BudgetsFileError):
            file.read()
        looks.append(file.changed())

    assert looks == [False, True, False] * 2
    assert file.budgets == before


def mounted(folder: Path, text: str) -> Path:
    """The file as Kubernetes mounts a ConfigMap; again, and it is swapped as there."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    written(version, text)
    (folder / "..data_tmp").symlink_to(version.name)
    (folder / "..data_tmp").replace(folder / "..data")
    path = folder / "budgets.toml"
    if not path.is_symlink():
        path.symlink_to("..data/budgets.toml")
    return path


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """Of the same size and with the same time as what it replaces."""
    file = BudgetsFile(mounted(tmp_path, TEAM.format(5)))
    modified_ns = file.path.stat().st_mtime_ns

    mounted(tmp_path, TEAM.format(7))
    os.utime(file.path, ns=(modified_ns, modified_ns))

    assert [file.changed(), file.changed()] == [False, True]


@pytest.mark.parametrize("text", [None, "[budgets.b]\n"], ids=["missing", "bad"])
def test_a_broker_does_not_start_without_its_budgets(tmp_path: Path, text: str | None) -> None:
    """One line that names the variable, and the exit code for wrong settings."""
    path = tmp_path / "budgets.toml"
    if text is not None:
        path.write_text(text)
    given = environment(
        keepa_api_key="k" * 20, broker_budgets_file=path,
        broker_listen="127.0.0.1:0", broker_http_listen="127.0.0.1:0",
    )  # fmt: skip
    done = run_here(main, "tokenbroker", ("serve",), environment=given, folder=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith(f"tokenbroker: BROKER_BUDGETS_FILE: {path}: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def following(
    simulator: RunningSimulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningBroker, Path]]:
    """A broker, and the folder with its budgets file, which has no budgets yet."""
    folder = tmp_path_factory.mktemp("following")
    mount = folder / "mount"
    mount.mkdir()
    broker = launch_broker(
        simulator.base_url,
        simulator.api_key,
        folder=folder,
        name="broker",
        broker_budgets_file=mounted(mount, "budgets = {}\n"),
    )
    yield broker, mount
    broker.program.stop()


def ask(broker: RunningBroker, lease_id: str, holder: str) -> pb.AcquireLeaseResponse:
    """Asks for a page of five tokens, and for an answer at once."""
    fields: dict[str, Any] = {"operation": "deal", "units": 1, "tokens_per_unit": 5.0}
    request = pb.AcquireLeaseRequest(
        lease_id=lease_id, holder=holder, priority=pb.PRIORITY_NORMAL, **fields
    )
    request.max_wait.FromMilliseconds(0)
    with grpc.insecure_channel(broker.address) as channel:
        return pb_grpc.TokenBrokerServiceStub(channel).AcquireLease(request, timeout=DEADLINE_S)


def limits(bucket: pb.Bucket) -> dict[str, int]:
    """The applied budgets and their limits."""
    return {budget.name: budget.tokens_per_hour for budget in bucket.budgets}


def test_a_running_broker_follows_the_file(following: tuple[RunningBroker, Path]) -> None:
    """Swapped as in Kubernetes, spoilt, mended: the last valid budgets limit the holders."""
    broker, mount = following
    free = ask(broker, "1", "team-a").WhichOneof("outcome")

    mounted(mount, TEAM.format(10))
    wait_until(lambda: limits(broker.bucket()) == {"team": 10}, "the first limit")
    within = [ask(broker, lease, "team-a").WhichOneof("outcome") for lease in "23"]
    beyond = ask(broker, "4", "team-b")
    other = ask(broker, "5", "other").WhichOneof("outcome")
    standing = broker.bucket().budgets[0]

    mounted(mount, "[budgets.team]\n")
    wait_until(lambda: broker.bucket().budgets_trouble, "the broken file is noticed")
    troubled = broker.bucket()

    mounted(mount, TEAM.format(15))
    wait_until(lambda: limits(broker.bucket()) == {"team": 15}, "the second limit")
    raised = [ask(broker, lease, "team-b") for lease in "67"]
    complaint = "budgets can't be read"
    wait_until(lambda: complaint in broker.program.output(), "the complaint")

    assert [free, *within, other] == ["grant"] * 4
    assert beyond.denial.reason == pb.DENIAL_REASON_BUDGET_EXHAUSTED
    assert 0 < beyond.denial.retry_delay.seconds <= 3600
    assert (standing.tokens_per_hour, standing.used_tokens) == (10, 10)
    assert limits(troubled) == {"team": 10}
    assert "budgets.team: limits nothing" in troubled.budgets_trouble
    assert [answer.WhichOneof("outcome") for answer in raised] == ["grant", "denial"]
    assert broker.bucket().budgets_trouble == ""
    assert broker.program.output().count(complaint) == 1


def rows(bucket: pb.Bucket) -> list[tuple[str, str]]:
    """The table of `status`."""
    names, values = (list(column.cells) for column in bucket_table(bucket).columns)
    return [(str(name), str(value)) for name, value in zip(names, values, strict=True)]


def test_status_shows_the_budgets() -> None:
    """`status` shows each limit: its use, its reset, its mode; and a refused file."""
    hour = pb.Budget(
        name="team", holder="team-[a]", operation="*", span=pb.BUDGET_SPAN_HOUR,
        limit_tokens=10, used_tokens=4, left_tokens=6, denied=2, mode=pb.BUDGET_MODE_ENFORCE,
    )  # fmt: skip
    day = pb.Budget(
        name="shade", holder="*", operation="deal", span=pb.BUDGET_SPAN_DAY, within="team",
        limit_tokens=10, used_tokens=14, would_have_denied=3, mode=pb.BUDGET_MODE_SHADOW,
        in_flight_max=2, resets_in=Duration(seconds=3_660), time_zone="Europe/Berlin",
    )  # fmt: skip
    shown = rows(pb.Bucket(budgets=[hour, day], budgets_trouble="bad"))

    first, second, trouble = (value for name, value in shown if name.startswith("Budget"))
    assert first == r"4 of 10 tokens used within the last hour, 6 left; * of team-\[a]; denied 2"
    assert second == (
        "14 of 10 tokens used today, 0 left; resets in 1 h 1 min (Europe/Berlin); at most 2 calls"
        " of each holder in flight; deal of * within team; shadow: would have denied 3"
    )
    assert trouble == "not reloaded: bad"


def test_a_day_in_a_running_broker(following: tuple[RunningBroker, Path]) -> None:
    """GetBucket shows limit, use, rest, reset, mode and would-have-denied; so do the metrics."""
    text = """
[budgets.office]
holder = "a"
tokens_per_day = 12
time_zone = "Europe/Berlin"
[budgets.inner]
within = "office"
holder = "a"
tokens_per_month = 5
mode = "shadow"
"""
    broker, mount = following
    mounted(mount, text)
    wait_until(lambda: len(broker.bucket().budgets) == 2, "the budgets are applied")
    answers = [ask(broker, lease, "a") for lease in ("day-1", "day-2", "day-3")]
    day, month = broker.bucket().budgets
    metrics = requests.get(f"{broker.http_url}/metrics", timeout=DEADLINE_S).text

    assert [answer.WhichOneof("outcome") for answer in answers] == ["grant", "grant", "denial"]
    denial = answers[2].denial
    assert denial.reason == pb.DENIAL_REASON_BUDGET_EXHAUSTED
    assert denial.message.startswith("budget office allows 12 tokens a day, and 10 are used")
    assert abs(denial.retry_delay.seconds - day.resets_in.seconds) <= DEADLINE_S
    assert (day.span, day.limit_tokens, day.used_tokens, day.left_tokens, day.denied) == (
        pb.BUDGET_SPAN_DAY, 12, 10, 2, 1,
    )  # fmt: skip
    assert 0 < day.resets_in.seconds <= 25 * 3_600
    assert (month.span, month.mode, month.would_have_denied, month.within) == (
        pb.BUDGET_SPAN_MONTH, pb.BUDGET_MODE_SHADOW, 1, "office",
    )  # fmt: skip
    assert month.resets_in.seconds > day.resets_in.seconds - 1
    assert 'tokenbroker_budget_left_tokens{budget="office",span="day"} 2.0' in metrics
    assert 'tokenbroker_budget_would_deny_total{budget="inner"} 1.0' in metrics
    assert 'tokenbroker_budget_enforced{budget="inner"} 0.0' in metrics
