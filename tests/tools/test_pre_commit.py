"""The hooks of .pre-commit-config.yaml, as git would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".pre-commit-config.yaml"
SLOW = "mypy,imports,generated,supply"
"""What make check runs all the same."""

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not there: apt-get install git")


def pre_commit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PRE_COMMIT_HOME": str(folder.parent / "pre-commit"), "SKIP": SLOW}
    environment |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # where git itself runs these tests
        environment.pop(name, None)
    command = [sys.executable, "-m", "pre_commit", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with our hooks, and nothing else."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / ".gitignore").write_text(".venv\n__pycache__/\n.ruff_cache/\n")
    shutil.copy(CONFIG, folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    return folder


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    assert pre_commit(tmp_path, "validate-config", str(CONFIG)).returncode == 0


def test_nothing_is_downloaded() -> None:
    repositories = yaml.safe_load(CONFIG.read_text())["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert shutil.which(str(ROOT / program) if "/" in program else program), program


def test_what_is_fine_passes(repository: Path) -> None:
    result = pre_commit(repository, "run", "--all-files")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Passed") == 3


def test_what_is_not_is_held_back(repository: Path) -> None:
    (repository / "bad.py").write_text("import os\nx = {  }\n")
    (repository / "bad.txt").write_text("trailing \n")
    subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    result = pre_commit(repository, "run", "--all-files")
    assert result.returncode == 1
    assert result.stdout.count("Failed") == 3
    assert "bad.txt:1: white space" in result.stdout
    assert "F401" in result.stdout
