"""Pins all dependencies: `lock.py` writes the files again, `lock.py --check` needs no network.

constraints.txt pins what pyproject.toml asks for, deploy/tools.txt what deploy/tools.in
asks for; both hold for every Python that the project supports. Each begins with a hash of
its requests, by which the check notices a request that came later.

deploy/docker/requirements/ pins the same versions for the images, one file per extra, with
the hashes of all files that the index has for them: pip installs nothing else.
"""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final = ROOT / "pyproject.toml"
CONSTRAINTS: Final = ROOT / "constraints.txt"
TOOLS: Final = ROOT / "deploy" / "tools.in"
PINNED_TOOLS: Final = TOOLS.with_suffix(".txt")
IMAGES: Final = ROOT / "deploy" / "docker" / "requirements"
ROLES: Final = ("broker", "fetcher", "gateway", "simulator")
OLDEST_PYTHON: Final = "3.11"
MARK: Final = "# requests: "


def requests_of(source: Path) -> str:
    """Hash of all that *source* asks for; comments and other tables do not count."""
    if source.suffix == ".toml":
        project = tomllib.loads(source.read_text("utf-8"))
        tables = [project["build-system"]["requires"], project["project"]["requires-python"]]
        tables += [project["project"]["dependencies"], project["project"]["optional-dependencies"]]
        text = json.dumps(tables, sort_keys=True)
    else:
        lines = (line.partition("#")[0].strip() for line in source.read_text("utf-8").splitlines())
        text = "\n".join(line for line in lines if line)
    return hashlib.sha256(text.encode()).hexdigest()


def write(source: Path, target: Path, *options: str) -> None:
    """Resolves *source* into *target*; pinned versions that still fit stay, but for --upgrade."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--no-header", "--no-annotate"]
    command += ["--python-version", OLDEST_PYTHON, "--output-file", str(target), str(source)]
    subprocess.run([*command, *options], check=True)
    head = f"{MARK}{requests_of(source)}\n# Written by `make lock`.\n"
    target.write_text(head + target.read_text("utf-8"), "utf-8")


def write_for_images() -> None:
    """Writes the requirements of each image, and of the build, in the pinned versions."""
    IMAGES.mkdir(exist_ok=True)
    pinned = ("--generate-hashes", "--constraint", str(CONSTRAINTS))
    for role in ROLES:
        write(PROJECT, IMAGES / f"{role}.txt", "--extra", role, *pinned)
    build = IMAGES / "build.in"
    requires = tomllib.loads(PROJECT.read_text("utf-8"))["build-system"]["requires"]
    build.write_text("\n".join(requires) + "\n", "utf-8")
    write(build, IMAGES / "build.txt", *pinned)
    build.unlink()


def main() -> int:
    """Writes or checks all files; 1 if the check fails."""
    files = {CONSTRAINTS: PROJECT, PINNED_TOOLS: TOOLS} | {
        IMAGES / f"{role}.txt": PROJECT for role in ROLES
    }
    if sys.argv[1:] == ["--check"]:
        late = [
            f"{target.relative_to(ROOT)} is older than {source.relative_to(ROOT)}: run make lock"
            for target, source in files.items()
            if not target.exists()
            or not target.read_text("utf-8").startswith(MARK + requests_of(source) + "\n")
        ]
        sys.stderr.writelines(line + "\n" for line in late)
        return len(late) > 0
    write(PROJECT, CONSTRAINTS, "--all-extras", *sys.argv[1:])
    write(TOOLS, PINNED_TOOLS, *sys.argv[1:])
    write_for_images()
    return 0


if __name__ == "__main__":
    sys.exit(main())
