"""An identity provider for the length of a test: keys, the JWK set that it publishes, and tokens."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.test"
AUDIENCE = "rexec"

_JWK_OF = {"RS256": RSAAlgorithm.to_jwk, "ES256": ECAlgorithm.to_jwk, "EdDSA": OKPAlgorithm.to_jwk}


class SigningKey:
    """One key of the provider's."""

    def __init__(self, algorithm: str, kid: str) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private: Any
        match algorithm:
            case "RS256":
                self.private = rsa.generate_private_key(65537, 2048)
            case "ES256":
                self.private = ec.generate_private_key(ec.SECP256R1())
            case _:
                self.private = ed25519.Ed25519PrivateKey.generate()

    @property
    def public_pem(self) -> bytes:
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def jwk(self, **more: Any) -> dict[str, Any]:
        encode: Any = _JWK_OF[self.algorithm]
        return {**json.loads(encode(self.private.public_key())), "kid": self.kid, **more}

    def token(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Good for an hour unless the claims say otherwise; a claim that is None is left out."""
        return jwt.encode(
            claims_with(**claims), self.private, self.algorithm, headers={"kid": self.kid, **(headers or {})}
        )


def claims_with(**claims: Any) -> dict[str, Any]:
    """The claims of a good token, with changes."""
    good = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    return {name: value for name, value in {**good, **claims}.items() if value is not None}


def key_set(*keys: SigningKey) -> bytes:
    """The JWK set that the provider publishes."""
    return json.dumps({"keys": [key.jwk() for key in keys]}).encode()
