"""Programs in a root file system of their own, as a container runtime would start them.

Everything is mounted in a mount namespace that ends with the program: nothing stays behind whatever happens, and the root itself
is never written to, because the program sees it below a temporary layer. Needs root.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOTS = Path(__file__).parent.parent / ".clients" / "roots"

_ENTER = """\
set -eu
root=$1 merged=$2 writable=$3
shift 3
mount -t tmpfs none "$merged"
mkdir "$merged/upper" "$merged/work" "$merged/root"
mount -t overlay -o "lowerdir=$root,upperdir=$merged/upper,workdir=$merged/work" none "$merged/root"
merged=$merged/root
# debootstrap links /proc in some releases, which would lead out of here.
for place in proc dev; do
    [ ! -L "$merged/$place" ] || rm "$merged/$place"
    mkdir -p "$merged/$place"
done
mount -t proc proc "$merged/proc"
mount -t tmpfs -o mode=755 none "$merged/dev"
for device in null zero full random urandom; do
    : >"$merged/dev/$device"
    mount --bind "/dev/$device" "$merged/dev/$device"
done
while [ "$1" != -- ]; do
    if [ "$2" = "" ]; then
        mkdir -p "$merged$1"
        mount -t tmpfs -o mode=1777 none "$merged$1"
    else
        if [ -d "$2" ]; then mkdir -p "$merged$1"; else mkdir -p "$(dirname "$merged$1")"; rm -f "$merged$1"; : >"$merged$1"; fi
        mount --bind "$2" "$merged$1"
        mount -o "remount,bind,$3" "$merged$1"
    fi
    shift 3
done
shift
[ "$writable" = writable ] || mount -o remount,ro "$merged"
exec "$@"
"""


@dataclass(frozen=True)
class RootFilesystem:
    """What a container would see."""

    root: Path
    """The image, unpacked."""
    beneath: Path | None = None
    """What is seen where the image has nothing, if it is only a layer."""
    user: str = "65532:65532"
    """Numbers of user and group, which need not be in the root's /etc/passwd."""
    shown: Mapping[str, Path] = field(default_factory=dict)
    """Files and directories of this machine by their path inside, read-only."""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    """The same, which can be written."""
    scratch: Sequence[str] = ()
    """Directories inside that are empty and can be written by all."""
    is_writable: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    """The environment; nothing of this process's gets in."""

    def command(self, merged: Path, arguments: Sequence[str], first_process: bool = False) -> list[str]:
        """What starts a program with these arguments in there; `merged` is an empty directory of this machine. With
        `first_process` it is process 1 of a namespace of its own, as in a container, and else the very process that is
        started by this command."""
        chroot = shutil.which("chroot")
        if chroot is None or shutil.which("unshare") is None:
            raise AssertionError("chroot or unshare is not installed: apt-get install coreutils util-linux")
        if os.geteuid() != 0:
            raise AssertionError("root file systems can only be entered as root: sudo make integration")
        mounts = [
            *((path, str(source), "ro") for path, source in self.shown.items()),
            *((path, str(source), "rw") for path, source in self.volumes.items()),
            *((path, "", "rw") for path in self.scratch),
        ]
        variables = [f"{key}={value}" for key, value in self.variables.items()]
        layers = f"{self.root}:{self.beneath}" if self.beneath else str(self.root)
        return [
            *("unshare", "--mount", *(("--pid", "--fork", "--kill-child") if first_process else ())),
            *("sh", "-c", _ENTER, "sh", layers, str(merged), "writable" if self.is_writable else "read-only"),
            *(text for mount in mounts for text in mount),
            *("--", "env", "-i", *variables, chroot, f"--userspec={self.user}", f"{merged}/root", *arguments),
        ]  # fmt: skip


def root_of_debian(release: str) -> Path:
    """A root file system that scripts/install-clients.sh has made. Raises AssertionError with that command without it."""
    if not (ROOTS / f"{release}.complete").exists():
        raise AssertionError(f"there is no root file system of {release}; run: make clients")
    return ROOTS / release
