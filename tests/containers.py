"""Pods of deploy/kubernetes without Kubernetes: what their manifests say, in namespaces of the kernel.

Each container runs its own command, as its user, without capabilities, in a read-only copy of this
machine's root with its volumes in it, in the network namespace of a host. Images, probes, policies and
limits are not played.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.network import Network
from tests.e2e.conftest import ROOT, SCRIPTS

ENTER = """
set -e
umask 022
base=$1 user=$2 group=$3 names=$4; shift 4
mount -t tmpfs none "$base"
mkdir "$base/upper" "$base/work" "$base/root"
root=$base/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"
cat "$names" > "$root/etc/hosts"
chmod o+x "$root/root" # this machine's Python may be there
while [ "$1" != -- ]; do
    mkdir -p "$root/$2" && mount --bind "$1" "$root/$2"
    [ "$3" = rw ] || mount -o remount,ro,bind "$root/$2"
    shift 3
done
shift
for each in dev proc; do mount --rbind "/$each" "$root/$each"; done
mount -o remount,ro,bind "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all -- "$@"
"""


OWN_ROOT = """
set -e
umask 022
base=$1; shift
mount -t tmpfs none "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
for each in dev proc "$KEPT"; do mount --rbind "/$each" "$base/root/$each"; done
exec chroot "$base/root" "$@"
"""


def in_own_root(kept: Path, words: Sequence[str]) -> list[str]:
    """A command that runs as root of a copy of this machine, of which only the folder ``kept`` stays."""
    script = f"KEPT={shlex.quote(str(kept))}; base=$(mktemp -d); trap 'rmdir $base' EXIT; "
    script += 'unshare --mount env KEPT="$KEPT" sh -c "$0" sh "$base" "$@"'
    return ["sh", "-c", script, OWN_ROOT, *words]


def usable() -> bool:
    """Whether this machine lets us make such a root."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as base, tempfile.NamedTemporaryFile() as names:
        command = _enter(
            Path(base), 10001, 10001, Path(names.name), (), ["sh", "-c", f"{SCRIPTS}/nhop-agent --help"]
        )
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _enter(
    base: Path,
    user: int,
    group: int,
    names: Path,
    mounts: Sequence[tuple[Path, str, str]],
    words: Sequence[str],
) -> list[str]:
    flat = [str(word) for mount in mounts for word in mount]
    fixed = [str(base), str(user), str(group), str(names)]
    return ["unshare", "--mount", "sh", "-c", ENTER, "sh", *fixed, *flat, "--", *words]


class Pod:
    """A pod on a host of the network; ``volumes`` has the files of its secrets and config maps."""

    def __init__(
        self,
        name: str,
        spec: Mapping[str, Any],
        folder: Path,
        network: Network,
        number: int,
        volumes: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        self.name = name
        self._spec = spec
        self._inside = network.inside(number)
        self._base = folder / "base"
        self._base.mkdir(parents=True)
        self._names = folder / "names"
        pods = [
            (network.address(n), f"nhop-agent-{n - 1}.nhop-agent") for n in range(1, len(network.namespaces))
        ]
        self._names.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for a, n in pods))
        context = spec["securityContext"]
        self._user, self._group = context["runAsUser"], context["runAsGroup"]
        self.volumes = {volume["name"]: folder / volume["name"] for volume in spec["volumes"]}
        for volume in spec["volumes"]:
            self._make(volume, volumes.get(volume["name"], {}), context["fsGroup"])
        self._fields = {"metadata.name": name, "status.podIP": network.address(number), "limits.cpu": ""}

    def _make(self, volume: Mapping[str, Any], files: Mapping[str, bytes], group: int) -> None:
        """A volume as the kubelet makes it: it belongs to root and the group, files are links."""
        path = self.volumes[volume["name"]]
        path.mkdir()
        mode = volume.get("secret", {}).get("defaultMode", 0o644)
        (path / "..1").mkdir()
        for name, content in files.items():
            (path / "..1" / name).write_bytes(content)
            os.chown(path / "..1" / name, 0, group)
            (path / "..1" / name).chmod(mode)
            (path / name).symlink_to(f"..data/{name}")
        (path / "..data").symlink_to("..1")
        if not files:
            (path / "..data").unlink()
            (path / "..1").rmdir()
        os.chown(path, 0, group)
        path.chmod(0o2775)

    def command(self, container: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
        """What to run for a container, and its environment."""
        environment = {
            "PATH": f"{SCRIPTS}:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        for entry in container.get("env", ()):
            source = entry.get("valueFrom")
            environment[entry["name"]] = entry["value"] if source is None else self._field(container, source)
        words = [*container.get("command", ()), *container.get("args", ())]
        for name, value in environment.items():
            words = [word.replace(f"$({name})", value) for word in words]
        if "workingDir" in container:
            words = ["env", f"--chdir={container['workingDir']}", *words]
        mounts = [
            (self.volumes[m["name"]], m["mountPath"].lstrip("/"), "ro" if m.get("readOnly") else "rw")
            for m in container["volumeMounts"]
        ]
        entered = _enter(self._base, self._user, self._group, self._names, mounts, words)
        return [*self._inside, *entered], environment

    def _field(self, container: Mapping[str, Any], source: Mapping[str, Any]) -> str:
        if "fieldRef" in source:
            return self._fields[source["fieldRef"]["fieldPath"]]
        kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
        return str(container["resources"][kind][name])

    def prepare(self) -> None:
        """Runs the containers that come first."""
        for container in self._spec["initContainers"]:
            command, environment = self.command(container)
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            assert done.returncode == 0, done.stderr
