"""Database URLs: what libpq would misread is refused, and nothing of it is quoted."""

import re

import pytest
from psycopg.conninfo import conninfo_to_dict

from fetcher.settings import Settings
from protos.postgres.url import check_database_url, secrets_of
from protos.process.environment import SettingsError

GOOD = (
    "postgresql://localhost/deals",
    "postgres://user@db.example:6432/deals?sslmode=verify-full&application_name=x",
    "postgresql://u:p%40ss%2Fw%3Fo%25rd@127.0.0.1:5432/deals",
    "postgresql://u:pä:ss#wörd'\"@127.0.0.1/deals",
    "postgresql://u:x@a.example:5432,b.example:5433/deals?target_session_attrs=read-write",
    "postgresql://u:x@a.example,b.example:5433/deals",
    "postgresql://u:x@[::1]:5432/deals",
    "postgresql://u@%2Fvar%2Frun%2Fpostgresql/deals",
    "postgresql:///deals?host=/var/run/postgresql&password=x",
    "postgresql://db_1.internal/deals?options=-c%20statement_timeout%3D5000",
)

# Each holds the word "Geheim", which stands for a secret, and breaks one rule.
BAD = {
    "postgresql://u:Geheim%off@host/db": "%25",
    "postgresql://u:Geheim%00@host/db": "%25",
    "postgresql://u:Geheim@more@host/db": "%40",
    "postgresql://u:more@Geheim@host/db": "%40",
    "postgresql://u:Geheim/more@host/db": "%2F",
    "postgresql://u:12/Geheim@host/db": "%2F",
    "postgresql://u:12?sslmode=Geheim@host/db": "%3F",
    "postgresql://u:Geheim?x=y@host/db": "%3F",
    "postgresql://u:Geheim more@host/db": "%20",
    "postgresql://u:Geheim\n@host/db": "%20",
    "postgresql://u:Geheim": "valid port",
    "postgresql://host:Geheim/db": "valid port",
    "postgresql://host:99999/db?password=Geheim": "valid port",
    "postgresql://a,b/db?port=1,2,3&password=Geheim": "ports",
    "postgresql://ho^st/db?password=Geheim": "valid host",
    "postgresql://[::Geheim]/db": "valid host",
    "postgresql://[Geheim/db": "libpq",
    "postgresql://u:x@host/db?Geheim=1": "libpq",
    "postgresql://u:x@host/db?Geheim": "libpq",
    "postgresql://u:x@host/db?sslmode=Geheim": "verify-full",
    "postgresql://u:x@host/db?target_session_attrs=Geheim": "read-write",
    "POSTGRESQL://u:Geheim@host/db": "postgresql://",
    "postgresql+psycopg://u:Geheim@host/db": "postgresql://",
    "jdbc:postgresql://host/db?password=Geheim": "postgresql://",
    "mysql://u:Geheim@host/db": "postgresql://",
    "host=h password=Geheim": "postgresql://",
    "Geheim": "postgresql://",
}


@pytest.mark.parametrize("url", GOOD)
def test_what_libpq_reads_as_meant_passes(url: str) -> None:
    """Sockets, several hosts, IPv6, any password that is quoted as URLs are."""
    assert check_database_url(url) == url
    assert conninfo_to_dict(url)


@pytest.mark.parametrize(("url", "remedy"), BAD.items())
def test_what_libpq_would_misread_is_refused_without_a_quote(url: str, remedy: str) -> None:
    """The message names the rule; whatever the password's piece became, it is not shown."""
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        check_database_url(url)

    assert "Geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("url", BAD)
def test_settings_refuse_it_by_the_variable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the URL comes from is named, be it a variable or a file."""
    monkeypatch.setenv("DATABASE_URL", url.replace("\x00", ""))
    with pytest.raises(SettingsError, match="DATABASE_URL") as caught:
        Settings.load()

    assert "Geheim" not in str(caught.value)


def test_every_password_of_a_url_is_known() -> None:
    """As it is written, as it is meant, and from the options; also where it does not parse."""
    good = set(secrets_of("postgresql://u:p%40ss@host/db?sslpassword=other"))
    option = set(secrets_of("postgresql://host/db?password=w%20rd"))
    bad = set(secrets_of("postgresql://u:50%off/@x@host/db"))

    assert good == {"p@ss", "p%40ss", "other"}
    assert option == {"w rd"}
    assert "50%off/@x" in bad
