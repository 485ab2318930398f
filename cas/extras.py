"""How to get the libraries that only some configurations need (pyproject.toml, optional-dependencies)."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """The command, for people. rexec is installed from its checkout (README), and from nowhere else."""
    return f"in rexec's checkout, .venv/bin/pip install '.[{extra}]'"
