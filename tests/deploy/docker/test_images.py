"""What goes into the images: pinned libraries with hashes, a named base, labels."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "deploy/docker/requirements"
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text("utf-8")
ROLES = ("broker", "fetcher", "gateway", "simulator")
PIN = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;\\]+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    """The pinned version of each library."""
    return dict(PIN.findall(text))


@pytest.mark.parametrize("role", [*ROLES, "build"])
def test_every_library_has_hashes(role: str) -> None:
    """Only files with these hashes are installed, in the versions of the lock."""
    text = (REQUIREMENTS / f"{role}.txt").read_text("utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    lock = pins((ROOT / "constraints.txt").read_text("utf-8"))

    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert pins(text).items() <= lock.items()
    assert f"--require-hashes --requirement requirements/{role}.txt" in DOCKERFILE


def test_nothing_else_is_installed() -> None:
    """Every other installation is of the project's own wheel, without its dependencies."""
    installs = re.findall(r"pip(?: --python \S+)? install (.*)$", DOCKERFILE, re.MULTILINE)

    assert len(installs) == 2 * len(ROLES) + 1
    assert all("--require-hashes" in one or one == "--no-deps dist/*.whl" for one in installs)


def test_images_name_their_origin() -> None:
    """One base for all, to be pinned by digest; labels name base, version and revision."""
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    labels = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", DOCKERFILE))

    assert {base for base in bases if "/" in base or ":" in base} == set()
    assert "${PYTHON_IMAGE}" in bases
    assert labels == {"title", "licenses", "version", "revision", "base.name"}
