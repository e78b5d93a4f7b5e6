"""Settings that broker, fetcher and the local stack read the same way."""

from pathlib import Path

import pytest

from broker.settings import ServeSettings
from deploy.local.settings import StackSettings
from fetcher.settings import Settings
from protos.process.settings import Environment, SettingsError, TracingSettings


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
        (b"\xff\xfe", "KEEPA_API_KEY_FILE: can't read {path}: not a text file"),
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
