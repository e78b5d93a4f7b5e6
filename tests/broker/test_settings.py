"""Settings of the broker, read from an environment of the test's own."""

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from broker.access.followed_files import FollowedFiles
from broker.settings import ServeSettings
from protos.channel.credential_files import CredentialError
from protos.process.environment import SettingsError
from protos.process.settings import ClientSettings, key_fingerprint

KEY = "thisisasecretkey0123456789"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env of the developer's may reach a test."""
    for name in [*ServeSettings.model_fields, *ClientSettings.model_fields]:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_key_is_all_that_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else has a default that suits one machine."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)

    settings = ServeSettings.load()

    assert settings.keepa_api_key.get_secret_value() == KEY
    assert settings.keepa_base_url == "https://api.keepa.com"
    assert settings.broker_listen == "127.0.0.1:50051"
    assert settings.broker_http_listen == "127.0.0.1:9464"


def test_the_key_may_come_from_a_mounted_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The line break that editors leave behind is not part of it."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("KEEPA_API_KEY_FILE", str(tmp_path / "key"))

    assert ServeSettings.load().keepa_api_key.get_secret_value() == KEY


def test_a_dotenv_file_is_read(tmp_path: Path) -> None:
    """It stands in for the environment on a developer's machine."""
    (tmp_path / ".env").write_text(f"KEEPA_API_KEY={KEY}\nBROKER_FLOOR_TOKENS=7\n")

    assert ServeSettings.load().broker_floor_tokens == 7


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass empty strings for unset variables."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv("BROKER_LISTEN", "")

    assert ServeSettings.load().broker_listen == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("KEEPA_API_KEY", "", "KEEPA_API_KEY is not set: export it"),
        ("KEEPA_API_KEY", "two words", "KEEPA_API_KEY holds blanks"),
        (
            "KEEPA_API_KEY_FILE",
            "/nowhere/key",
            "KEEPA_API_KEY_FILE: can't read /nowhere/key: ",
        ),
        ("KEEPA_BASE_URL", "api.keepa.com", "KEEPA_BASE_URL: must look like"),
        ("BROKER_LISTEN", "50051", "BROKER_LISTEN: must be host:port"),
        ("BROKER_HTTP_LISTEN", "127.0.0.1:99999", "BROKER_HTTP_LISTEN: must be host:port"),
        ("BROKER_FLOOR_TOKENS", "-1", "BROKER_FLOOR_TOKENS: "),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: "),
        ("BROKER_TLS_CERT_FILE", "tls.crt", "and BROKER_TLS_KEY_FILE belong together"),
        ("BROKER_TLS_CLIENT_CA_FILE", "ca.crt", "is for TLS: set BROKER_TLS_CERT_FILE"),
        ("BROKER_LISTEN", "0.0.0.0:50051", "BROKER_ALLOW_PLAINTEXT=true"),
        ("BROKER_LISTEN", "broker.example:50051", "set BROKER_TLS_CERT_FILE"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """One line, which a person can act on."""
    if not name.startswith("KEEPA_API_KEY"):
        monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        ServeSettings.load()

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "horizon_ms"),
    [
        *(("0", 0), ("500ms", 500), ("90", 90_000), ("90s", 90_000), ("5m", 300_000)),
        *(("1h", 3_600_000), ("", 900_000)),
    ],
)
def test_the_horizon_of_debt_is_a_duration(
    monkeypatch: pytest.MonkeyPatch, text: str, horizon_ms: int
) -> None:
    """A number and a unit, or of seconds; unset means a quarter of an hour."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv("BROKER_DEBT_HORIZON", text)

    expected = timedelta(milliseconds=horizon_ms)
    assert ServeSettings.load().broker_debt_horizon == expected


@pytest.mark.parametrize("text", ["-5s", "1.5m", "5 d", "soon"])
def test_what_is_no_duration_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The line shows valid examples."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv("BROKER_DEBT_HORIZON", text)

    with pytest.raises(SettingsError, match="BROKER_DEBT_HORIZON: must be a whole number"):
        ServeSettings.load()


@pytest.mark.parametrize("source", ["environment", ".env"])
def test_the_old_setting_of_debt_names_the_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    """A value left behind would be ignored silently otherwise."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    if source == "environment":
        monkeypatch.setenv("BROKER_MAX_DEBT_TOKENS", "20")
    else:
        (tmp_path / ".env").write_text("BROKER_MAX_DEBT_TOKENS=20\n")

    with pytest.raises(SettingsError) as caught:
        ServeSettings.load()

    assert "BROKER_MAX_DEBT_TOKENS: is replaced by BROKER_DEBT_HORIZON" in str(caught.value)


def test_the_key_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what is printed of settings nor in complaints about them."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    shown = repr(ServeSettings.load())
    monkeypatch.setenv("LOG_LEVEL", KEY)
    monkeypatch.setenv("BROKER_LISTEN", KEY)
    monkeypatch.setenv("KEEPA_BASE_URL", KEY)

    with pytest.raises(SettingsError) as caught:
        ServeSettings.load()

    assert KEY not in shown
    assert KEY not in str(caught.value)


def test_the_fingerprint_is_a_salted_short_hash() -> None:
    """Clients compute the same, to find out that they use another key."""
    digest = hashlib.sha256(f"keepa-token-broker:{KEY}".encode()).hexdigest()

    assert key_fingerprint(KEY) == digest[:12]


def test_commands_need_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that only read need no secret."""
    monkeypatch.setenv("BROKER_ADDRESS", "broker.example:50051")

    assert ClientSettings.load().broker_address == "broker.example:50051"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "[::1]", "localhost"])
def test_plaintext_is_allowed_where_nobody_else_listens(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """What stays on the machine needs no certificate."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv("BROKER_LISTEN", f"{host}:50051")

    assert ServeSettings.load().broker_listen == f"{host}:50051"


@pytest.mark.parametrize(
    "protection",
    [
        {"BROKER_ALLOW_PLAINTEXT": "true"},
        {"BROKER_TLS_CERT_FILE": "tls.crt", "BROKER_TLS_KEY_FILE": "tls.key"},
    ],
    ids=["on-purpose", "by-tls"],
)
def test_other_machines_are_let_in_by_tls_or_on_purpose(
    monkeypatch: pytest.MonkeyPatch, protection: dict[str, str]
) -> None:
    """Never by forgetting something."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv("BROKER_LISTEN", ":50051")
    for name, value in protection.items():
        monkeypatch.setenv(name, value)

    assert ServeSettings.load().broker_listen == ":50051"


def test_client_certificates_need_somebody_to_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA proves identities; it grants no rights."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    for part in ("CERT", "KEY", "CLIENT_CA"):
        monkeypatch.setenv(f"BROKER_TLS_{part}_FILE", "file.pem")

    with pytest.raises(SettingsError) as caught:
        ServeSettings.load()

    assert "BROKER_TLS_CLIENT_CA_FILE needs BROKER_IDENTITIES_FILE" in str(caught.value)


@pytest.mark.parametrize("setting", ["METRICS_TOKEN_FILE", "BROKER_HTTP_TLS_CERT_FILE"])
def test_files_of_the_http_port_are_read_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    """The port itself begins late, when leases may be out already."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    monkeypatch.setenv(setting, str(tmp_path / "absent"))
    if "TLS" in setting:
        monkeypatch.setenv("BROKER_HTTP_TLS_KEY_FILE", str(tmp_path / "absent"))
    settings = ServeSettings.load()

    with pytest.raises(CredentialError, match=setting):
        FollowedFiles.of(settings)
