#!/usr/bin/env python3
"""Gathers source files of four languages from this machine, for examples/source_code_rnn.yaml.

    python3 examples/gather_source_code.py [FOLDER]

Copies up to --files files of Python (the standard library), C (headers), Perl (modules) and shell (scripts)
into FOLDER/<language>/; FOLDER is source_code beside this script unless it is named. Any Debian machine has
these files; other systems mostly do. Nothing is downloaded. The same machine gives the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

MANIFEST = "gathered.json"
SMALLEST, LARGEST = 400, 200_000  # bytes of a file

SHELL = re.compile(rb"#! *(?:/usr)?/bin/(?:env +)?(?:ba|da)?sh\b")
CPP = re.compile(rb"^\s*(?:template\s*<|namespace\b|class\s+\w+|using\s)", re.MULTILINE)
TESTS = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__", "unicore"}


def main() -> None:
    """Gathers, or says in one line why it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent / "source_code"
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="where to (source_code here)")
    parser.add_argument("--files", type=int, default=300, help="the most files of a language (300)")
    parser.add_argument("--least", type=int, default=40, help="fewer files of a language are an error (40)")
    arguments = parser.parse_args()
    if not 2 <= arguments.least <= arguments.files:
        parser.error("--least must be at least 2, and --files no fewer")
    try:
        gather(arguments.folder, arguments.files, arguments.least)
    except OSError as error:
        sys.exit(f"{error.filename or arguments.folder}: {error.strerror or error}")


def gather(folder: Path, most: int, least: int) -> None:
    """Fills ``folder``; SystemExit where it is someone else's, or a language has too few files."""
    old = earlier(folder)
    chosen: dict[str, list[tuple[Path, bytes]]] = {}
    for language, (find, wanted, where, help_) in LANGUAGES.items():
        files = list(usable(find(), wanted))
        if len(files) < least:
            sys.exit(f"{language}: {len(files)} files in {where}, and {least} are needed: {help_}")
        chosen[language] = spread(files, most)
        print(f"{language:<7} {len(chosen[language]):>4} of {len(files)} files in {where}")
    for name in old:
        (folder / name).unlink(missing_ok=True)
    written: list[str] = []
    for language, found in chosen.items():
        (folder / language).mkdir(parents=True, exist_ok=True)
        for number, (path, content) in enumerate(found):
            name = f"{language}/{number:04d}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)}"
            (folder / name).write_bytes(content)
            written.append(name)
    (folder / MANIFEST).write_text(json.dumps(written, indent=1) + "\n")
    print(f"{len(written)} files are in {folder}")


def earlier(folder: Path) -> list[str]:
    """The files of an earlier run in ``folder``; SystemExit where it holds anything else."""
    if not folder.exists():
        return []
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    manifest = folder / MANIFEST
    try:
        ours = json.loads(manifest.read_text()) if manifest.is_file() else []
    except ValueError:
        sys.exit(f"{manifest} is damaged: remove {folder}, or name another folder")
    foreign = sorted(present - {*ours, MANIFEST})
    if foreign:
        sys.exit(
            f"{folder} holds files that this script did not put there ({foreign[0]}"
            f"{' and others' if len(foreign) > 1 else ''}): name another folder, or move them away"
        )
    return sorted(present)


def usable(paths: Iterable[Path], wanted: Callable[[bytes], bool]) -> Iterator[tuple[Path, bytes]]:
    """Regular text files of bounded size that are ``wanted``, each content once, in their order."""
    seen: set[bytes] = set()
    for path in paths:
        try:
            if path.is_symlink() or not path.is_file() or not SMALLEST <= path.stat().st_size <= LARGEST:
                continue
            content = path.read_bytes()
        except OSError:
            continue
        mark = hashlib.sha256(content).digest()
        if mark in seen or b"\0" in content or not wanted(content):
            continue
        try:
            content.decode()
        except UnicodeDecodeError:
            continue
        seen.add(mark)
        yield path, content


def spread(files: list[tuple[Path, bytes]], most: int) -> list[tuple[Path, bytes]]:
    """``most`` of the files at even distances, so that no package is all that is taken."""
    if len(files) <= most:
        return files
    return [files[place * len(files) // most] for place in range(most)]


def below(*roots: str | Path, suffix: str = "", without: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below the folders, in the order of their paths; links to folders are not followed."""
    seen: set[str] = set()
    for top in roots:
        for root, folders, names in os.walk(os.path.realpath(top)):
            folders[:] = sorted(name for name in folders if name not in TESTS | without)
            if root in seen:
                folders.clear()
                continue
            seen.add(root)
            yield from (Path(root, name) for name in sorted(names) if name.endswith(suffix))


def perl_modules() -> Iterator[Path]:
    """Modules on Perl's own search path."""
    try:
        asked = subprocess.run(
            ["perl", "-e", 'print join "\\n", @INC'], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return iter(())
    return below(*asked.stdout.split("\n"), suffix=".pm")


def shell_scripts() -> Iterator[Path]:
    """Files that begin with the shebang of a shell."""
    for path in below("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share", "/etc", "/var/lib/dpkg/info"):
        try:
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    if SHELL.match(file.read(64)):
                        yield path
        except OSError:
            continue


LANGUAGES = {
    "c": (
        lambda: below("/usr/include", suffix=".h", without=frozenset({"c++", "boost", "node", "unicode"})),
        lambda content: not CPP.search(content),
        "/usr/include",
        "install linux-libc-dev and libc6-dev (apt-get install libc6-dev)",
    ),
    "perl": (
        perl_modules,
        lambda content: True,
        "the folders of Perl's @INC",
        "install perl and perl-modules (apt-get install perl)",
    ),
    "python": (
        lambda: below(sysconfig.get_path("stdlib"), suffix=".py"),
        lambda content: True,
        f"{sysconfig.get_path('stdlib')}",
        "install the whole standard library (apt-get install libpython3-stdlib)",
    ),
    "shell": (
        shell_scripts,
        lambda content: True,
        "/usr, /etc and /var/lib/dpkg/info",
        "install packages with scripts, such as git, autoconf and initscripts (apt-get install git autoconf)",
    ),
}
"""Of each language: where its files are, which of them are taken, and words for messages."""


if __name__ == "__main__":
    main()
