"""The identities file: callers and their roles."""

import hashlib
from pathlib import Path

import pytest

from broker.access.identities import Identity, IdentityBook, roles_for
from protos.channel.credential_files import CredentialError
from protos.process.identities import Role

TOKEN = "a-token-that-nobody-guesses"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
FILE = f"""
[fetchers]
role = "fetcher"
certificates = ["fetcher.example", "spiffe://example/fetcher"]

[anna]
role = "operator"
token_sha256 = ["{DIGEST.upper()}"]
"""

TWO = """
[a]
role = "viewer"
certificates = ["{}"]
[b]
role = "operator"
certificates = ["{}"]
"""


def read(folder: Path, text: str) -> IdentityBook:
    """The book that *text* makes."""
    path = folder / "identities.toml"
    path.write_text(text)
    return IdentityBook.read(path)


def test_an_identity_is_found_by_certificate_or_token(tmp_path: Path) -> None:
    """Any of a certificate's names will do; a token is known by its hash alone."""
    book = read(tmp_path, FILE)

    assert book.by_certificate(["other", "fetcher.example"]) == Identity("fetchers", Role.FETCHER)
    assert book.by_token(TOKEN) == Identity("anna", Role.OPERATOR)


def test_strangers_are_nobody(tmp_path: Path) -> None:
    """Neither parts of a name nor the hash itself open anything."""
    book = read(tmp_path, FILE)

    assert book.by_certificate(["example", "fetcher.example.evil", ""]) is None
    assert [book.by_token(text) for text in ("", DIGEST, TOKEN + " ")] == [None] * 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[broken", "Expected"),
        ("", "has no identity"),
        ('[a]\nrole = "king"\ncertificates = ["a"]', "a.role: "),
        ('[a]\nrole = "viewer"', "a: has neither certificates nor token_sha256"),
        ('["a/b"]\nrole = "viewer"\ncertificates = ["a"]', "a name is letters"),
        (f'[a]\nrole = "viewer"\ntoken_sha256 = ["{TOKEN}"]', "a.token_sha256.0: "),
        ('[a]\nrole = "viewer"\ntokens = ["a"]', "a.tokens: "),
        (TWO.format("x", "x"), "b and a share"),
    ],
    ids=["no-toml", "empty", "role", "no-way-in", "name", "bare-token", "unknown", "shared"],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    """With the setting, the file and the place; a token pasted by mistake is not repeated."""
    with pytest.raises(CredentialError) as caught:
        read(tmp_path, text)
    said = str(caught.value)

    assert said.startswith(f"BROKER_IDENTITIES_FILE: {tmp_path}/identities.toml: ")
    assert told in said
    assert "\n" not in said
    assert TOKEN not in said


def test_an_unknown_method_is_for_nobody() -> None:
    """Also one of a service that happens to have a method of the same name."""
    assert roles_for("/other.v1.Service/GetBucket") == set()
    assert roles_for("/tokenbroker.v1.TokenBrokerService/New") == set()


def test_a_holder_can_not_sign_as_somebody_else() -> None:
    """Names hold no slash, so the first one ends the identity."""
    anna = Identity("anna", Role.FETCHER)

    assert anna.signed("bert/1") == "anna/bert/1"
    assert not Identity("bert", Role.FETCHER).owns(anna.signed("bert/1"))
    assert not anna.owns("annabel/1")
