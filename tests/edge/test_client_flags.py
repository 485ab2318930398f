"""What users paste into their clients."""

from __future__ import annotations

from rexec.client_flags import client_flags


def test_every_client_gets_the_address_it_can_use() -> None:
    text = client_flags("127.0.0.1:8980", ("", "main"), executes=True, hostname="builder")
    assert "bazel build --remote_executor=grpc://127.0.0.1:8980 //..." in text
    assert "RECC_SERVER=http://127.0.0.1:8980" in text
    assert "url: http://127.0.0.1:8980" in text
    assert "engine_address = grpc://127.0.0.1:8980" in text
    assert "tls = false" in text  # Buck2's default is true


def test_a_server_without_the_default_instance_names_one_everywhere() -> None:
    text = client_flags("127.0.0.1:1", ("team/one", "other"), executes=True, hostname="builder")
    assert "--remote_instance_name=team/one" in text
    assert "RECC_INSTANCE=team/one" in text
    assert text.count("instance-name: team/one") == 3
    assert "instance_name = team/one" in text


def test_a_wildcard_address_is_replaced_by_a_name_that_others_can_reach() -> None:
    text = client_flags("0.0.0.0:8980", ("",), executes=True, hostname="builder")
    assert "0.0.0.0" not in text
    assert "grpc://builder:8980" in text


def test_a_cache_alone_is_offered_as_a_cache() -> None:
    text = client_flags("127.0.0.1:8980", ("",), executes=False, hostname="builder")
    assert "--remote_cache=grpc://127.0.0.1:8980" in text
    assert "remote-execution" not in text
