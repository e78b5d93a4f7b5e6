"""A text in another encoding than UTF-8 is refused with its encoding and the remedy."""

from pathlib import Path

import pytest

from broker.access.budgets_file import BudgetsFileError, read_budgets
from broker.access.identities import IdentityBook
from fetcher.query_folder import QueryFolder
from protos.channel.access import Access
from protos.channel.credential_files import CredentialError
from protos.process.environment import SettingsError
from protos.process.settings import read_secret
from protos.process.text_file import NotUtf8Error, decode_text

TEXT = '{"domainId": 3, "priceTypes": [1], "titleSearch": "Hörbuch"}'
OTHERS = {
    "latin-1": "probably Latin-1",
    "cp1252": "probably Windows-1252",
    "utf-16": "UTF-16, which Windows calls Unicode",
    "utf-16-le": "probably UTF-16",
    "utf-16-be": "probably UTF-16",
    "utf-32": "UTF-32",
}


def written(encoding: str) -> bytes:
    """The text in *encoding*; Windows-1252 has quotes that Latin-1 lacks."""
    return (TEXT + ("\u201c" if encoding == "cp1252" else "")).encode(encoding)


@pytest.mark.parametrize("encoding", OTHERS)
def test_another_encoding_is_named(encoding: str) -> None:
    """With the remedy, and without a word of the text."""
    with pytest.raises(NotUtf8Error) as caught:
        decode_text(written(encoding))

    assert OTHERS[encoding] in str(caught.value)
    assert str(caught.value).endswith("not UTF-8: save it as UTF-8")
    assert caught.value.__context__ is None


def test_a_mark_before_utf_8_is_no_part_of_the_text() -> None:
    """Windows' editor puts it there."""
    assert decode_text(TEXT.encode("utf-8-sig")) == decode_text(TEXT.encode()) == TEXT


def test_what_is_no_text_is_an_error() -> None:
    """A picture, for example."""
    with pytest.raises(NotUtf8Error, match="no text"):
        decode_text(b"\x89PNG" + bytes(4) + b"x" * 40)


@pytest.mark.parametrize("encoding", OTHERS)
def test_a_query_file_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    """The others in its folder stay; its title is not searched for in garbled letters."""
    (tmp_path / "bad.json").write_bytes(written(encoding))
    (tmp_path / "good.json").write_bytes(TEXT.encode("utf-8-sig"))
    folder = QueryFolder(tmp_path)
    folder.refresh()
    (error,) = folder.book.errors

    assert [query.name for query in folder.book.queries] == ["good"]
    assert OTHERS[encoding] in str(error)
    assert str(tmp_path / "bad.json") in str(error)


def test_all_other_files_are_refused_alike(tmp_path: Path) -> None:
    """Secrets, budgets, identities, tokens and certificates; each names its file."""
    path = tmp_path / "file"
    path.write_bytes("bücher".encode("utf-16"))
    found = []
    for error, read in (
        (SettingsError, lambda: read_secret("KEEPA_API_KEY_FILE", path, "the key")),
        (BudgetsFileError, lambda: read_budgets(path)),
        (CredentialError, lambda: IdentityBook.read(path)),
        (CredentialError, lambda: Access(token_file=path).check("127.0.0.1:1")),
        (CredentialError, lambda: Access(ca_file=path).check("127.0.0.1:1")),
    ):
        with pytest.raises(error) as caught:
            read()
        found.append(str(caught.value))

    assert all("UTF-16" in text and "save it as UTF-8" in text for text in found), found
    assert all(str(path) in text for text in found)
