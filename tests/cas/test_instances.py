"""Instance names."""

from __future__ import annotations

import pytest

from cas.action_cache import MemoryActionCache
from cas.context import Identity
from cas.errors import MalformedRequest, NotAllowed
from cas.instances import Instance, Instances
from cas.memory import MemoryStore


def instance(name: str) -> Instance:
    return Instance(name, MemoryStore(), MemoryActionCache())


def test_an_instance_is_found_by_its_whole_name() -> None:
    known = [instance(""), instance("main"), instance("team/main")]
    instances = Instances(known)
    assert [instances.of(name) for name in ("", "main", "team/main")] == known
    assert instances.names == ("", "main", "team/main")


@pytest.mark.parametrize("name", ["", "Main", "main/", "/main", "team", "x" * 10_000])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(MalformedRequest, match="this server has 'main', 'team/main'") as refused:
        Instances([instance("main"), instance("team/main")]).of(name)
    assert len(str(refused.value)) < 300


def test_one_name_cannot_stand_for_two_instances() -> None:
    with pytest.raises(ValueError, match="'main' is configured twice"):
        Instances([instance("main"), instance("main")])


def test_who_may_not_read_does_not_learn_which_names_exist() -> None:
    instances = Instances([instance("main")])
    assert instances.readable("main", Identity()).name == "main"
    for name in ("main", "nobody"):
        with pytest.raises(NotAllowed):
            instances.readable(name, Identity(may_read=False))


def test_who_may_use_one_instance_does_not_learn_of_others() -> None:
    instances = Instances([instance("main"), instance("secret")])
    limited = Identity(instance_names=frozenset({"main", "gone"}))
    for find in (instances.readable, instances.executable):
        assert find("main", limited).name == "main"
        for name in ("secret", "no such thing", ""):
            with pytest.raises(NotAllowed, match=r"^not allowed$"):
                find(name, limited)
        with pytest.raises(MalformedRequest, match=r"'gone'; this server has 'main'$"):
            find("gone", limited)


def test_execution_is_a_right_of_its_own() -> None:
    instances = Instances([instance("main")])
    assert instances.executable("main", Identity()).name == "main"
    with pytest.raises(NotAllowed):
        instances.executable("main", Identity(may_execute=False))
