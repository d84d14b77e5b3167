"""An OpenID Connect provider that behaves: discovery, codes that are good once, PKCE, a client's secret, signed tokens; and can lie.

In: the address that a browser was sent to (`authorize`), requests as an httpx transport. Out: codes, tokens. Nobody types a password.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey

ISSUER = "https://id.example"
CLIENT, SECRET = "bowerbird", "the-clients-secret-0123456789"


class FakeProvider(httpx.BaseTransport):
    """Vouches for `person`; `lie` changes the claims, the header or the key of the next tokens."""

    def __init__(self) -> None:
        self.person: dict[str, Any] = {"sub": "42", "email": "Ada@example.org", "email_verified": True}
        self.lie: Callable[[dict[str, Any]], None] = lambda _claims: None
        self.header: dict[str, Any] = {"alg": "RS256", "kid": "one"}
        self.key = RSAKey.generate_key(2048, parameters={"kid": "one"})
        self.signing_key = self.key
        self.calls_itself = ISSUER
        self.down = False
        self._codes: dict[str, dict[str, str]] = {}

    def authorize(self, url: str) -> dict[str, str]:
        """What the person's browser brings back: state and code."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert url.startswith(f"{ISSUER}/authorize?")
        assert asked["client_id"] == CLIENT
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        return {"state": asked["state"], "code": code}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the network would."""
        if self.down:
            raise httpx.ConnectError("refused")
        path = request.url.path
        if path == "/.well-known/openid-configuration":
            places = {
                "authorization_endpoint": f"{ISSUER}/authorize",
                "token_endpoint": f"{ISSUER}/token",
                "jwks_uri": f"{ISSUER}/keys",
            }
            return httpx.Response(200, json={"issuer": self.calls_itself, **places})
        if path == "/keys":
            return httpx.Response(200, json={"keys": [self.key.as_dict(private=False)]})
        if path == "/token":
            return self._token(request)
        return httpx.Response(404)

    def _token(self, request: httpx.Request) -> httpx.Response:
        form = {name: values[0] for name, values in parse_qs(request.read().decode()).items()}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        asked = self._codes.pop(form.get("code", ""), None)
        challenge = (
            base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest()).decode().rstrip("=")
        )
        if request.headers.get("authorization") != f"Basic {basic}":
            return httpx.Response(401, json={"error": "invalid_client"})
        if asked is None or challenge != asked["code_challenge"] or form.get("redirect_uri") != asked["redirect_uri"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"], **self.person}
        self.lie(claims)
        token = jwt.encode(self.header, claims, self.signing_key, algorithms=[self.header["alg"]])
        return httpx.Response(200, json={"access_token": "a", "token_type": "Bearer", "id_token": token, "expires_in": 300})
