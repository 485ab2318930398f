"""Configuration files of any content: a configuration, or a ConfigError of one line that says where."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rexec.config import Config, ConfigError, from_table, load, parse
from tests.fuzz.hostile import TEXTS, examples, guarded

VALUES = st.one_of(
    TEXTS,
    st.booleans(),
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.just([]),
    st.lists(TEXTS, max_size=2),
    st.just({}),
)
DEFAULTS: dict[str, Any] = msgspec.to_builtins(Config())
KEYS = [(key,) for key, value in DEFAULTS.items() if not isinstance(value, dict)] + [
    (section, key) for section, held in DEFAULTS.items() if isinstance(held, dict) for key in held
]


@given(key=st.sampled_from(KEYS), value=VALUES)
@examples(300)
def test_a_value_of_any_kind_is_taken_or_refused_with_its_place(key: tuple[str, ...], value: object) -> None:
    table: object = value
    for part in reversed(key):
        table = {part: table}
    with guarded():
        try:
            config = from_table(table)  # type: ignore[arg-type]
        except ConfigError:
            return
    taken = msgspec.to_builtins(config)
    for part in key:
        taken = taken[part]
    assert taken == taken, f"{'.'.join(key)} was given NaN"


@pytest.mark.parametrize("key", KEYS, ids=".".join)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "1e400", str(2**63)])
def test_no_number_that_is_none_gets_into_the_configuration(key: tuple[str, ...], number: str) -> None:
    section = f"[{key[0]}]\n" if len(key) == 2 else ""
    try:
        config = parse(f"{section}{key[-1]} = {number}\n")
    except ConfigError:
        return
    taken = msgspec.to_builtins(config)
    for part in key:
        taken = taken[part]
    assert -(2**63) <= taken <= 2**63
    asyncio.run(_waited(taken))


async def _waited(seconds: float) -> None:
    """Every number has to be one that a clock can wait for: durations are among them."""
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + seconds, print).cancel()


@given(text=st.one_of(st.text(max_size=200), TEXTS.map(lambda text: f"[store]\nmax_bytes = {text!r}\n")))
@examples(150)
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    with guarded():
        try:
            parse(text)
        except ConfigError:
            return


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5_000,
        "a = " + "{b = " * 5_000,
        "[" + "a." * 5_000 + "a]",
        "a" + ".a" * 5_000 + " = 1",
        "a = " + "9" * 5_000,
    ],
    ids=["arrays", "tables", "header", "dotted", "digits"],
)
def test_a_file_that_is_nested_for_ever_is_refused(text: str) -> None:
    with guarded(), pytest.raises(ConfigError):
        parse(text)


@given(data=st.binary(max_size=100))
@examples(50)
def test_a_file_of_any_bytes_is_a_configuration_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file: Path = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(data)
    try:
        load(file)
    except ConfigError as refused:
        assert str(file) in str(refused)  # noqa: PT017 - most examples are refused, not all
