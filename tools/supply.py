"""Looks at what NHOP is made of: `python -m tools.supply check` (offline), `python -m tools.supply audit`.

``check`` holds requirements.lock against pyproject.toml, against what is installed and against what the
sources import, and looks at the licences of what is installed with NHOP. ``audit`` asks the advisories of
PyPI about every package of the lock. It fails where it gets no answer, too: pip-audit by itself would say
"No known vulnerabilities found" then.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
SHIPPED = ("nhop", "coordinator", "agent", "nhop_models")
"""What is in the wheel: it may import what a user has installed with it."""
OTHERS = ("tests", "benchmarks", "tools", "examples")
"""What only contributors run: it may import whatever is locked."""
WITH = {
    "botocore": "boto3",
    "googleapis-common-protos": "grpcio-status",  # google.rpc, which is what grpcio-status speaks of
    "keras": "tensorflow",
    "packaging": "tensorflow",
}
"""Packages that are imported, and come with another one that pyproject.toml names."""

LICENCES = re.compile(
    r"apache|mit|bsd|psf|python software|mozilla|mpl-2\.0|isc|zlib|unlicense|cc0", re.IGNORECASE
)
UNSAID = {"namex": "Apache-2.0"}
"""Licences that a package's metadata leave out; looked up in its repository."""

_PINNED = re.compile(
    r"(?m)^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+?)(?:\s*;[^\\\n]*)?((?:\s*\\\n\s+--hash=\S+)*)\s*$"
)


def read_lock(text: str) -> tuple[dict[str, Version], list[str]]:
    """The version of each package, and what is wrong with its form."""
    locked: dict[str, Version] = {}
    problems = []
    for name, version, hashes in _PINNED.findall(text):
        locked[canonicalize_name(name)] = Version(version)
        if not re.search(r"--hash=sha256:[0-9a-f]{64}", hashes):
            problems.append(f"{name} has no SHA-256")
    lines = re.sub(_PINNED, "", text)
    left = [line.strip() for line in lines.splitlines() if line.strip() and not line.startswith("#")]
    problems += [f"not a pinned package: {line}" for line in left]
    return locked, problems


def wanted(project: Mapping[str, Any]) -> Iterator[Requirement]:
    """What pyproject.toml names: to build, to run, to develop."""
    table = project["project"]
    for group in (
        project["build-system"]["requires"],
        table["dependencies"],
        table["optional-dependencies"]["dev"],
    ):
        yield from map(Requirement, group)


def check_wanted(locked: Mapping[str, Version], requirements: Iterable[Requirement]) -> Iterator[str]:
    """What pyproject.toml names and the lock does not hold."""
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = locked.get(canonicalize_name(requirement.name))
        if version is None:
            yield f"{requirement} is not in requirements.lock: make lock"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement} is locked at {version}: make lock"


def check_installed(locked: Mapping[str, Version]) -> Iterator[str]:
    """What is installed in another version than the lock's."""
    for found in metadata.distributions():
        version = locked.get(canonicalize_name(found.name))
        if version is not None and Version(found.version) != version:
            yield f"{found.name} is installed in {found.version}, locked at {version}: make clean setup"


def imports(folder: Path) -> dict[str, str]:
    """Top-level modules that the sources below a folder import, and one of the files that do."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
                if node.module == "google":
                    names = [f"google.{alias.name}" for alias in node.names]
            for name in names:
                found.setdefault(name, path.relative_to(ROOT).as_posix())
    return found


def owners(module: str, by_module: Mapping[str, Iterable[str]]) -> set[str]:
    """The packages that a module may come from."""
    parts = module.split(".")
    if parts[0] == "google":  # which several packages share
        return {"protobuf"} if parts[1:2] == ["protobuf"] else {"googleapis-common-protos"}
    return {canonicalize_name(name) for name in by_module.get(parts[0], ())}


def check_imports(named: set[str], locked: set[str]) -> Iterator[str]:
    """What is imported and neither ours, Python's, nor from a package that we name."""
    by_module = metadata.packages_distributions()
    ours = {*SHIPPED, *OTHERS, "conftest"}
    for folder in (*SHIPPED, *OTHERS):
        allowed = named if folder in SHIPPED else locked
        for module, where in imports(ROOT / folder).items():
            top = module.partition(".")[0]
            if (
                top in ours
                or top in sys.stdlib_module_names
                or (ROOT / where).with_name(f"{top}.py").exists()
            ):
                continue
            found = owners(module, by_module)
            if not found & allowed and not any(WITH.get(name) in allowed for name in found):
                known = f" ({', '.join(sorted(found))})" if found else ""
                yield f"{where} imports {module}{known}, which pyproject.toml does not name"


def check_licences(requirements: Iterable[Requirement]) -> Iterator[str]:
    """What is installed with NHOP under a licence that its users may not expect."""
    seen: set[str] = set()
    waiting = [canonicalize_name(requirement.name) for requirement in requirements]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system
            continue
        licence = UNSAID.get(name) or _licence(found)
        if not LICENCES.search(licence):
            yield f"{name}: its licence is {licence or 'not said'}"
        for text in found.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))


def _licence(found: metadata.Distribution) -> str:
    said = found.metadata.get("License-Expression") or ""
    classified = [c for c in found.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return said or " / ".join(classified) or (found.metadata.get("License") or "")[:80]


def check() -> list[str]:
    """All that is wrong and can be seen without a network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked, problems = read_lock(LOCK.read_text())
    run = [Requirement(text) for text in project["project"]["dependencies"]]
    extras = project["project"]["optional-dependencies"]
    shipped = run + [Requirement(text) for name, group in extras.items() if name != "dev" for text in group]
    return [
        *problems,
        *check_wanted(locked, wanted(project)),
        *check_installed(locked),
        *check_imports({canonicalize_name(r.name) for r in shipped}, set(locked)),
        *check_licences(run),
    ]


def judge(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Of pip-audit's report: the vulnerabilities, and the packages of which nothing is known."""
    found, unknown = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
        for each in package.get("vulns", ()):
            fixed = f", fixed in {', '.join(each['fix_versions'])}" if each.get("fix_versions") else ""
            found.append(f"{package['name']} {package['version']}: {each['id']}{fixed}")
    return found, unknown


def audit() -> list[str]:
    """What advisories say of the packages of the lock, or that they cannot be had."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--require-hashes",
        "--disable-pip",
        "--progress-spinner=off",
    ]
    result = subprocess.run(
        [*command, "--format=json", "-r", str(LOCK)], capture_output=True, text=True, check=False
    )
    try:
        found, unknown = judge(json.loads(result.stdout))
    except ValueError:
        last = result.stderr.strip().rpartition("\n")[2] or f"exit status {result.returncode}"
        return [f"no advisory was seen: pip-audit failed ({last}); run this where PyPI is reached"]
    if unknown:
        some = f"{', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}"
        found.append(
            f"no advisory was seen of {len(unknown)} packages ({some}): PyPI does not answer; "
            "run this where it is reached"
        )
    return found


def main(word: str) -> int:
    """Says what is wrong; 0 where nothing is."""
    if word not in ("check", "audit"):
        print("usage: python -m tools.supply check|audit", file=sys.stderr)
        return 2
    problems = check() if word == "check" else audit()
    for problem in problems:
        print(f"{word}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
