"""The channels file: what is read, what is refused, and what no text may show."""

from pathlib import Path

import pytest

from fetcher.alerts.channels import ChannelsError, Rate, read_channels, secrets_in
from fetcher.alerts.troubles import TROUBLES
from fetcher.commands.output import Format
from fetcher.commands.queries import check_queries
from fetcher.settings import FetcherSecrets
from tests.fetcher.keepa_pages import query_text


def write(folder: Path, text: str) -> Path:
    """A channels file with *text*."""
    path = folder / "alerts.toml"
    path.write_text(text, "utf-8")
    return path


def test_channels_are_read_with_their_secrets_from_files(tmp_path: Path) -> None:
    """Any address or key may stand in a file of its own."""
    (tmp_path / "hook").write_text("https://example.com/hook\n")
    (tmp_path / "key").write_text("whsec_c2VzYW1l\n")
    path = write(
        tmp_path,
        f"""
        [channels.team]
        apprise = "json://localhost"
        rate = "1/s"
        [channels.shop]
        webhook_file = "{tmp_path}/hook"
        secret_file = "{tmp_path}/key"
        [operators]
        channel = "team"
        """,
    )
    channels = read_channels(path)
    team, shop = channels.by_name["team"], channels.by_name["shop"]

    assert (team.kind, team.rate, team.signing_key) == ("apprise", Rate(1, 1), None)
    assert shop.address.get_secret_value() == "https://example.com/hook"
    assert shop.signing_key is not None
    assert (channels.operators, channels.troubles) == ("team", frozenset(TROUBLES))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "channels: add at least one"),
        ("[channels.team", "not TOML"),
        ("[channel.team]", "channel: unknown key"),
        ("[channels.'a b']\nwebhook='https://x'", "channels: name each"),
        ("[channels.team]", "channels.team.apprise: give either"),
        ("[channels.team]\napprise='a://b'\nwebhook='https://x'", "channels.team.apprise"),
        ("[channels.team]\nwebhook='sesame-4711'", "channels.team.webhook: write an address"),
        ("[channels.team]\nwebhook='https://[sesame-4711'", "channels.team.webhook"),
        ("[channels.team]\nwebhook=''", "channels.team.webhook: write a text"),
        ("[channels.team]\nwebhook_file='/no/such'", "channels.team.webhook_file: can't read"),
        (
            "[channels.team]\nwebhook='https://x'\nsecret='sesame-4711'",
            "channels.team.secret: write whsec_",
        ),
        ("[channels.team]\napprise='a://b'\nsecret='sesame-4711'", "channels.team.secret: only"),
        ("[channels.team]\napprise='a://b'\nrate='many'", "channels.team.rate"),
        ("[channels.team]\napprise='a://b'\n[operators]\nchannel='x'", "operators.channel"),
        (
            "[channels.team]\napprise='a://b'\n[operators]\nchannel='team'\ntroubles=['rain']",
            "operators.troubles",
        ),
    ],
)
def test_a_mistake_is_named_without_a_value(tmp_path: Path, text: str, named: str) -> None:
    """Values may be secrets: an error shows keys only."""
    with pytest.raises(ChannelsError) as caught:
        read_channels(write(tmp_path, text))

    assert named in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert caught.value.__context__ is None


def test_secrets_are_known_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address, its password and its token are blanked out wherever they turn up."""
    path = write(
        tmp_path,
        """
        [channels.team]
        apprise = "mailto://user:open%20sesame@smtp.example.com?to=a@b"
        [channels.shop]
        webhook = "https://example.com/api/webhooks/12345678/AbCdEfGhIj"
        secret = "whsec_c2VzYW1l"
        """,
    )
    monkeypatch.setenv("ALERTS_FILE", str(path))
    known = FetcherSecrets.known()

    assert {"open%20sesame", "open sesame", "12345678", "whsec_c2VzYW1l"} <= set(known)
    assert not {"webhooks", "example.com"} & set(known)
    assert list(secrets_in(tmp_path / "none")) == []


def test_a_channel_shows_no_secret(tmp_path: Path) -> None:
    """Not even in its repr."""
    text = "[channels.team]\nwebhook='https://sesame/'\nsecret='whsec_c2VzYW1l'"
    channels = read_channels(write(tmp_path, text))

    assert "sesame" not in repr(channels)
    assert "c2Vz" not in repr(channels)


def test_the_check_of_queries_names_unknown_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the nearest that the file has; without the file, any name will do."""
    path = tmp_path / "alerts.toml"
    path.write_text('[channels.team]\nwebhook = "https://example.com/hook"\n')
    (tmp_path / "right.json").write_text(query_text(alerts=[{"channel": "team"}]))
    wrong = query_text(alerts=[{"channel": "team"}, {"channel": "taem"}])
    (tmp_path / "wrong.json").write_text(wrong)
    code = check_queries(tmp_path, channels=path, output=Format.TABLE)
    without = check_queries(tmp_path, channels=None, output=Format.TABLE)

    assert (code, without) == (1, 0)
    assert (
        "REFUSED query wrong: alerts[1].channel: ALERTS_FILE has no channel 'taem';"
        " did you mean 'team'?" in capsys.readouterr().out
    )
