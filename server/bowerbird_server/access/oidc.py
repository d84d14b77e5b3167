"""Logging in by OpenID Connect: the provider says who somebody is, an account here says what they may do.

In: `[oidc]` of the configuration, what the provider answers. Out: an address to send a browser to, and later the name that the
provider vouches for. Authorization code with PKCE, state and nonce; requests by Authlib, signatures by joserfc. It makes no account
and no session.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, KeySetSerialization

from bowerbird_server.config import OidcConfig
from bowerbird_server.errors import BadInput, ConfigError, EnvironmentFault

SCOPES = {"email": "openid email", "preferred_username": "openid profile", "sub": "openid"}
ATTEMPT_S = 600.0
_ATTEMPTS = 1000
_LEEWAY_S = 60
_TIMEOUT_S = 10.0
_ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "ES256",
    "ES384",
    "Ed25519",
    "EdDSA",
]  # no `none`, and none with a shared key


@dataclass(frozen=True)
class Attempt:
    """A log-in under way: what the provider's answer is held against, and where to go on afterwards."""

    nonce: str
    verifier: str
    onward: str
    began_s: float


class Provider:
    """The provider of the configuration; remembers attempts until they come back, each once.

    Args:
        secret: the client's, "" for a public client.
        transport: how requests go out; the network when left out.

    Raises:
        ConfigError: the addresses are not https (http is taken on loopback).
    """

    def __init__(self, config: OidcConfig, secret: str, transport: httpx.BaseTransport | None = None) -> None:
        for key, url in (("issuer", config.issuer), ("redirect_url", config.redirect_url)):
            _check_url(f"oidc.{key}", url)
        self._config, self._secret, self._transport = config, secret, transport
        self._attempts: OrderedDict[str, Attempt] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, onward: str, now_s: float) -> tuple[str, str]:
        """The provider's address for a browser, and the state that the browser has to bring back.

        Raises:
            EnvironmentFault: the provider does not answer.
        """
        attempt = Attempt(secrets.token_urlsafe(24), secrets.token_urlsafe(48), onward, now_s)
        state = secrets.token_urlsafe(24)
        with self._client() as client:
            endpoint = self._metadata(client)["authorization_endpoint"]
            url, _ = client.create_authorization_url(endpoint, state=state, nonce=attempt.nonce, code_verifier=attempt.verifier)
        with self._lock:
            self._attempts[state] = attempt
            while len(self._attempts) > _ATTEMPTS:
                self._attempts.popitem(last=False)
        return str(url), state

    def finish(self, state: str, cookie: str, code: str, now_s: float) -> tuple[str, str]:
        """The name that the provider vouches for, and where to go on.

        Raises:
            BadInput: the answer is not to an attempt of this browser, is late, or its token does not hold.
            EnvironmentFault: the provider does not answer.
        """
        with self._lock:
            attempt = self._attempts.pop(state, None)
        if (
            attempt is None
            or not secrets.compare_digest(state.encode(), cookie.encode())
            or now_s - attempt.began_s > ATTEMPT_S
        ):
            raise BadInput("this log-in was begun in another browser, or too long ago; begin again")
        with self._client() as client:
            metadata = self._metadata(client)
            try:
                token = client.fetch_token(
                    metadata["token_endpoint"], grant_type="authorization_code", code=code, code_verifier=attempt.verifier
                )
                keys = client.request("GET", metadata["jwks_uri"], withhold_token=True).raise_for_status().json()
            except httpx.HTTPError as error:
                raise EnvironmentFault(
                    f"the provider {self._config.issuer} does not answer ({type(error).__name__})"
                ) from error
            except Exception as error:  # Authlib's, of which there are many, and whatever is no JSON
                raise BadInput("the provider did not take the code; begin again") from error
        return self._name(dict(token), keys, attempt, now_s), attempt.onward

    def _name(self, token: dict[str, Any], keys: dict[str, Any], attempt: Attempt, now_s: float) -> str:
        from authlib.oidc.core import CodeIDToken

        try:
            decoded = jwt.decode(
                str(token.get("id_token", "")), KeySet.import_key_set(cast("KeySetSerialization", keys)), algorithms=_ALGORITHMS
            )
            options = {
                "iss": {"essential": True, "value": self._config.issuer},
                "aud": {"essential": True, "value": self._config.client_id},
            }
            params = {"nonce": attempt.nonce, "client_id": self._config.client_id, "access_token": token.get("access_token")}
            CodeIDToken(decoded.claims, decoded.header, options=options, params=params).validate(
                now=int(now_s), leeway=_LEEWAY_S
            )
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"the provider's token does not hold ({type(error).__name__}); tell an administrator") from error
        name = decoded.claims.get(self._config.claim)
        if not isinstance(name, str) or not name:
            raise BadInput(
                f"the provider says nothing of your {self._config.claim}; an administrator can choose another oidc.claim"
            )
        if self._config.claim == "email" and decoded.claims.get("email_verified") is not True:
            raise BadInput("the provider has not verified your address, so it could be anybody's; verify it there first")
        return name.lower()

    def _client(self) -> Any:
        from authlib.integrations.httpx_client import OAuth2Client  # slow to import, and most servers have no provider

        return OAuth2Client(
            self._config.client_id,
            self._secret or None,
            token_endpoint_auth_method="client_secret_basic" if self._secret else "none",
            scope=SCOPES[self._config.claim],
            redirect_uri=self._config.redirect_url,
            code_challenge_method="S256",
            timeout=_TIMEOUT_S,
            trust_env=False,
            **({} if self._transport is None else {"transport": self._transport}),
        )

    def _metadata(self, client: Any) -> dict[str, str]:
        issuer = self._config.issuer
        try:
            url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
            found = client.request("GET", url, withhold_token=True).raise_for_status().json()
            metadata = {name: str(found[name]) for name in ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFault(
                f"the provider {issuer} does not say where it is ({type(error).__name__}); try later"
            ) from error
        if metadata["issuer"] != issuer:
            raise EnvironmentFault(
                f"the provider calls itself {metadata['issuer'][:200]} and not {issuer}; set oidc.issuer to that"
            )
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            _check_url(name, metadata[name])
        return metadata


def _check_url(key: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}):
        raise ConfigError(f"{key} must be an https:// address, not {url[:200]!r}")
