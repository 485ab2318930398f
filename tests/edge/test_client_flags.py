"""What users paste into their clients."""

from __future__ import annotations

from rexec.client_flags import Access, client_flags, worker_flags


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


def test_a_server_with_tls_is_offered_with_tls_everywhere() -> None:
    text = client_flags("build.example.org:1", ("",), True, "builder", Access(tls=True))
    assert "--remote_executor=grpcs://build.example.org:1 --tls_certificate=CA.pem //..." in text
    assert "RECC_SERVER=https://build.example.org:1" in text
    assert "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=CA.pem" in text
    assert text.count("url: https://build.example.org:1") == 3
    assert text.count("server-cert: CA.pem") == 3
    assert "engine_address = grpcs://build.example.org:1" in text
    assert "tls = true" in text
    assert "tls_ca_certs = CA.pem" in text
    assert "grpc://" not in text
    assert "http://" not in text


def test_certificates_and_tokens_are_asked_for_where_each_client_wants_them() -> None:
    text = client_flags("h:1", ("",), True, "builder", Access(tls=True, certificate=True, token=True))
    assert "--tls_client_certificate=CLIENT.pem --tls_client_key=CLIENT.key" in text
    assert "'--remote_header=authorization=Bearer TOKEN'" in text
    assert "RECC_ACCESS_TOKEN_PATH=TOKEN-FILE" in text
    assert text.count("client-key: CLIENT.key") == 3
    assert text.count("access-token: TOKEN-FILE") == 3
    assert "tls_client_cert = CLIENT-WITH-KEY.pem" in text
    assert "http_headers = Authorization: Bearer $TOKEN" in text


def test_a_worker_is_told_what_it_has_to_show() -> None:
    assert worker_flags("h:1", Access()) == "rexec worker --server grpc://h:1"
    everything = worker_flags("h:1", Access(tls=True, certificate=True, token=True))
    assert everything == (
        "rexec worker --server grpcs://h:1 --tls-ca CA.pem"
        " --tls-certificate CLIENT.pem --tls-key CLIENT.key --token-file TOKEN-FILE"
    )
