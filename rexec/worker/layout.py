"""Laying out an input root: anew in an empty directory, or by changing one that an earlier action has left.

Directories are made, files are hard links into the file cache, symlinks are as they are. A file that asks for a time or mode of
its own is a private copy, for a hard link shares both with every other action. The tree was checked when it was parsed
(cas/tree.py): names are single segments and unique in their directory.

An earlier root is not trusted: an action may have done anything to it. For each directory its inode and change time were noted
when it was laid out. The kernel sets the change time when an entry comes, goes or is renamed and when the mode is
changed, and nobody can set it to a value of his choice. So a directory whose note still holds has the entries that it was
given; one look at each directory tells. Where the note does not hold, each entry is compared with what should be there: the
same inode as the cache's file, the same target, a real directory. The rest is removed, and what is missing is made.
Then the two trees are walked together, and a subtree with the same digest and no changes below is passed by.

That the bytes of the files are what they were is not looked at here: they are the cache's files, which are checked after every
action (`guard`). A file that the cache has lost or fetched anew meanwhile is linked anew.

Nothing is written through a symlink: a directory is entered only after it was found to be one, from the root downwards, and
no process of an action is left by then.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cas.digest import Digest
from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker import properties
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.bundle import Bundle
from rexec.worker.change_time import tells_all
from rexec.worker.inputs import Inputs, make_output_parents
from rexec.worker.listing import Listing

DIRECTORY_MODE: Final = 0o755


class CannotReuse(Exception):
    """What an earlier action left is not worth repairing; the text says why."""


@dataclass(eq=False, slots=True)
class Place:
    """One directory on disk, as it was when it was laid out."""

    listing: Listing
    bundle: Bundle | None
    """The cache's files that those in it are links to; None if there is no file in it."""
    inode: int
    changed_ns: int
    children: dict[str, Place]
    is_dirty: bool = False
    """The note does not hold any more."""
    is_tainted: bool = False
    """Some directory below is dirty."""


@dataclass(frozen=True, slots=True)
class Layout:
    """An input root on disk, all of whose files are links to the cache's."""

    root: Place
    bundles: Mapping[Digest | None, Bundle]
    """The cache's files by the directory that they are in."""
    sealed_ns: int
    """When the notes were complete, by the wall clock."""

    @property
    def names(self) -> int:
        """Files, those in several directories counted in each."""
        return sum([len(bundle.keys) for bundle in self.bundles.values()])


def lay_out(
    inputs: Inputs,
    command: re_pb2.Command,
    root: str,
    files: BlobFiles,
    bundles: Mapping[Digest | None, Bundle],
    before: Layout | None = None,
    scrap: Callable[[str], None] | None = None,
    *,
    copied: bool = False,
) -> Layout | None:
    """Make the tree, and the parents of the command's outputs, in the directory `root`, which is empty or holds what is left of
    `before`. All files are held by the caller, in `bundles`. `scrap` takes directories away for good. With `copied` every file
    is a private copy, for a command that is known to change its inputs. Blocks.

    Returns what another layout can start from, None if nothing should. Raises MalformedRequest for paths longer than the system
    allows and as `make_output_parents` does, OSError for a full disk or a file that vanished, CannotReuse.
    """
    work = _Work(inputs, files, bundles, copied)
    try:
        if before is None or scrap is None:
            made = work.make(root)
        else:
            _look(before, root)
            made = work.change(before, root, scrap)
        sealed_ns = time.time_ns()
        make_output_parents(command, root)
        # Last and the innermost first: making an entry changes its directory's time and needs its write permission.
        for node_properties, path in reversed(work.with_properties):
            properties.apply(node_properties, path)
    except OSError as failure:
        if failure.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise MalformedRequest("the input root holds a path that is longer than the system allows") from failure
        raise
    if work.has_copies or work.with_properties:
        return None
    return Layout(made, bundles, sealed_ns)


def _look(layout: Layout, root: str) -> None:
    """Find out which notes still hold."""
    seen: list[tuple[Place, Place | None]] = []
    waiting: list[tuple[Place, str, str, Place | None]] = [(layout.root, root, "", None)]
    while waiting:
        place, path, name, parent = waiting.pop()
        seen.append((place, parent))
        place.is_tainted = False
        try:
            status = os.lstat(path)
        except OSError:
            status = None
        is_there = status is not None and stat.S_ISDIR(status.st_mode)
        noted = status is not None and (status.st_ino, status.st_ctime_ns) == (place.inode, place.changed_ns)
        place.is_dirty = not (is_there and noted and tells_all(place.changed_ns, layout.sealed_ns))
        if is_there:
            waiting += [(child, f"{path}/{below}", below, place) for below, child in place.children.items()]
        elif parent is None:
            raise CannotReuse("the input root is not a directory any more")
        else:
            # Gone, replaced, or out of sight until somebody has repaired the mode of what it is in: nobody knows what is below.
            del parent.children[name]
            parent.is_dirty = True
    for place, parent in reversed(seen):
        if parent is not None and (place.is_dirty or place.is_tainted):
            parent.is_tainted = True


class _Work:
    """One layout being made."""

    def __init__(self, inputs: Inputs, files: BlobFiles, bundles: Mapping[Digest | None, Bundle], copied: bool) -> None:
        self._inputs = inputs
        self._files = files
        self._bundles = bundles
        self._copied = copied
        self._scrap: Callable[[str], None] = _nothing_to_scrap
        self._is_stale = False
        """The cache holds some file as another than the earlier root has."""
        self._identities: dict[FileKey, tuple[int, int]] = {}
        self.with_properties: list[tuple[re_pb2.NodeProperties, str]] = []
        """Directories with a time or mode of their own, parents first."""
        self.has_copies = False

    def make(self, root: str) -> Place:
        """The tree in the empty directory `root`."""
        return self._walk(None, root)

    def change(self, before: Layout, root: str, scrap: Callable[[str], None]) -> Place:
        """The tree in `root`, where `before`, looked at, may have left what is of use."""
        self._scrap = scrap
        known = before.bundles
        self._is_stale = not all(
            known.get(name, bundle) is bundle or known[name].is_like(bundle) for name, bundle in self._bundles.items()
        )
        return self._walk(before.root, root)

    def _walk(self, old_root: Place | None, root: str) -> Place:
        listings = self._inputs.listings
        made: dict[str, Place] = {}
        waiting: list[tuple[Listing, Place | None, str, dict[str, Place], str]] = [
            (listings[self._inputs.root], old_root, root, made, "")
        ]
        while waiting:
            listing, old, path, siblings, name = waiting.pop()
            if (
                old is not None
                and not (old.is_dirty or old.is_tainted or self._is_stale)
                and old.listing.directory.digest == listing.directory.digest
            ):
                siblings[name] = old
                continue
            right = self._fill(listing, old, path)
            status = os.lstat(path)
            bundle = self._bundles.get(listing.directory.digest)
            place = siblings[name] = Place(listing, bundle, status.st_ino, status.st_ctime_ns, {})
            for child, digest in listing.children.items():
                kept = old.children[child] if old is not None and child in right else None
                waiting.append((listings[digest], kept, f"{path}/{child}", place.children, child))
        return made[""]

    def _fill(self, listing: Listing, old: Place | None, path: str) -> set[str]:
        """Give the directory its entries. Returns the names of those that were right already."""
        right: set[str] = set()
        if old is not None:
            right = self._inspected(listing, old, path) if old.is_dirty else self._compared(listing, old, path)
        for name, key in listing.files.items():
            if name not in right:
                self._place(key, f"{path}/{name}", listing.own.get(name))
        for name, target in listing.links.items():
            if name not in right:
                os.symlink(target, f"{path}/{name}")
                if name in listing.own:
                    properties.apply(listing.own[name], f"{path}/{name}")
                    self.has_copies = True
        for name in listing.children:
            if name not in right:
                os.mkdir(f"{path}/{name}")
        own = listing.properties
        if own is not None:
            self.with_properties.append((own, path))
        return right

    def _place(self, key: FileKey, target: str, own: re_pb2.NodeProperties | None) -> None:
        if own is None and not self._copied:
            try:
                os.link(self._files.path(key), target)
            except OSError as failure:
                # EXDEV: the cache is on another file system. EMLINK: ext4 allows 65,000 links to one file.
                if failure.errno not in (errno.EXDEV, errno.EMLINK):
                    raise
            else:
                return
        self.has_copies = True
        mode, mtime_ns = (
            (key.mode, None) if own is None else (properties.mode_of(own, key.mode), properties.mtime_of(own))
        )
        self._files.private_copy(key, target, mode, mtime_ns)

    def _compared(self, listing: Listing, old: Place, path: str) -> set[str]:
        """Remove what the directory, which is as it was laid out, should not have any more."""
        right = set()
        before = old.listing
        held = self._bundles.get(listing.directory.digest)
        for name, key in before.files.items():
            if listing.files.get(name) == key and name not in listing.own and _is_same(old.bundle, held, key):
                right.add(name)
            else:
                os.unlink(f"{path}/{name}")
        for name, target in before.links.items():
            if listing.links.get(name) == target and name not in listing.own:
                right.add(name)
            else:
                os.unlink(f"{path}/{name}")
        for name in before.children:
            if name in listing.children:
                right.add(name)
            else:
                self._scrap(f"{path}/{name}")
        return right

    def _inspected(self, listing: Listing, old: Place, path: str) -> set[str]:
        """The same for a directory that somebody has changed."""
        repair(path)
        right = set()
        with os.scandir(path) as found:
            entries = list(found)
        for entry in entries:
            name = entry.name
            if entry.is_dir(follow_symlinks=False):
                if name in listing.children and name in old.children:
                    right.add(name)
                else:
                    self._scrap(entry.path)
            elif name not in listing.own and (
                self._is_file(entry, listing.files[name])
                if name in listing.files
                else name in listing.links and entry.is_symlink() and os.readlink(entry.path) == listing.links[name]
            ):
                right.add(name)
            else:
                os.unlink(entry.path)
        return right

    def _is_file(self, entry: os.DirEntry[str], key: FileKey) -> bool:
        """Whether the entry is the cache's file."""
        wanted = self._identities.get(key)
        if wanted is None:
            status = os.stat(self._files.path(key), follow_symlinks=False)
            wanted = self._identities[key] = status.st_dev, status.st_ino
        status = entry.stat(follow_symlinks=False)
        return (status.st_dev, status.st_ino) == wanted


def repair(path: str) -> None:
    """Give a directory the mode of a new one. Raises CannotReuse for what else was done to it: an owner, access control lists
    and other attributes, which what is made in it could take over."""
    status = os.lstat(path)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        raise CannotReuse(f"a directory belongs to user {status.st_uid} and group {status.st_gid}")
    if stat.S_IMODE(status.st_mode) != DIRECTORY_MODE:
        os.chmod(path, DIRECTORY_MODE)
    try:
        attributes = os.listxattr(path, follow_symlinks=False)
    except OSError as failure:
        if failure.errno != errno.ENOTSUP:
            raise
        return
    # Labels of SELinux are given to every file by the system.
    if any(not name.startswith("security.") for name in attributes):
        raise CannotReuse(f"a directory has the attribute {attributes[0]}")


def _is_same(before: Bundle | None, held: Bundle | None, key: FileKey) -> bool:
    """Whether the file that was linked is the one that the cache has."""
    return before is not None and held is not None and before.files[key] is held.files[key]


def _nothing_to_scrap(path: str) -> None:
    raise AssertionError(f"{path} was made just now, so nothing in it can be in the way")
