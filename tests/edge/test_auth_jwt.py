"""Signed tokens: which count, and what their claims give."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest

from cas.errors import Unavailable
from rexec.auth.credentials import Refused
from rexec.auth.keys import KeySet, parse_keys
from rexec.auth.settings import ALGORITHMS, JwtSettings
from rexec.auth.web_tokens import MAX_REMEMBERED, WebTokens
from tests.edge.issuer import AUDIENCE, ISSUER, SigningKey, claims_with, key_set

RSA, EC, ED = SigningKey("RS256", "rsa"), SigningKey("ES256", "ec"), SigningKey("EdDSA", "ed")
KEYS = {key.algorithm: key for key in (RSA, EC, ED)}


def settings(**changes: Any) -> JwtSettings:
    return JwtSettings(**{"issuer": ISSUER, "audience": (AUDIENCE,), "jwks_file": "keys.json", **changes})


class FixedKeys:
    """Keys that the test changes by hand."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys: KeySet = parse_keys(ALGORITHMS, key_set(*keys)) if keys else {}
        self.renewed = 0
        self.next: KeySet | None = None

    def current(self) -> KeySet:
        return self.keys

    async def renew(self) -> None:
        self.renewed += 1
        self.keys = self.keys if self.next is None else self.next


def tokens(**changes: Any) -> WebTokens:
    return WebTokens(settings(**changes), FixedKeys(RSA, EC, ED))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_good_token_names_its_subject(algorithm: str) -> None:
    identity = await tokens().identity(KEYS[algorithm].token(rexec_rights=["read"]))
    assert identity.name == "alice"


@pytest.mark.parametrize(
    ("claims", "held"),
    [
        ({}, (False, False, False, False)),
        ({"rexec_rights": []}, (False, False, False, False)),
        ({"rexec_rights": ["read"]}, (True, False, False, False)),
        ({"rexec_rights": ["execute", "swim"]}, (True, True, False, False)),
        ({"rexec_rights": "openid update_action_cache"}, (True, False, True, False)),
        ({"rexec_rights": ["work"]}, (True, False, False, True)),
        ({"rexec_rights": "EXECUTE read,work"}, (False, False, False, False)),
    ],
)
async def test_the_rights_are_those_of_the_claim(claims: dict[str, Any], held: tuple[bool, ...]) -> None:
    identity = await tokens().identity(EC.token(**claims))
    rights = identity.may_read, identity.may_execute, identity.may_update_action_cache, identity.may_work
    assert rights == held


@pytest.mark.parametrize(
    ("claims", "default", "names"),
    [
        ({}, None, None),
        ({}, ("main",), {"main"}),
        ({"rexec_instances": ["team/a", ""]}, ("main",), {"team/a", ""}),
        ({"rexec_instances": "a b"}, None, {"a", "b"}),
        ({"rexec_instances": []}, None, set()),
    ],
)
async def test_the_instances_are_those_of_the_claim(
    claims: dict[str, Any], default: tuple[str, ...] | None, names: set[str] | None
) -> None:
    identity = await tokens(instances=default).identity(EC.token(**claims))
    assert identity.instance_names == names


@pytest.mark.parametrize(
    ("claims", "default", "tenant"),
    [({}, "", ""), ({}, "blue", "blue"), ({"rexec_tenant": "red"}, "blue", "red"), ({"rexec_tenant": ""}, "blue", "")],
)
async def test_the_tenant_is_that_of_the_claim(claims: dict[str, Any], default: str, tenant: str) -> None:
    assert (await tokens(tenant=default).identity(EC.token(**claims))).tenant == tenant


async def test_a_tenant_that_is_no_text_is_refused() -> None:
    with pytest.raises(Refused):
        await tokens().identity(EC.token(rexec_tenant=["red"]))


async def test_names_of_claims_and_what_stands_in_for_them_can_be_set() -> None:
    chosen = {"name_claim": "email", "rights_claim": "scope", "instances_claim": "teams", "rights": ("read",)}
    identity = await tokens(**chosen).identity(EC.token(email="a@b", scope="execute", teams="x"))
    assert (identity.name, identity.may_execute, identity.instance_names) == ("a@b", True, frozenset({"x"}))
    assert (await tokens(**chosen).identity(EC.token(email="a@b"))).may_read


def encoded(data: Any) -> str:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def unsigned() -> str:
    return f"{encoded({'alg': 'none', 'kid': 'rsa'})}.{encoded(claims_with())}."


def keyed_with_the_public_key() -> str:
    """HS256 whose secret is what everyone knows: works wherever the token chooses the algorithm."""
    head = f"{encoded({'alg': 'HS256', 'kid': 'rsa'})}.{encoded(claims_with())}"
    return f"{head}.{encoded(hmac.digest(RSA.public_pem, head.encode(), hashlib.sha256))}"


def with_claims_of(victim: str, donor: str) -> str:
    """The signature of one token under the claims of another."""
    head, _, signature = victim.split(".")
    return ".".join((head, donor.split(".")[1], signature))


def with_header(header: bytes) -> str:
    return f"{encoded(header)}.{encoded(claims_with())}.{encoded(b'signature')}"


NOW = int(time.time())
STRANGER = SigningKey("RS256", "rsa")

HOSTILE = {
    "no signature wanted": unsigned(),
    "none in other letters": unsigned().replace(encoded({"alg": "none", "kid": "rsa"}), encoded({"alg": "NoNe"})),
    "HS256 with the public key": keyed_with_the_public_key(),
    "key unknown": SigningKey("RS256", "other").token(),
    "key unknown, its own brought along": STRANGER.token({"jwk": STRANGER.jwk(), "jku": "https://evil.test/keys"}),
    "another's key under a known name": STRANGER.token(),
    "the name of a key for another algorithm": jwt.encode(claims_with(), EC.private, "ES256", headers={"kid": "rsa"}),
    "kid is a number": f"{encoded({'alg': 'RS256', 'kid': 7})}.{encoded(claims_with())}.{encoded(b'x')}",
    "unknown critical header": RSA.token({"crit": ["exotic"], "exotic": 1}),
    "expired": RSA.token(exp=NOW - 60),
    "expired long ago": RSA.token(exp=0),
    "not yet valid": RSA.token(nbf=NOW + 36_000),
    "issued in the future": RSA.token(iat=NOW + 36_000),
    "without end": RSA.token(exp=None),
    "end is a text": RSA.token(exp="never"),
    "end is endless": RSA.token(exp=float("inf")),
    "end is a list": RSA.token(exp=[NOW + 600]),
    "for another service": RSA.token(aud="elsewhere"),
    "for no service": RSA.token(aud=None),
    "for a number": RSA.token(aud=5),
    "of another provider": RSA.token(iss="https://evil.test"),
    "of no provider": RSA.token(iss=None),
    "subject is a number": RSA.token(sub=5),
    "no subject": RSA.token(sub=None),
    "empty subject": RSA.token(sub=""),
    "rights are a table": RSA.token(rexec_rights={"read": True}),
    "rights are numbers": RSA.token(rexec_rights=[1]),
    "instances are a number": RSA.token(rexec_instances=1),
    "claims of another": with_claims_of(RSA.token(sub="bob"), RSA.token(sub="root", rexec_rights=["work"])),
    "signature cut off": RSA.token().rpartition(".")[0] + ".",
    "signature gone": RSA.token().rpartition(".")[0],
    "half a signature": RSA.token()[:-100],
    "1 MiB": "a" * (1 << 20),
    "1 MiB of signed token": RSA.token(padding="x" * (1 << 20)),
    "no base64": "!!!.???.***",
    "base64 of noise": with_header(bytes(range(256))),
    "NUL": "\x00",
    "NUL inside": RSA.token().replace(".", ".\x00", 1),
    "beyond ASCII": "tök€n.tök€n.tök€n",
    "lone surrogate": "\udcff.\udcff.\udcff",
    "empty": "",
    "dots": "." * 1000,
    "header is a list": with_header(b"[]"),
    "header nests deep": with_header(b"[" * 8000),
    "header holds a huge number": with_header(b'{"alg":' + b"9" * 8000 + b"}"),
    "claims are a list": jwt.PyJWS().encode(b"[]", RSA.private, "RS256", headers={"kid": "rsa"}),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_token_is_refused_and_the_reason_does_not_repeat_it(kind: str) -> None:
    token = HOSTILE[kind]
    with pytest.raises(Refused) as refused:
        await tokens().identity(token)
    reason = str(refused.value)
    assert len(reason) < 200
    assert all(part not in reason for part in token.split(".") if len(part) > 8)


async def test_clocks_may_differ_by_the_leeway() -> None:
    await tokens(leeway_seconds=3_600).identity(RSA.token(exp=NOW - 1_000, nbf=NOW + 3_000))
    with pytest.raises(Refused, match="ExpiredSignatureError"):
        await tokens(leeway_seconds=0).identity(RSA.token(exp=NOW - 1_000))


async def test_an_algorithm_that_is_not_allowed_does_not_count_however_well_it_is_signed() -> None:
    with pytest.raises(Refused, match="RS256"):
        await tokens(algorithms=("ES256",)).identity(RSA.token())


async def test_a_token_without_kid_counts_if_one_key_can_have_signed_it() -> None:
    token = jwt.encode(claims_with(), EC.private, "ES256")
    assert (await tokens().identity(token)).name == "alice"
    two = WebTokens(settings(), FixedKeys(EC, SigningKey("ES256", "second")))
    with pytest.raises(Refused, match="not known"):
        await two.identity(token)


async def test_a_rotated_key_counts_at_once_and_the_old_one_no_more() -> None:
    keys, new = FixedKeys(RSA), SigningKey("RS256", "new")
    checked = WebTokens(settings(), keys)
    old_token = RSA.token()
    assert (await checked.identity(old_token)).name == "alice"
    keys.next = parse_keys(ALGORITHMS, key_set(new))
    assert (await checked.identity(new.token(sub="bob"))).name == "bob"
    assert keys.renewed == 1
    with pytest.raises(Refused):  # though it was remembered
        await checked.identity(old_token)


async def test_without_any_keys_the_client_is_asked_to_come_back() -> None:
    with pytest.raises(Unavailable, match="cannot be checked now"):
        await WebTokens(settings(), FixedKeys()).identity(RSA.token())


async def test_a_remembered_token_is_checked_again_when_it_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    now = float(NOW)
    checked = WebTokens(settings(), FixedKeys(EC), wall=lambda: now)
    token = EC.token(exp=NOW + 1000)
    identity = await checked.identity(token)
    decoded: list[str] = []
    original = jwt.decode

    def counted(*args: Any, **more: Any) -> Any:
        decoded.append("once")
        return original(*args, **more)

    monkeypatch.setattr(jwt, "decode", counted)
    assert await checked.identity(token) is identity
    assert not decoded
    now = NOW + 1031.0
    await checked.identity(token)
    assert decoded


async def test_no_more_tokens_are_remembered_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rexec.auth.web_tokens.MAX_REMEMBERED", 3)
    assert MAX_REMEMBERED > 3
    checked = tokens()
    for number in range(10):
        assert (await checked.identity(EC.token(sub=f"user {number}"))).name == f"user {number}"
    assert len(checked._remembered) == 3
