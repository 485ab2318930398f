"""`rexec copy-agent DEST`: puts the self-contained worker agent (rexec/agent_bundle.py) where another container finds it.

The init container of a pod runs it with a volume as DEST; then the user's own image starts DEST/run. A copy is made beside its
place and moved there whole, `run` last but for the marker `complete`, so what is there can be started. An earlier copy of
the same bundle is left as it is, of another one replaced.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

INSTALLED: Final = Path("/opt/rexec/agent")
"""Where the images have it."""

_IN_ORDER: Final = ("bin", "lib", "packages", "run", "complete")
_INCOMING: Final = ".incoming"


class CannotCopy(Exception):
    """There is no bundle to copy, or no place for it; the text says which and why."""


def bundle_here() -> Path:
    """The bundle that REXEC_AGENT_BUNDLE names, else the one that runs this, else that of the image."""
    if named := os.environ.get("REXEC_AGENT_BUNDLE"):
        return Path(named)
    own = Path(__file__).parent.parent.parent
    return own if (own / "complete").exists() else INSTALLED


def copy_agent(bundle: Path, target: Path) -> bool:
    """Copy the bundle into the directory; False if it was there already. Raises CannotCopy."""
    try:
        digest = (bundle / "complete").read_text()
    except OSError as error:
        raise CannotCopy(
            f"no agent bundle in {bundle} ({error.strerror}); scripts/agent-bundle.sh makes one"
        ) from error
    with suppress(OSError):
        if (target / "complete").read_text() == digest:
            return False
    try:
        target.mkdir(parents=True, exist_ok=True)
        incoming = target / _INCOMING
        _remove(incoming)
        incoming.mkdir()
        for name in _IN_ORDER:
            _copy(bundle / name, incoming / name)
        for name in reversed(_IN_ORDER):
            _remove(target / name)
        for name in _IN_ORDER:
            (incoming / name).rename(target / name)
        incoming.rmdir()
    except OSError as error:
        raise CannotCopy(f"cannot copy the agent to {target}: {error}") from error
    return True


def _copy(origin: Path, target: Path) -> None:
    if origin.is_dir():
        # Not the modes of directories as they are: who copies has to be able to write into the copy.
        target.mkdir()
        for entry in origin.iterdir():
            _copy(entry, target / entry.name)
    else:
        shutil.copyfile(origin, target)
        target.chmod(0o755 if os.access(origin, os.X_OK) else 0o644)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@click.command("copy-agent")
@click.argument("target", metavar="DEST", type=click.Path(file_okay=False, path_type=Path))
def copy_agent_command(target: Path) -> None:
    """Put the self-contained worker agent into the directory DEST.

    DEST/run worker ... then is `rexec worker ...` in any root file system, with Python or without: an init container brings
    workers into images of your own in this way. The bundle is the one that $REXEC_AGENT_BUNDLE names, else the image's.
    """
    try:
        is_new = copy_agent(bundle_here(), target)
    except CannotCopy as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{'the agent is' if is_new else 'the agent was already'} in {target}")
