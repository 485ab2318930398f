"""Changed inputs are found, by whatever name and means they were changed; others are not looked at again (behaviour 36)."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cas.digest import Digest
from cas.memory import MemoryStore
from rexec.worker import file_watch
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.file_watch import OVERFLOWN, WRITES_LOST, FileWatch, Touch
from rexec.worker.files import FileCache
from rexec.worker.guard import Guard
from rexec.worker.hold import Hold


class CountedFiles(BlobFiles):
    """Says which files were looked at."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.looks: list[FileKey] = []

    def changed_ns(self, key: FileKey) -> int:
        self.looks.append(key)
        return super().changed_ns(key)


class Sight:
    """A cache with files in it, and what became of them."""

    def __init__(self, path: Path, watch: FileWatch | None = None) -> None:
        self.files = CountedFiles(str(path / "cache"))
        self.cache = FileCache(self.files, 1 << 20, Guard(self.files, watch))
        self.store = MemoryStore()

    async def hold(self, count: int = 5) -> Hold:
        blobs = [b"input %d" % number for number in range(count)]
        await self.store.write_many([(Digest.of(data), data) for data in blobs])
        return await self.cache.hold([self.key(number) for number in range(count)], self.store)

    def key(self, number: int) -> FileKey:
        return FileKey(Digest.of(b"input %d" % number), False)

    def path(self, number: int) -> str:
        return self.files.path(self.key(number))

    def read(self, number: int) -> bytes:
        return Path(self.path(number)).read_bytes()

    def looked(self) -> set[FileKey]:
        """What was looked at since the last call."""
        looks, self.files.looks = set(self.files.looks), []
        return looks


class Scripted(FileWatch):
    """Tells what a test says."""

    def __init__(self, *, refused: bool = False) -> None:
        super().__init__()
        self.tells: list[int] = []
        self.touch = Touch.WRITTEN
        self.refused = refused
        self.added: list[str] = []

    def open(self, directory: str) -> bool:
        return True

    def add(self, path: str) -> int:
        if self.refused:
            return -1
        self.added.append(path)
        return len(self.added)

    def touched(self) -> Iterator[tuple[int, Touch]]:
        tells, self.tells = self.tells, []
        return iter([(watch, self.touch) for watch in tells])


@pytest.fixture
async def sight(tmp_path: Path) -> Sight:
    made = Sight(tmp_path)
    await made.cache.adopt()
    return made


def write_through_a_link(path: str) -> None:
    link = f"{path}_link"
    os.link(path, link)
    os.chmod(link, 0o644)
    Path(link).write_bytes(b"spoilt")
    os.unlink(link)


def write_same_size_and_set_back_nothing(path: str) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"I")
    os.chmod(path, 0o444)


def write_through_a_map(path: str) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"I"


MAP_AND_DIE = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    view = mmap.mmap(file.fileno(), 0)
view[0:1] = b"I"
os.kill(os.getpid(), 9)
"""


def write_through_a_map_and_be_killed(path: str) -> None:
    os.chmod(path, 0o644)  # for who is not root
    assert subprocess.run([sys.executable, "-c", MAP_AND_DIE, path], check=False).returncode == -9
    os.chmod(path, 0o444)


def write_while_open_for_long(path: str) -> None:
    os.chmod(path, 0o644)
    fd = os.open(path, os.O_RDWR)
    os.chmod(path, 0o444)
    os.pwrite(fd, b"I", 0)
    os.close(fd)


def copy_another_over_it(path: str) -> None:
    other = f"{path}_other"
    Path(other).write_bytes(b"input 9")
    shutil.copystat(path, other)
    os.chmod(path, 0o644)
    subprocess.run(["cp", "-p", other, path], check=True)  # the same size, time and mode


def truncate(path: str) -> None:
    os.chmod(path, 0o644)
    os.truncate(path, 0)


CHANGES: dict[str, Callable[[str], None]] = {
    "written through another link": write_through_a_link,
    "written in place, mode set back": write_same_size_and_set_back_nothing,
    "written through a memory map": write_through_a_map,
    "written through a memory map by one who is killed": write_through_a_map_and_be_killed,
    "written through a descriptor": write_while_open_for_long,
    "overwritten by cp -p": copy_another_over_it,
    "truncated": truncate,
    "another mode": lambda path: os.chmod(path, 0o644),
    "another time": lambda path: os.utime(path),
    "deleted": os.unlink,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("rounds", [1, 2])
async def test_36_a_changed_file_is_found(sight: Sight, change: Callable[[str], None], rounds: int) -> None:
    with await sight.hold() as hold:
        for _ in range(rounds):
            hold.look()
            assert hold.forget() == 0
        change(sight.path(3))
        hold.look()
        assert hold.forget() == 0  # nobody else had it
        assert hold.touched == {sight.key(3)}
        assert sight.key(3) not in sight.cache
    with await sight.hold() as again:
        assert sight.read(3) == b"input 3"
        again.look()
        assert (again.forget(), again.touched) == (0, set())


async def test_only_what_was_touched_is_looked_at_again(sight: Sight) -> None:
    with await sight.hold() as hold:
        hold.look()
        assert sight.looked() == {sight.key(number) for number in range(5)}
        hold.look()
        assert sight.looked() == set()
        os.link(sight.path(2), f"{sight.path(2)}_link")
        hold.look()
        assert sight.looked() == {sight.key(2)}
        hold.look()
        assert (sight.looked(), hold.forget(), hold.touched) == (set(), 0, set())


async def test_36_a_change_that_another_action_hears_of_is_told_to_all_who_hold_the_file(sight: Sight) -> None:
    with await sight.hold() as first, await sight.hold() as second, await sight.hold(2) as stranger:
        for hold in (first, second, stranger):
            hold.look()
        CHANGES["written through another link"](sight.path(4))
        stranger.look()
        assert stranger.forget() == 0
        assert stranger.touched == set()
        for hold in (first, second):
            hold.look()
            assert hold.forget() == 1
            assert hold.touched == {sight.key(4)}


async def test_36_a_change_made_while_nobody_holds_the_file_is_found_before_the_next_action_begins(
    sight: Sight,
) -> None:
    with await sight.hold() as first:
        first.look()
        os.chmod(sight.path(0), 0o644)
        given_away = os.open(sight.path(0), os.O_WRONLY)
        os.chmod(sight.path(0), 0o444)
        first.look()
        assert (first.forget(), first.touched) == (0, set())
    os.pwrite(given_away, b"I", 0)
    with await sight.hold() as second:
        second.look()
        assert (second.forget(), second.touched) == (0, {sight.key(0)})
    os.close(given_away)


async def test_a_file_that_was_changed_before_it_is_watched_is_found(sight: Sight) -> None:
    with await sight.hold() as hold:
        os.chmod(sight.path(3), 0o644)
        hold.look()
        assert (hold.forget(), hold.touched) == (0, {sight.key(3)})


async def test_a_file_that_is_opened_for_writing_and_left_as_it_is_stays(sight: Sight) -> None:
    with await sight.hold() as hold:
        hold.look()
        os.chmod(sight.path(3), 0o644)
        opened = os.open(sight.path(3), os.O_RDWR)
        os.chmod(sight.path(3), 0o444)
        os.close(opened)
        hold.look()
        assert (hold.forget(), hold.touched) == (0, set())


async def test_events_that_the_kernel_drops_cost_a_look_at_every_file(tmp_path: Path) -> None:
    watch = Scripted()
    sight = Sight(tmp_path, watch)
    await sight.cache.adopt()
    with await sight.hold() as hold:
        hold.look()
        sight.looked()
        os.chmod(sight.path(1), 0o644)  # of which the script says nothing
        watch.tells = [OVERFLOWN]
        hold.look()
        assert sight.looked() == {sight.key(number) for number in range(5)}
        assert (hold.forget(), hold.touched) == (0, {sight.key(1)})
        assert len(watch.added) == 5
        hold.look()
        assert sight.looked() == set()


def test_the_kernel_says_when_it_has_dropped_events(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watch = FileWatch()
    assert watch.open(str(tmp_path))
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        Path(path).touch()
    first, last = map(watch.add, paths)
    assert 0 < first < last
    for _ in range(limit // 2 + 1):  # by turns, for equal ones in a row are told as one
        for path in paths:
            os.utime(path)
    os.truncate(paths[1], 0)
    told = set(watch.touched())
    assert (OVERFLOWN, Touch.ATTRIBUTES) in told
    assert [told_of for told_of, touch in told if touch is Touch.WRITTEN] == [last], "links hide no writing"
    os.utime(paths[0])
    assert len(list(watch.touched())) == 1
    for _ in range(limit // 2 + 1):
        for path in paths:
            os.truncate(path, 0)
    assert (WRITES_LOST, Touch.WRITTEN) in list(watch.touched())


async def test_files_without_a_watch_are_looked_at_after_every_action(tmp_path: Path) -> None:
    sight = Sight(tmp_path, Scripted(refused=True))
    await sight.cache.adopt()
    with await sight.hold() as hold:
        for _ in range(3):
            hold.look()
            assert sight.looked() == {sight.key(number) for number in range(5)}
        os.chmod(sight.path(1), 0o644)
        hold.look()
        assert (hold.forget(), hold.touched) == (0, {sight.key(1)})


async def test_no_more_than_the_share_of_watches_is_taken_and_those_given_back_are_used_again(tmp_path: Path) -> None:
    sight = Sight(tmp_path, FileWatch(max_watches=3))
    await sight.cache.adopt()
    for _ in range(2):
        with await sight.hold() as hold:
            hold.look()
            sight.looked()
            hold.look()
            assert len(sight.looked()) == 2


async def test_where_nothing_is_told_no_watch_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = FileWatch()
    monkeypatch.setattr(watch, "touched", lambda: iter(()))
    assert not watch.open(str(tmp_path))
    assert watch.add(str(tmp_path)) == -1
    assert os.listdir(tmp_path) == []


def test_what_is_left_of_a_trial_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("watched", "watched_too"):
        (tmp_path / name).touch(0o444)
    assert FileWatch().open(str(tmp_path))
    assert os.listdir(tmp_path) == []


async def test_a_directory_in_which_nothing_can_be_tried_gets_no_watches(tmp_path: Path) -> None:
    assert not FileWatch().open(str(tmp_path / "gone"))


async def test_without_a_share_there_are_no_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_share", lambda: 0)
    assert not FileWatch().open(str(tmp_path))


def write_and_put_back(path: str) -> None:
    right = Path(path).read_bytes()
    status = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"I")
        file.flush()  # by now others may have read it
        file.seek(0)
        file.write(right[:1])
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.chmod(path, 0o444)


async def test_36_a_file_that_was_wrong_for_a_moment_is_changed_for_all_who_had_it(sight: Sight) -> None:
    with await sight.hold() as first, await sight.hold() as second:
        first.look()
        write_and_put_back(sight.path(3))
        assert sight.read(3) == b"input 3"
        first.look()
        assert (first.forget(), first.touched) == (1, {sight.key(3)})
        assert second.touched == {sight.key(3)}


async def test_36_what_hides_in_events_that_the_kernel_drops_is_found(tmp_path: Path) -> None:
    watch = Scripted()
    sight = Sight(tmp_path, watch)
    await sight.cache.adopt()
    with await sight.hold() as hold:
        hold.look()
        copy_another_over_it(sight.path(1))  # of which the script says nothing
        watch.tells = [WRITES_LOST]
        hold.look()
        assert (hold.forget(), hold.touched) == (0, {sight.key(1)})


async def test_36_what_is_told_after_events_were_dropped_is_not_taken_for_all(tmp_path: Path) -> None:
    watch = Scripted()
    sight = Sight(tmp_path, watch)
    await sight.cache.adopt()
    with await sight.hold() as hold, await sight.hold(0) as stranger:
        hold.look()
        copy_another_over_it(sight.path(1))
        for told in (WRITES_LOST, watch.added.index(sight.path(1)) + 1):
            watch.tells, watch.touch = [told], Touch.ATTRIBUTES
            stranger.look()
        hold.look()
        assert (hold.forget(), hold.touched) == (0, {sight.key(1)})


@pytest.mark.parametrize("rounds", [1, 2])
async def test_36_a_changed_file_without_a_watch_is_found_although_it_has_its_size_and_time(
    tmp_path: Path, rounds: int
) -> None:
    sight = Sight(tmp_path, Scripted(refused=True))
    await sight.cache.adopt()
    with await sight.hold() as hold:
        for _ in range(rounds):
            hold.look()
            assert hold.forget() == 0
        copy_another_over_it(sight.path(1))
        hold.look()
        assert (hold.forget(), hold.touched) == (0, {sight.key(1)})


async def test_36_a_file_that_was_changed_when_the_agent_was_killed_is_found_by_the_next(tmp_path: Path) -> None:
    killed = Sight(tmp_path)
    await killed.cache.adopt()
    with await killed.hold() as hold:
        hold.look()
        copy_another_over_it(killed.path(1))
        after = Sight(tmp_path)
        await after.cache.adopt()
        with await after.hold() as again:
            again.look()
            assert (again.forget(), again.touched) == (0, {after.key(1)})
        with await after.hold() as again:
            again.look()
            assert (again.forget(), again.touched, after.read(1)) == (0, set(), b"input 1")


async def test_36_an_output_that_somebody_writes_to_after_it_was_taken_in_is_not_used(
    sight: Sight, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.write_bytes(b"input 1")
    given_away = os.open(output, os.O_WRONLY)
    await sight.cache.take([(sight.key(1), str(output))])
    status = os.stat(sight.path(1))
    os.pwrite(given_away, b"I", 0)
    os.utime(given_away, ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.close(given_away)
    with await sight.hold() as hold:
        hold.look()
        assert (hold.forget(), hold.touched) == (0, {sight.key(1)})


async def test_a_file_that_is_forgotten_while_it_gets_its_watch_keeps_none(tmp_path: Path) -> None:
    class Slow(FileWatch):
        def add(self, path: str) -> int:
            given = super().add(path)
            forget(path)
            return given

    def forget(path: str) -> None:
        """As the event loop may, while a thread looks."""
        if forgotten and path == sight.path(2):
            sight.cache.forget([sight.key(2)])

    forgotten = False
    sight = Sight(tmp_path, Slow(max_watches=5))
    await sight.cache.adopt()
    forgotten = True
    with await sight.hold() as hold:
        hold.look()
    forgotten = False
    with await sight.hold() as hold:
        hold.look()
        sight.looked()
        hold.look()
        assert sight.looked() == set(), "all five have a watch"
