"""Bazel over TLS: who may build is decided by a client certificate or a token, and Bazel says so when one may not.

No one Bazel does it all: Debian's, helped to a netty that can, shows a client certificate; 2.1 has all of TLS itself, but no
option for a client's certificate.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from integration.bazel import BAZEL_2_1, DEBIAN_WITH_TLS, Bazel, cache_flags, execution_flags, running_bazel
from integration.outcome import Outcome, Processes
from integration.server import Counts, Server, running_server
from integration.workspace import lay_out_workspace
from tests.edge.certificates import Authority, Pair

TESTS = ("//tests:table_test", "//tests:data_test")
# A genrule's header; for each of the two tests a compilation, a link, the test itself and what writes its XML.
ACTIONS = 1 + 2 * 4
ONE_ACTION = "//generated:squares"
BAZEL_ENVIRONMENT_FAILED = (2, 34, 36, 37)
"""Bazel's exit codes for wrong options and for what is wrong around it; a failed build would be 1."""
RUN_AGAIN = ("--noremote_accept_cached",)
READER_TOKEN = "a token that anyone may see, because it is only good for this test"

MUTUAL = """
[server.tls]
certificate = "{server.certificate}"
key = "{server.key}"
client_ca = "{authority.file}"

[[auth.certificates]]
identity = "builder"
common_name = "builder"
rights = ["execute"]

[[auth.certificates]]
identity = "reader"
alternative_name = "spiffe://localhost/reader"
rights = ["read"]
"""
ONE_SIDED = """
[server.tls]
certificate = "{server.certificate}"
key = "{server.key}"

[auth]
anonymous = ["execute"]

[auth.tokens]
file = "{tokens}"
"""
TOKENS = """
[[token]]
identity = "reader"
sha256 = "{sha256}"
rights = ["read"]
"""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Who there is on either side, and two of the same names whom nobody trusts."""

    authority: Authority
    server: Pair
    builder: Pair
    reader: Pair
    stranger: Authority
    strange_builder: Pair


@dataclass(frozen=True, slots=True)
class Secured:
    """A server that speaks TLS, and a Bazel that has built and tested through it; nothing is left of that but the cache."""

    bazel: Bazel
    server: Server
    certificates: Certificates
    first: Outcome
    first_counts: Counts

    @property
    def address(self) -> str:
        return by_name(self.server)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    elsewhere = tmp_path_factory.mktemp("stranger")
    authority, stranger = Authority(folder), Authority(elsewhere, "stranger")
    return Certificates(
        authority,
        authority.pair("server"),
        authority.pair("builder"),
        authority.pair("someone", "spiffe://localhost/reader"),
        stranger,
        stranger.pair("builder"),
    )


@pytest.fixture(scope="module")
def mutual(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Debian's Bazel and a server that takes nobody without a certificate."""
    folder = tmp_path_factory.mktemp("mutual")
    config = folder / "rexec.toml"
    config.write_text(MUTUAL.format(server=certificates.server, authority=certificates.authority))
    key, chain = certificates.builder.key.read_bytes(), certificates.builder.certificate.read_bytes()
    credentials = grpc.ssl_channel_credentials(certificates.authority.file.read_bytes(), key, chain)
    workspace = lay_out_workspace("cpp", folder / "workspace")
    with (
        running_server(folder / "server", 2, ("--config", str(config)), credentials) as server,
        running_bazel(workspace, folder / "bazel", edition=DEBIAN_WITH_TLS) as bazel,
    ):
        flags = (*execution_flags(by_name(server), "grpcs"), *trusting(certificates.authority))
        yield built(bazel.using((*flags, *showing(certificates.builder))), server, certificates)


@pytest.fixture(scope="module")
def one_sided(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Bazel 2.1 and a server that lets the nameless build, and who shows the reader's token only read."""
    folder = tmp_path_factory.mktemp("one-sided")
    config, tokens = folder / "rexec.toml", folder / "tokens.toml"
    tokens.write_text(TOKENS.format(sha256=hashlib.sha256(READER_TOKEN.encode()).hexdigest()))
    config.write_text(ONE_SIDED.format(server=certificates.server, tokens=tokens))
    credentials = grpc.ssl_channel_credentials(certificates.authority.file.read_bytes())
    workspace = lay_out_workspace("cpp", folder / "workspace")
    # Tests had no such attribute then, and one unknown attribute makes the whole package unusable.
    build_file = workspace / "tests" / "BUILD.bazel"
    build_file.write_text(build_file.read_text().replace('    env = {"GREETING": "hello, world"},\n', ""))
    with (
        running_server(folder / "server", 2, ("--config", str(config)), credentials) as server,
        running_bazel(workspace, folder / "bazel", edition=BAZEL_2_1) as bazel,
    ):
        flags = (*execution_flags(by_name(server), "grpcs"), *trusting(certificates.authority))
        yield built(bazel.using(flags), server, certificates)


@pytest.fixture(params=["mutual", "one_sided"])
def secured(request: pytest.FixtureRequest) -> Secured:
    """Each of the two."""
    found: Secured = request.getfixturevalue(request.param)
    return found


def built(bazel: Bazel, server: Server, certificates: Certificates) -> Secured:
    first = bazel.test(*TESTS).expect()
    server.wait_for_executions(ACTIONS, deadline_seconds=10)
    counts = server.counts()
    bazel.clean()
    return Secured(bazel, server, certificates, first, counts)


def by_name(server: Server) -> str:
    """The server's address with the name that its certificate is for."""
    return server.address.replace("127.0.0.1", "localhost")


def trusting(authority: Authority) -> tuple[str, ...]:
    return (f"--tls_certificate={authority.file}",)


def showing(pair: Pair) -> tuple[str, ...]:
    return (f"--tls_client_certificate={pair.certificate}", f"--tls_client_key={pair.key}")


def expect_refusal(secured: Secured, bazel: Bazel, *words: str) -> None:
    """Bazel gives up with these words and nothing has been run anywhere."""
    before = secured.server.counts()
    outcome = bazel.build(ONE_ACTION, flags=RUN_AGAIN)
    assert outcome.exit_code in BAZEL_ENVIRONMENT_FAILED, outcome
    for word in words:
        assert word in outcome.stderr
    assert outcome.processes == Processes()
    assert secured.server.counts() == before
    secured.server.process.expect_running()


def test_every_action_runs_on_the_workers(secured: Secured) -> None:
    assert "Executed 2 out of 2 tests: 2 tests pass." in secured.first.stdout
    assert secured.first.processes.remote == ACTIONS
    assert secured.first.processes.elsewhere == {}
    assert secured.first_counts.executed == ACTIONS
    assert secured.first_counts.hits == 0


def test_the_second_time_everything_comes_from_the_action_cache(secured: Secured) -> None:
    before = secured.server.counts()
    again = secured.bazel.test(*TESTS).expect()
    assert again.processes.cache_hits == ACTIONS
    assert again.processes.remote == 0
    assert again.processes.elsewhere == {}
    after = secured.server.counts()
    assert after.executed == before.executed
    assert after.hits - before.hits == ACTIONS
    secured.bazel.clean()


def test_a_server_of_an_unknown_authority_is_told_nothing(secured: Secured) -> None:
    flags = (*secured.bazel.flags, *trusting(secured.certificates.stranger))
    expect_refusal(secured, secured.bazel.using(flags), "Failed to query remote execution capabilities")


def test_without_tls_nobody_gets_through(secured: Secured) -> None:
    bazel = secured.bazel.using(execution_flags(secured.address))
    expect_refusal(secured, bazel, "Failed to query remote execution capabilities")


def test_without_a_certificate_nobody_gets_through(mutual: Secured) -> None:
    flags = (*execution_flags(mutual.address, "grpcs"), *trusting(mutual.certificates.authority))
    expect_refusal(mutual, mutual.bazel.using(flags), "Failed to query remote execution capabilities")


def test_a_certificate_of_another_authority_opens_nothing(mutual: Secured) -> None:
    bazel = mutual.bazel.using((*mutual.bazel.flags, *showing(mutual.certificates.strange_builder)))
    expect_refusal(mutual, bazel, "Failed to query remote execution capabilities")


def test_a_reader_is_told_that_it_may_not_execute(mutual: Secured) -> None:
    bazel = mutual.bazel.using((*mutual.bazel.flags, *showing(mutual.certificates.reader)))
    expect_refusal(mutual, bazel, "the current account is not authorized to use remote execution")


def test_a_reader_is_told_that_it_may_not_write_results(mutual: Secured) -> None:
    expect_refusal(mutual, reading(mutual), "the current account is not authorized to write local results")


def test_a_reader_is_served_the_results_of_others(mutual: Secured) -> None:
    # Built only: what a test is run with differs between the strategies, what is compiled and linked does not.
    before = mutual.server.counts()
    outcome = reading(mutual).build(*TESTS, flags=["--noremote_upload_local_results"]).expect()
    assert outcome.processes.cache_hits == 1 + 2 * 2
    assert outcome.processes.remote == 0
    assert outcome.processes.elsewhere == {}
    after = mutual.server.counts()
    assert after.executed == before.executed
    mutual.bazel.clean()


def reading(mutual: Secured) -> Bazel:
    """As the reader, with the server as a cache only."""
    identity = (*trusting(mutual.certificates.authority), *showing(mutual.certificates.reader))
    return mutual.bazel.using((*cache_flags(mutual.address, "grpcs"), *identity))


@pytest.mark.parametrize("option", ["--remote_header", "--remote_exec_header"])
def test_a_build_with_a_token_that_may_only_read_ends_with_permission_denied(one_sided: Secured, option: str) -> None:
    before = one_sided.server.counts()
    flags = (*RUN_AGAIN, f"{option}=authorization=Bearer {READER_TOKEN}")
    outcome = one_sided.bazel.build(ONE_ACTION, flags=flags).expect(34)
    assert "PERMISSION_DENIED: not allowed" in outcome.stderr
    assert outcome.processes == Processes()
    assert one_sided.server.counts().executed == before.executed


def test_a_client_that_can_show_no_certificate_is_refused_by_a_server_that_wants_one(
    mutual: Secured, one_sided: Secured
) -> None:
    flags = (*execution_flags(mutual.address, "grpcs"), *trusting(mutual.certificates.authority))
    expect_refusal(mutual, one_sided.bazel.using(flags), "Failed to query remote execution capabilities")
