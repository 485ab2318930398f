"""[auth] in the configuration: what is refused, what it means, and what a start warns of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rexec.auth.authentication import Authentication
from rexec.auth.credentials import AuthUnusable
from rexec.auth.rights import EVERY_RIGHT, Right
from rexec.auth.settings import AuthSettings, TokenSettings
from rexec.cli import main
from rexec.config import ConfigError, parse, with_changes
from rexec.exposure import warnings
from rexec.serve_command import greeting
from tests.edge.certificates import Authority
from tests.edge.issuer import SigningKey, key_set

JWT = 'issuer = "https://i.test"\naudience = ["rexec"]\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[auth]\nanonymous = ["fly"]', r"\[auth\] anonymous, entry 1: 'fly' is not one of"),
        ("[auth]\nanonymus = []", "anonymus"),
        ('[auth.tokens]\nfiles = "x"', "files"),
        ("[auth.jwt]", "issuer is missing"),
        ('[auth.jwt]\nissuer = ""\naudience = ["a"]', "issuer is empty"),
        ('[auth.jwt]\nissuer = "i"\naudience = []', "audience is empty"),
        ('[auth.jwt]\nissuer = "i"\naudience = [""]', "audience is empty"),
        (f"[auth.jwt]\n{JWT}", "one of jwks_file and jwks_url"),
        (f'[auth.jwt]\n{JWT}jwks_file = "x"\njwks_url = "https://i.test"', "one of jwks_file and jwks_url"),
        (f'[auth.jwt]\n{JWT}jwks_url = "http://i.test/keys"', "expected https://"),
        (f'[auth.jwt]\n{JWT}jwks_url = "file:///etc/passwd"', "expected https://"),
        (f'[auth.jwt]\n{JWT}jwks_url = "https://"', "expected https://"),
        (f'[auth.jwt]\n{JWT}jwks_file = "x"\nalgorithms = ["HS256"]', "'HS256' is not one of RS256, ES256, EdDSA"),
        (f'[auth.jwt]\n{JWT}jwks_file = "x"\nalgorithms = ["none"]', "'none' is not one of"),
        (f'[auth.jwt]\n{JWT}jwks_file = "x"\nalgorithms = []', "algorithms is empty"),
        (f'[auth.jwt]\n{JWT}jwks_file = "x"\nleeway_seconds = 86400', "leeway_seconds is 86400"),
        (f'[auth.jwt]\n{JWT}jwks_file = "x"\nretry_seconds = 0', "retry_seconds is 0"),
        ('[[auth.certificates]]\nidentity = "a"', "one of alternative_name and common_name"),
        ('[[auth.certificates]]\nidentity = "a"\nalternative_name = "b"\ncommon_name = "c"', "one of alternative_name"),
    ],
)
def test_what_would_not_work_or_would_let_anyone_in_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text)


def test_nobody_in_particular_may_do_everything_until_somebody_is_known() -> None:
    assert AuthSettings().anonymous_rights == EVERY_RIGHT
    assert AuthSettings(tokens=TokenSettings(file="x")).anonymous_rights == ()
    assert parse(f'[auth.jwt]\n{JWT}jwks_file = "x"').auth.anonymous_rights == ()
    assert AuthSettings(tokens=TokenSettings(file="x"), anonymous=(Right.READ,)).anonymous_rights == (Right.READ,)
    assert AuthSettings(anonymous=()).anonymous_rights == ()


def test_the_command_line_leaves_the_whole_of_it_as_it_is() -> None:
    config = parse(
        f'[server.tls]\ncertificate = "c"\nkey = "k"\nclient_ca = "a"\n[auth]\nanonymous = ["read"]\n'
        f'[auth.jwt]\n{JWT}jwks_file = "x"\nrights = ["work"]\n'
        f'[[auth.certificates]]\nidentity = "a"\ncommon_name = "b"\nrights = ["execute"]\ninstances = [""]'
    )
    assert with_changes(config, slots=0).auth == config.auth
    assert with_changes(config, slots=0).server == config.server


@pytest.mark.parametrize("module", ["jwt", "cryptography"])
def test_what_signed_tokens_need_is_named_when_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("rexec.auth.keys", "rexec.auth.web_tokens"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    settings = parse(f'[auth.jwt]\n{JWT}jwks_file = "x"').auth
    with pytest.raises(AuthUnusable, match=rf"needs {module}: in rexec's checkout, .venv/bin/pip install '.\[auth\]'"):
        Authentication(settings)


def test_check_config_looks_into_the_files_that_a_start_would_read(tmp_path: Path) -> None:
    pair = Authority(tmp_path).pair("server")
    file, tokens, keys = tmp_path / "rexec.toml", tmp_path / "tokens.toml", tmp_path / "keys.json"
    file.write_text(
        f'[server.tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
        f'[auth.tokens]\nfile = "{tokens}"\n[auth.jwt]\n{JWT}jwks_file = "{keys}"'
    )
    check = ["check-config", str(file)]
    for missing, data in ((tokens, b""), (keys, key_set(SigningKey("ES256", "k")))):
        result = CliRunner().invoke(main, check)
        assert result.exit_code == 1
        assert str(missing) in result.output
        missing.write_bytes(data)
    assert CliRunner().invoke(main, check).exit_code == 0
    pair.key.write_text("nonsense")
    result = CliRunner().invoke(main, check)
    assert result.exit_code == 1
    assert str(pair.key) in result.output


TLS = '[server.tls]\ncertificate = "c"\nkey = "k"\n'
TOKENS = '[auth.tokens]\nfile = "t"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["may run commands here and attach workers: see [auth]", "sources and results travel unencrypted"]),
        (TLS, ["may run commands here and attach workers: see [auth]"]),
        (TOKENS, ["tokens, sources and results travel unencrypted: see [server.tls]"]),
        (TLS + TOKENS, []),
        (TLS + 'client_ca = "a"', []),
        (TLS + '[auth]\nanonymous = ["read"]\n', []),
        (TLS + '[auth]\nanonymous = ["execute"]\n', ["may run commands here: see [auth]"]),
        (TLS + '[auth]\nanonymous = ["work"]\n', ["may attach workers: see [auth]"]),
        (TLS + '[auth]\nanonymous = ["update_action_cache"]\n', ["may put results into the action cache"]),
    ],
)
def test_a_start_warns_of_what_other_machines_may_do(text: str, said: list[str]) -> None:
    found = warnings(parse(text), ("127.0.0.1:1", "0.0.0.0:2"))
    assert len(found) == len(said)
    assert all(part in warning for part, warning in zip(said, found, strict=True))
    assert warnings(parse(text), ("127.0.0.1:1",)) == []
    greeted = greeting(parse(text), ("0.0.0.0:2",))
    assert greeted.count("warning: ") == len(said)


def test_the_greeting_shows_what_clients_need() -> None:
    text = greeting(parse(f"slots = 0\n{TLS}client_ca = 'a'\n{TOKENS}"), ("127.0.0.1:8980",))
    assert "rexec worker --server grpcs://127.0.0.1:8980 --tls-ca" in text
    assert "--remote_executor=grpcs://127.0.0.1:8980" in text
    assert "--token-file TOKEN-FILE" in text
