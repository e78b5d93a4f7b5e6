"""Settings that broker, fetcher and the local stack read the same way."""

from pathlib import Path

import pytest

from broker.settings import ServeSettings
from deploy.local.settings import StackSettings
from fetcher.settings import Settings
from protos.process.environment import SettingsError
from protos.process.settings import Environment, TracingSettings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env of the developer reaches a test."""
    for settings in (ServeSettings, Settings, StackSettings, TracingSettings):
        for name in settings.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def complaint(settings: type[ServeSettings | Settings]) -> str:
    """The one problem of the key."""
    with pytest.raises(SettingsError) as caught:
        settings.load().read_api_key()
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "KEEPA_API_KEY_FILE: can't read {path}: No such file or directory"),
        (b"\n", "KEEPA_API_KEY_FILE: {path} is empty: put the key in it"),
        (
            b"\xff\xfe",
            (
                "KEEPA_API_KEY_FILE: can't read {path}: it is UTF-16, which Windows calls Unicode,"
                " not UTF-8: save it as UTF-8"
            ),
        ),
        (b"two words", "KEEPA_API_KEY holds blanks or odd characters: copy it again"),
    ],
)
def test_broker_and_fetcher_read_a_key_file_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """The same file gives the same line in both, with the whole path of the file."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("KEEPA_API_KEY_FILE", "key")

    assert complaint(ServeSettings) == complaint(Settings) == problem.format(path=path)


@pytest.mark.parametrize("settings", [ServeSettings, Settings, StackSettings])
def test_every_problem_has_a_line(
    monkeypatch: pytest.MonkeyPatch, settings: type[Environment]
) -> None:
    """All wrong settings are reported at once, each with its name; no value is repeated."""
    wrong = {"LOG_LEVEL": "loud-secret", "KEEPA_BASE_URL": "ftp://secret"}
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        settings.load()

    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == wrong.keys()
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("settings", [ServeSettings, Settings])
@pytest.mark.parametrize(
    ("url", "allowed", "problem"),
    [
        ("https://user:pass-word@api.keepa.com", "", "must hold no user and password"),
        ("https://pass-word@api.keepa.com", "true", "must hold no user and password"),
        ("http://10.0.0.7:8901", "", "set KEEPA_ALLOW_PLAINTEXT=true for a simulator"),
        ("http://localhost.example", "", "would carry the key to localhost.example in the clear"),
        ("http://10.0.0.7:8901", "true", None),
        ("http://127.0.0.1:8901", "", None),
        ("http://[::1]:8901", "", None),
        ("http://localhost:8901", "", None),
        ("https://api.keepa.com", "", None),
    ],
)
def test_the_key_travels_to_keepa_in_secret(
    monkeypatch: pytest.MonkeyPatch,
    settings: type[ServeSettings | Settings],
    url: str,
    allowed: str,
    problem: str | None,
) -> None:
    """Plain http leaves the machine only where it is allowed; the address holds no secret."""
    monkeypatch.setenv("KEEPA_API_KEY", "k")
    monkeypatch.setenv("KEEPA_BASE_URL", url)
    monkeypatch.setenv("KEEPA_ALLOW_PLAINTEXT", allowed)
    if problem is None:
        assert settings.load().keepa_base_url == url
        return
    with pytest.raises(SettingsError, match=problem) as caught:
        settings.load()

    assert str(caught.value).startswith("KEEPA_BASE_URL: ")
    assert "pass-word" not in str(caught.value)
