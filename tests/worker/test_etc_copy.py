"""What actions in bubblewrap see of /etc: a copy, made when the worker starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker import etc_copy
from rexec.worker.bubblewrap import Bubblewrap
from rexec.worker.bubblewrap_settings import BubblewrapSettings
from rexec.worker.etc_copy import TooMuch, copy_etc
from tests.worker.actions import Inputs, Worker, make_context

PASSWD = Path("/etc/passwd").read_text()
HOSTS = Path("/etc/hosts").read_text()


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    made = tmp_path / "etc"
    (made / "ssl/certs").mkdir(parents=True)
    (made / "ssl/private").mkdir()
    (made / "ssl/private/key").write_text("secret")
    (made / "ssl/certs/ca.pem").write_text("ca")
    (made / "ssl/certs/ca.0").symlink_to("ca.pem")
    (made / "ssl/certs/tool").write_text("#!/bin/sh\n")
    (made / "ssl/certs/tool").chmod(0o700)
    os.mkfifo(made / "ssl/certs/pipe")
    (made / "passwd").write_text("root")
    (made / "shadow").write_text("secret")
    (made / "localtime").symlink_to("/usr/share/zoneinfo/UTC")
    return made


def copied(etc: Path, target: Path, *names: str, mounted: tuple[str, ...] = ()) -> dict[str, str]:
    """What is there afterwards, by path: text, target or "/" for a directory."""
    copy_etc([f"{etc}/{name}" for name in names], [f"{etc}/{name}" for name in mounted], str(target), str(etc))
    return {
        str(path.relative_to(target)): os.readlink(path)
        if path.is_symlink()
        else "/"
        if path.is_dir()
        else path.read_text()
        for path in sorted(target.rglob("*"))
    }


def test_only_what_is_declared_is_in_it_and_what_is_missing_is_left_out(etc: Path, tmp_path: Path) -> None:
    found = copied(etc, tmp_path / "copy", "passwd", "ssl/certs", "localtime", "no/such")
    assert found == {
        "passwd": "root", "localtime": "/usr/share/zoneinfo/UTC", "no": "/", "ssl": "/", "ssl/certs": "/",
        "ssl/certs/ca.pem": "ca", "ssl/certs/ca.0": "ca.pem", "ssl/certs/tool": "#!/bin/sh\n",
    }  # fmt: skip
    modes = {name: oct((tmp_path / "copy" / name).stat().st_mode & 0o777) for name in ("passwd", "ssl/certs/tool")}
    assert modes == {"passwd": "0o444", "ssl/certs/tool": "0o555"}


def test_it_takes_the_place_of_the_one_before_and_of_one_that_was_not_finished(etc: Path, tmp_path: Path) -> None:
    copied(etc, tmp_path / "copy", "passwd")
    (tmp_path / "copy.new").mkdir()
    (etc / "passwd").write_text("changed")
    assert copied(etc, tmp_path / "copy", "passwd") == {"passwd": "changed"}
    assert not (tmp_path / "copy.new").exists()


def test_there_is_a_place_for_what_is_mounted_and_none_of_it(etc: Path, tmp_path: Path) -> None:
    found = copied(etc, tmp_path / "copy", "passwd", mounted=("shadow", "ssl/private", "passwd", "localtime", "none"))
    assert found == {
        "passwd": "root", "shadow": "", "ssl": "/", "ssl/private": "/", "localtime": "/usr/share/zoneinfo/UTC",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "most"), [("MAX_BYTES", 5), ("MAX_ENTRIES", 2)])
def test_more_than_programs_need_is_not_copied(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(etc_copy, name, most)
    with pytest.raises(TooMuch):
        copied(etc, tmp_path / "copy", "passwd", "ssl/certs")


def text_of(path: Path) -> str:
    return path.read_text()


def replace(path: Path, before: str, after: str) -> None:
    path.touch()
    assert path.read_text() == before
    path.chmod(0o644)
    path.write_text(after)


async def test_actions_see_the_copy_and_what_is_declared_beside_it(tmp_path: Path, store: MemoryStore) -> None:
    settings = BubblewrapSettings(readable=("/etc/shadow", "/etc/ssl"))
    context = await make_context(tmp_path / "work", store, isolation="bubblewrap", bubblewrap=settings)
    worker = Worker(context, Inputs(store), tmp_path / "work")
    try:
        mounts = await worker.sh("grep -c ' /etc' /proc/self/mountinfo; cat /etc/passwd; ls /etc | wc -l; ls /etc/ssl")
        count, *rest = (await worker.stdout(mounts)).splitlines()
        assert int(count) == 3
        assert "\n".join(rest).startswith(PASSWD.strip())
        assert rest[-len(os.listdir("/etc/ssl")) :] == sorted(os.listdir("/etc/ssl"))
        written = await worker.sh("echo x >> /etc/passwd; touch /etc/new; chmod 777 /etc/passwd; exit 3")
        assert written.action_result.exit_code == 3
        assert text_of(tmp_path / "work/etc/passwd") == PASSWD
        assert "new" not in os.listdir(tmp_path / "work/etc")
    finally:
        context.workspace.close()


async def test_with_a_network_names_are_looked_up_as_the_machine_does_now(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(tmp_path / "work", store, isolation="bubblewrap")
    worker = Worker(context, Inputs(store), tmp_path / "work")
    try:
        replace(tmp_path / "work/etc/hosts", HOSTS, "old\n")
        network = re_pb2.Platform(properties=[re_pb2.Platform.Property(name="network", value="on")])
        assert await worker.stdout(await worker.sh("cat /etc/hosts")) == "old\n"
        live = await worker.sh("cat /etc/hosts", platform=network)
        assert await worker.stdout(live) == HOSTS
    finally:
        context.workspace.close()


async def test_where_it_cannot_be_made_actions_see_the_same_all_the_same(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(tmp_path / "work", store, isolation="bubblewrap")
    replace(tmp_path / "a file", "", "")
    isolation = Bubblewrap(BubblewrapSettings(), [str(tmp_path / "work")], etc_copy=str(tmp_path / "a file" / "etc"))
    isolation.require()
    isolation.prepare()
    context.isolation = isolation
    worker = Worker(context, Inputs(store), tmp_path / "work")
    assert await worker.stdout(await worker.sh("cat /etc/passwd")) == PASSWD
    context.workspace.close()
