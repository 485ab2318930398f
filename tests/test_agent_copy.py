"""`rexec copy-agent` with a bundle of a few bytes; a real one is copied in integration/test_agent_bundle.py."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from rexec import agent_bundle
from rexec.agent_copy import INSTALLED, CannotCopy, bundle_here, copy_agent
from rexec.cli import main


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    for name, content in [("bin/python3", "p"), ("lib/start.py", "s"), ("packages/rexec/x.pyc", "x"), ("run", "r")]:
        file = made / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (made / "run").chmod(0o755)
    (made / "complete").write_text("digest\n")
    return made


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_of_it_is_copied_and_can_be_started(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "volume" / "agent"
    assert copy_agent(bundle, target)
    assert contents(target) == contents(bundle)
    assert os.access(target / "run", os.X_OK)
    assert not os.access(target / "lib" / "start.py", os.X_OK)


def test_the_same_bundle_is_not_copied_again(bundle: Path, tmp_path: Path) -> None:
    copy_agent(bundle, tmp_path / "volume")
    (tmp_path / "volume" / "run").write_text("still this one")
    assert not copy_agent(bundle, tmp_path / "volume")
    assert (tmp_path / "volume" / "run").read_text() == "still this one"


def test_another_bundle_takes_the_place_of_an_earlier_one_and_of_half_a_copy(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "volume"
    copy_agent(bundle, target)
    (target / "lib" / "old.so").touch()
    (target / "complete").unlink()
    (target / ".incoming" / "lib").mkdir(parents=True)
    (target / "lost+found").mkdir()
    assert copy_agent(bundle, target)
    assert contents(target) == contents(bundle)
    assert (target / "lost+found").is_dir()


def test_a_bundle_that_is_not_whole_is_not_copied(bundle: Path, tmp_path: Path) -> None:
    (bundle / "complete").unlink()
    with pytest.raises(CannotCopy, match=r"no agent bundle in .*bundle .*agent-bundle\.sh"):
        copy_agent(bundle, tmp_path / "volume")
    assert not (tmp_path / "volume").exists()


def test_a_place_that_cannot_be_written_is_named(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "volume").write_text("a file")
    with pytest.raises(CannotCopy, match=r"cannot copy the agent to .*volume"):
        copy_agent(bundle, tmp_path / "volume")


def test_the_bundle_is_the_one_that_is_named_or_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REXEC_AGENT_BUNDLE", raising=False)
    assert bundle_here() == INSTALLED
    monkeypatch.setenv("REXEC_AGENT_BUNDLE", "/some/bundle")
    assert bundle_here() == Path("/some/bundle")


def test_a_bundle_is_made_where_a_path_leads_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    made: list[Path] = []

    def make(directory: Path) -> str:
        made.append(directory)
        return "digest"

    monkeypatch.setattr(agent_bundle, "make_bundle", make)
    monkeypatch.setattr("sys.argv", ["agent_bundle", str(tmp_path / "link" / ".." / "link" / "agent")])
    agent_bundle.main()
    assert made == [(tmp_path / "place" / "agent").resolve()]


def test_the_command(bundle: Path, tmp_path: Path) -> None:
    runner = CliRunner(env={"REXEC_AGENT_BUNDLE": str(bundle)})
    arguments = ["copy-agent", str(tmp_path / "volume")]
    first, second = runner.invoke(main, arguments), runner.invoke(main, arguments)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "already" not in first.output
    assert "already" in second.output
    failed = CliRunner(env={"REXEC_AGENT_BUNDLE": str(tmp_path / "none")}).invoke(main, arguments)
    assert failed.exit_code == 1
    assert "no agent bundle in" in failed.output
