"""deploy/kubernetes, read as its kustomization has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def manifests() -> list[dict[str, Any]]:
    """All objects of the files that the kustomization lists."""
    texts = [(FOLDER / name).read_text() for name in KUSTOMIZATION["resources"]]
    return [each for text in texts for each in yaml.safe_load_all(text)]


def find(kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pod(kind: str, name: str) -> dict[str, Any]:
    """The specification of what a StatefulSet or Job runs."""
    spec: dict[str, Any] = find(kind, name)["spec"]["template"]["spec"]
    return spec


WORKLOADS = [("StatefulSet", "nhop-agent"), ("Job", "nhop-study")]
