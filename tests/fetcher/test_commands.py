"""The commands that look, explain and repair, against a world with some deals in it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.local.ports import free_port
from fetcher.__main__ import _duration, app, main
from tests.fetcher.keepa_pages import body, row
from tests.fix_broker import StartProgram, environment
from tests.fix_fetcher import ROOT, SELECTION, StartWorld, World
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until

RECORDED = ROOT.parent / "shared/keepa-recordings/deal-page0-2025-09-14.trimmed-to-2-deals.json"


@pytest.fixture
def world(start_world: StartWorld) -> World:
    """A world with one query and rules that reject some deals."""
    world = start_world()
    world.write_query("used", {"selection": SELECTION, "rules": {"rank": {"max": 100_000}}})
    return world


def test_one_product_is_explained(world: World) -> None:
    """Prices, every verdict with its rules, and changes."""
    world.collect()
    asin = world.value("SELECT asin FROM verdicts WHERE state = 'rejected' LIMIT 1")
    told = world.command("deals", "explain", asin)
    data = json.loads(world.command("deals", "explain", asin, "-o", "json").stdout)
    unknown = world.command("deals", "explain", "B000000000")

    assert told.returncode == 0
    assert "used: rejected" in told.stdout
    assert "rank is" in told.stdout
    assert data["verdicts"][0]["failures"][0]["rule"] == "rank"
    assert unknown.returncode == 1
    assert "never served" in unknown.stdout


def test_doctor_is_content_with_a_healthy_world(world: World) -> None:
    """Key, Keepa, broker, count, Postgres, schema, queries and fetchers are looked at."""
    # The first report may stem from the moment before the tables were seen.
    beat = "SELECT 1 FROM workers WHERE seen_at > now() - interval '20 seconds'"
    with world.at_work():
        wait_until(world.scans_completed, "a completed scan")
        wait_until(lambda: world.rows(beat), "a heartbeat")
        done = world.command("doctor", "-o", "json")
    findings = json.loads(done.stdout)
    subjects = {finding["subject"] for finding in findings}

    assert [finding for finding in findings if finding["state"] != "ok"] == []
    assert done.returncode == 0
    assert subjects >= {
        "version",
        "key",
        "Keepa",
        "broker",
        "count",
        "Postgres",
        "schema",
        "query used",
        "queries",
        "work",
        "fetchers",
    }


def test_doctor_names_what_is_missing_and_the_remedy(world: World, tmp_path: Path) -> None:
    """With nothing set up, every line has a remedy; the exit code is for scripts."""
    done = world.command(
        "doctor",
        keepa_api_key="",
        keepa_base_url="https://api.keepa.com",
        broker_address="127.0.0.1:1",
        database_url="postgresql://me:hidden-word@127.0.0.1:1/x",
        queries=tmp_path / "nowhere",
    )

    assert done.returncode == 1
    assert "KEEPA_API_KEY" in done.stdout
    assert "tokenbroker serve" in done.stdout
    assert "host and port in DATABASE_URL" in done.stdout
    assert "hidden-word" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "changes",
    [{"broker_address": "127.0.0.1:1"}, {"keepa_base_url": "https://api.keepa.com"}],
    ids=["a simulator", "a broker that serves"],
)
def test_doctor_misses_no_key_where_none_is_needed(
    world: World, changes: dict[str, object]
) -> None:
    """Beside a simulator, or a broker that has its own, a missing key is no fault."""
    done = world.command("doctor", "-o", "json", keepa_api_key="", **changes)
    states = {finding["subject"]: finding["state"] for finding in json.loads(done.stdout)}

    assert states["key"] == "ok"


def test_queries_are_explained_before_anything_is_spent(world: World) -> None:
    """A good file in words with its cost, a bad one with key and reason."""
    world.write_query("bad", {"selection": SELECTION, "intervall": "5m"})
    done = world.command("queries", "check", str(world.queries))
    data = json.loads(world.command("queries", "check", str(world.queries), "-o", "json").stdout)

    assert done.returncode == 1
    assert "5 tokens" in done.stdout
    assert "intervall" in done.stdout
    assert [query["name"] for query in data["queries"]] == ["used"]
    assert data["errors"][0]["key"] == "intervall"


def test_a_forecast_takes_plan_and_costs_from_the_broker(world: World) -> None:
    """Learned costs and the refill rate are read; without a broker both are assumed."""
    world.collect()
    world.write_query("fast", {"selection": SELECTION, "interval": "2m"})
    asked = ("queries", "check", str(world.queries), "--forecast")
    known = json.loads(world.command(*asked, "-o", "json").stdout)
    told = world.command(*asked, "--refill-rate", "1", broker_address="127.0.0.1:1")
    blind = json.loads(world.command(*asked, "-o", "json", broker_address="127.0.0.1:1").stdout)
    fast = {query["name"]: query for query in known["queries"]}["fast"]

    assert known["learned_costs"] == {"deal": 5.0}
    assert known["broker_trouble"] is None
    assert known["refill_tokens_per_hour"] > 0
    assert (fast["interval_ms"], fast["pages_per_hour"], fast["page_tokens_per_hour"]) == (
        120_000, 30, 150,
    )  # fmt: skip
    assert known["carried"] == (known["tokens_per_hour"] <= known["refill_tokens_per_hour"])
    assert told.returncode == 0
    assert "refills 60 an hour and does NOT cover it" in told.stdout
    assert "no broker answers" in told.stdout
    assert (blind["carried"], blind["learned_costs"]) == (None, {})
    assert any("Keepa's list prices: deal" in words for words in blind["assumptions"])


def test_dead_pages_are_listed_and_read_again(world: World) -> None:
    """A requeued page continues its scan where it failed."""
    world.simulator.set_fault("error:status=500,path=/deal,count=2")
    found = "SELECT 1 FROM scan_pages WHERE state = 'dead'"
    with world.at_work(attempts_max=2):
        wait_until(lambda: world.rows(found), "a dead page")
        dead = json.loads(world.command("pages", "dead", "-o", "json").stdout)
        requeued = world.command("pages", "requeue", "--scan", str(dead[0]["scan_id"]))
        wait_until(world.scans_completed, "a completed scan")

    assert "500" in dead[0]["error"]
    assert "1 pages" in requeued.stdout
    assert world.stored_deals() == world.served_deals()


def test_sort_types_are_measured_through_leases(world: World) -> None:
    """The stand-in orders as documented; every call is leased and paid for."""
    spent = world.spent()
    done = world.command("verify-sort", "-o", "json")
    told = json.loads(done.stdout)
    verdicts = {sort["sort"]: sort["verdict"] for sort in told["sorts"]}

    assert done.returncode == 0
    assert verdicts[0] == "undocumented"
    assert {verdicts[sort] for sort in (1, 2, 3, 4)} == {"as documented"}
    assert told["tokens"] == world.spent() - spent == 25


def test_sort_types_can_be_measured_without_a_broker(world: World) -> None:
    """With --direct a person takes the tokens without asking."""
    done = world.command("verify-sort", "--direct", "-o", "json", broker_address="127.0.0.1:1")

    assert done.returncode == 0
    assert json.loads(done.stdout)["tokens"] == 25


def test_saved_replies_are_measured_without_key_or_keepa(world: World, tmp_path: Path) -> None:
    """An order that is not what the sort type promises is exit code 1."""
    saved = tmp_path / "reply.json"
    saved.write_text(json.dumps(body([row(number) for number in (1, 2, 3)])))
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(body([row(number) for number in (30, 1, 90)])))
    good = world.command("verify-sort", "--from-file", str(saved), keepa_api_key="")
    bad = world.command("verify-sort", "--from-file", str(mixed), keepa_api_key="")

    assert good.returncode == 0
    assert "as documented" in good.stdout
    assert bad.returncode == 1
    assert "not as documented" in bad.stdout


def test_a_saved_reply_of_an_unknown_query_is_not_judged(world: World, tmp_path: Path) -> None:
    """Its drops could be of any price, so a verdict would be a guess."""
    saved = tmp_path / "reply.json"
    saved.write_text(json.dumps(body([row(number) for number in (1, 2, 3)])))
    world.write_query("other", {"selection": {**SELECTION, "priceTypes": [0]}})
    unnamed = world.command("verify-sort", "--from-file", str(saved))
    named = world.command("verify-sort", "--from-file", str(saved), "--query", "used")

    assert unnamed.returncode == 2
    assert "--query" in unnamed.stderr
    assert "other, used" in unnamed.stderr
    assert named.returncode == 0


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded replies are not at hand")
def test_a_recorded_reply_follows_the_drop(world: World) -> None:
    """A real page of sort type 4 is ordered by percent."""
    done = world.command("verify-sort", "--from-file", str(RECORDED), "--sort", "4", "-o", "json")

    assert json.loads(done.stdout)["sorts"][0]["verdict"] in ("as documented", "too few rows")


def test_a_missing_key_is_explained_by_verify_sort(world: World) -> None:
    """The message lists the places searched."""
    done = world.command("verify-sort", "--direct", keepa_api_key="")

    assert done.returncode == 2
    assert "KEEPA_API_KEY" in done.stderr
    assert ".env" in done.stderr


def test_prune_deletes_what_is_old(world: World) -> None:
    """Deals, their verdicts, changes and scans older than the retention go."""
    world.collect()
    old = world.value("SELECT count(*) FROM verdicts WHERE state = 'rejected'")
    world.execute(
        "UPDATE deals SET reply_time = now() - interval '40 days' WHERE asin IN"
        " (SELECT asin FROM verdicts WHERE state = 'rejected')"
    )
    kept = world.value("SELECT count(*) FROM deals") - old
    done = world.command("prune", "--days", "30", "-o", "json")

    assert json.loads(done.stdout)["deals"] == old
    assert world.value("SELECT count(*) FROM deals") == kept
    assert world.value("SELECT count(*) FROM verdicts") == kept


def test_prune_refuses_while_collection_stands_still(world: World) -> None:
    """Old rows may be the only ones there are."""
    world.collect()
    world.execute("UPDATE scan_pages SET done_at = now() - interval '2 days'")
    world.execute("UPDATE deals SET reply_time = now() - interval '40 days'")
    refused = world.command("prune", "--days", "30")
    forced = world.command("prune", "--days", "30", "--force")

    assert refused.returncode == 1
    assert "nothing deleted" in refused.stdout
    assert forced.returncode == 0
    assert world.value("SELECT count(*) FROM deals") == 0


def test_prune_repeats_itself_until_it_is_stopped(
    world: World, start_program: StartProgram
) -> None:
    """With an interval it prunes again and again, and ends cleanly."""
    world.collect()
    pruning = start_program("fetcher", "prune", "--every", "1s", **world.settings())
    wait_until(lambda: pruning.output().count("deleted: ") > 1, "a second time")
    pruning.terminate()

    assert pruning.wait(DEADLINE_S) == 0


def test_every_command_explains_itself() -> None:
    """Each --help has an example."""
    commands = (
        ["migrate"],
        ["run"],
        ["scans"],
        ["deals"],
        ["deals", "explain"],
        ["rejections"],
        ["queries", "check"],
        ["pages", "dead"],
        ["pages", "requeue"],
        ["verify-sort"],
        ["doctor"],
        ["prune"],
    )
    helps = [CliRunner().invoke(app, [*command, "--help"]) for command in commands]

    assert [done.exit_code for done in helps] == [0] * len(commands)
    assert all("Example" in done.stdout for done in helps)


def test_a_period_is_read_in_words() -> None:
    """Minutes, hours and days."""
    period = _duration("90m")

    assert period is not None
    assert period.total_seconds() == 5400


def test_settings_are_refused_with_their_remedy(start_world: StartWorld) -> None:
    """Each malformed setting is one line that never repeats the value."""
    world = start_world()
    done = world.command(
        "run", keepa_base_url="ftp://x", broker_address="nowhere", keepa_api_key="secret-word"
    )

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 2
    assert "KEEPA_BASE_URL" in done.stderr
    assert "BROKER_ADDRESS" in done.stderr
    assert "secret-word" not in done.stderr


def test_secrets_may_come_from_files(world: World, tmp_path: Path) -> None:
    """Mounted secrets serve as well as variables."""
    (tmp_path / "key").write_text(world.simulator.api_key + "\n")
    (tmp_path / "url").write_text(world.database_url + "\n")
    done = world.command(
        "verify-sort",
        "--direct",
        keepa_api_key="",
        database_url="",
        keepa_api_key_file=tmp_path / "key",
        database_url_file=tmp_path / "url",
    )
    scans = world.command("scans", database_url="", database_url_file=tmp_path / "url")

    assert done.returncode == 0
    assert scans.returncode == 0


def test_the_commands_show_what_was_collected(start_world: StartWorld) -> None:
    """Scans, deals and rejections, for people and for programs."""
    world = start_world()
    world.write_query("used", {"selection": SELECTION, "rules": {"rank": {"max": 100_000}}})
    world.collect()
    scans = json.loads(world.command("scans", "-o", "json").stdout)
    deals = json.loads(world.command("deals", "-n", "3", "-o", "json").stdout)
    rejected = json.loads(world.command("rejections", "-o", "json").stdout)
    table = world.command("rejections", "--since", "1h").stdout

    assert scans[0]["state"] == "completed"
    assert scans[0]["new_deals"] == len(world.stored_deals())
    assert len(deals) == 3
    assert rejected[0]["rules"][0]["rule"] == "rank"
    assert "rank" in table


def test_a_command_without_postgres_fails_in_one_line() -> None:
    """Exit code 1 and the variable to look at."""
    url = f"postgresql://me:hidden-word@127.0.0.1:{free_port()}/deals"
    given = environment(database_url=url)
    done = run_here(main, "dealfetcher", ("scans",), environment=given, folder=ROOT)

    assert done.returncode == 1
    assert "DATABASE_URL" in done.stderr
    assert "hidden-word" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
