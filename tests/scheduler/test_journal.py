"""The journal's file: what is in it after whatever may happen to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from rexec.scheduler import journal as journals
from rexec.scheduler.journal import Fenced, Journal, JournalUnusable, read_tenure
from rexec.scheduler.rows import Batch, Recorded


def led(path: Path, holder: str = "first") -> Journal:
    """A journal that this process may write to."""
    journal = Journal.open(path)
    assert journal.take_over(journal.tenure(), holder, "here:1", locked=True)
    return journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "scheduler.sqlite3"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(led(path)) as journal:
        yield journal


def some(first: int, last: int) -> Batch:
    numbers = range(first, last)
    return Batch(
        tasks=[(number, f"task {number}", 1.5, b"candidate") for number in numbers],
        live=[(number, b"live") for number in numbers],
        operations=[(number, f"operation {number}", number, None, b"state") for number in numbers],
    )


@pytest.mark.parametrize("rows", [1, 3, 64, 149])
def test_what_was_written_is_read_by_the_next_process(path: Path, journal: Journal, rows: int) -> None:
    batch = some(0, rows)
    batch.workers = [("session", b"worker")]
    batch.statistics = [("all", b"figures")]
    journal.write(batch)
    journal.close()
    with closing(led(path, "second")) as other:
        found = other.load()
    assert found == Recorded(batch.tasks, batch.live, batch.operations, batch.workers, batch.statistics)


def test_rows_are_replaced_and_deleted(journal: Journal) -> None:
    journal.write(some(0, 10))
    journal.write(
        Batch(
            live=[(3, b"changed")],
            operations=[(4, "operation 4", None, 2.5, b"completed")],
            ended_tasks=[0, 1],
            forgotten_operations=[0, 1],
            workers=[("a", b""), ("b", b"")],
        )
    )
    journal.write(Batch(gone_workers=["a", "never there"], forgotten_statistics=["none"]))
    found = journal.load()
    assert [number for number, *_ in found.tasks] == list(range(2, 10))
    assert dict(found.live)[3] == b"changed"
    assert found.operations[2] == (4, "operation 4", None, 2.5, b"completed")
    assert found.workers == [("b", b"")]


def test_the_file_is_the_users_own_affair(path: Path, journal: Journal) -> None:
    journal.write(some(0, 1))
    for part in path.parent.iterdir():
        assert part.stat().st_mode & 0o077 == 0


def test_who_was_replaced_writes_nothing_more(path: Path, journal: Journal) -> None:
    journal.write(some(0, 1))
    with closing(led(path, "second")) as other:
        with pytest.raises(Fenced, match=r"second leads now"):
            journal.write(some(1, 2))
        assert len(other.load().tasks) == 1
        other.write(some(1, 2))


def test_of_two_who_saw_the_same_only_one_takes_over(path: Path) -> None:
    with closing(Journal.open(path)) as one, closing(Journal.open(path)) as two:
        seen = one.tenure()
        assert one.take_over(seen, "one", "", locked=False)
        assert not two.take_over(seen, "two", "", locked=False)
        one.write(Batch())
        with pytest.raises(Fenced):
            two.write(Batch())


def test_the_row_says_who_leads_and_that_he_lives(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.0)
    before = read_tenure(path)
    journal.write(Batch())
    after = read_tenure(path)
    assert before is not None
    assert after is not None
    assert (before.holder, before.address, before.locked) == ("first", "here:1", True)
    assert after.renewals > before.renewals
    assert after.generation == before.generation == journal.generation


def test_there_is_no_leader_where_there_is_no_journal(tmp_path: Path) -> None:
    assert read_tenure(tmp_path / "none") is None
    (tmp_path / "text").write_text("this is not a database, however long it may be" * 100)
    assert read_tenure(tmp_path / "text") is None


def test_a_journal_of_a_later_version_is_refused_and_left_alone(path: Path, journal: Journal) -> None:
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 77")
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match=r"later version .*layout 77; this one knows 1"):
        Journal.open(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_moved_aside_and_said_to_be(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage " * 1000)
    with capture_logs() as lines, closing(led(path)) as journal:
        journal.write(some(0, 1))
    assert [line["event"] for line in lines if line["log_level"] == "error"] == [
        "the scheduler's journal is damaged and starts anew: what waited and ran is forgotten"
    ]
    assert path.with_name("scheduler.sqlite3.damaged").read_bytes().startswith(b"garbage")


@pytest.mark.parametrize("page", [1, 3, 20])
def test_a_file_that_is_damaged_further_inside_is_moved_aside_too(path: Path, journal: Journal, page: int) -> None:
    journal.write(some(0, 3000))
    journal.checkpoint()
    generation = journal.generation
    journal.close()
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * (path.stat().st_size - (page + 2) * 4096))
    with capture_logs() as lines, closing(led(path, "second")) as other:
        assert other.load() == Recorded()
        assert any("damaged" in line["event"] for line in lines)
        assert other.generation >= generation
        other.write(some(0, 1))


def test_generations_rise_even_when_the_file_is_lost(path: Path, journal: Journal) -> None:
    before = journal.generation
    journal.close()
    with closing(led(path, "second")) as second:
        assert second.generation == before + 1
    for part in list(path.parent.iterdir()):
        part.unlink()
    with closing(led(path, "third")) as third:
        assert third.generation >= before
        assert 0 < third.generation < 1 << 31


def test_somebody_elses_file_is_not_moved_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(JournalUnusable):
        Journal.open(path, alone=False)
    assert path.read_bytes().startswith(b"garbage")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnusable, match="file/scheduler"):
        Journal.open(tmp_path / "file" / "scheduler.sqlite3")


def test_the_log_does_not_grow_without_end(path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MAX_LOG_BYTES", 1 << 20)
    log_file = Path(f"{path}-wal")
    large = Batch(statistics=[("all", bytes(1 << 20))])
    for _ in range(6):
        journal.write(large)
    assert journal.wants_checkpoint
    journal.checkpoint()
    assert not journal.wants_checkpoint
    journal.curb_log()
    assert log_file.stat().st_size == 0
    assert journal.load().statistics == large.statistics
