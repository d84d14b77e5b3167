"""Log-in by OpenID Connect against a provider that behaves, and against one that lies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from joserfc.jwk import OctKey, RSAKey

from bowerbird_server.access.oidc import ATTEMPT_S, Provider
from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import Catalogue, accounts, audit
from bowerbird_server.config import OidcConfig, ServerConfig
from bowerbird_server.errors import BadInput, ConfigError, Conflict
from bowerbird_server.layout import DataFolder
from bowerbird_server.web.app import create_app
from bowerbird_testing.oidc_provider import CLIENT, ISSUER, SECRET, FakeProvider

CONFIG = OidcConfig(issuer=ISSUER, client_id=CLIENT, redirect_url="https://bird.example/login/oidc/callback")
NAME = "ada@example.org"


@pytest.fixture
def fake() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def cat(tmp_path: Path) -> Catalogue:
    return Catalogue(DataFolder(tmp_path / "data").make().catalogue)


@pytest.fixture
def web(cat: Catalogue, fake: FakeProvider) -> TestClient:
    app = create_app(DataFolder(cat.path.parent), oidc=Provider(CONFIG, SECRET, fake))
    return TestClient(app, base_url="https://bird.example", follow_redirects=False)


def go(web: TestClient, fake: FakeProvider, **more: str) -> Any:
    """From the button to the provider and back."""
    begun = web.get("/login/oidc", params={"next": "/frames"})
    assert begun.status_code == 303
    return web.get("/login/oidc/callback", params={**fake.authorize(begun.headers["location"]), **more})


def test_who_the_provider_vouches_for_comes_in_as_their_account(web: TestClient, fake: FakeProvider, cat: Catalogue) -> None:
    accounts.add_user(cat, NAME, None, Role.LABELLER, Sites(), "test")
    assert "/login/oidc?next=" in web.get("/login").text
    answer = go(web, fake)
    assert answer.status_code == 200
    assert 'content="0; url=/frames"' in answer.text
    cookies = answer.headers.get_list("set-cookie")
    assert any("bowerbird_session" in cookie and "SameSite=strict" in cookie and "Secure" in cookie for cookie in cookies)
    assert web.get("/session").json()["role"] == "labeller"
    (event, *_) = audit.events(cat)
    assert (event["actor"], event["kind"]) == (NAME, "logged in")


def test_a_name_without_an_account_does_not_come_in(web: TestClient, fake: FakeProvider) -> None:
    answer = go(web, fake)
    assert answer.status_code == 403
    assert "has no account here" in answer.text
    assert web.get("/session").status_code == 401


def test_an_account_with_a_password_is_not_opened_by_the_provider_nor_the_other_way_round(
    web: TestClient, fake: FakeProvider, cat: Catalogue
) -> None:
    accounts.add_user(cat, NAME, "four random words stand", Role.ADMINISTRATOR, Sites(), "test")
    assert go(web, fake).status_code == 403
    accounts.add_user(cat, "bob", None, Role.VIEWER, Sites(), "test")
    for password in ("", "x", "four random words stand"):
        assert accounts.principal_of_password(cat, "bob", password) is None
    with pytest.raises(Conflict, match="provider"):
        accounts.set_password(cat, "bob", "four random words stand", "test")


def test_an_answer_is_taken_once_and_from_the_browser_that_asked(web: TestClient, fake: FakeProvider, cat: Catalogue) -> None:
    accounts.add_user(cat, NAME, None, Role.VIEWER, Sites(), "test")
    begun = web.get("/login/oidc")
    brought = fake.authorize(begun.headers["location"])
    cookie = web.cookies["bowerbird_oidc"]
    other = TestClient(web.app, base_url="https://bird.example", follow_redirects=False)
    assert other.get("/login/oidc/callback", params=brought).status_code == 401
    assert web.get("/login/oidc/callback", params=brought).status_code == 401, "the attempt is used up"
    assert (
        web.get(
            "/login/oidc/callback", params={**brought, "state": "x"}, headers={"Cookie": f"bowerbird_oidc={cookie}"}
        ).status_code
        == 401
    )
    assert web.get("/login/oidc/callback").status_code == 401
    assert go(web, fake).status_code == 200


def test_a_late_answer_is_refused(fake: FakeProvider) -> None:
    provider = Provider(CONFIG, SECRET, fake)
    url, state = provider.begin("/", 1000.0)
    with pytest.raises(BadInput, match="too long ago"):
        provider.finish(state, state, fake.authorize(url)["code"], 1000.0 + ATTEMPT_S + 1)


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another issuer": lambda claims: claims.update(iss="https://evil.example"),
    "for another client": lambda claims: claims.update(aud="somebody-else"),
    "for two clients without saying which": lambda claims: claims.update(aud=[CLIENT, "other"], azp="other"),
    "another nonce": lambda claims: claims.update(nonce="n"),
    "no nonce": lambda claims: claims.pop("nonce"),
    "expired": lambda claims: claims.update(exp=1),
    "no end": lambda claims: claims.pop("exp"),
    "address not verified": lambda claims: claims.update(email_verified=False),
    "verified as a word": lambda claims: claims.update(email_verified="true"),
    "no address": lambda claims: claims.pop("email"),
    "a list for an address": lambda claims: claims.update(email=[NAME]),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_token_that_says_something_else_lets_nobody_in(web: TestClient, fake: FakeProvider, cat: Catalogue, lie: str) -> None:
    accounts.add_user(cat, NAME, None, Role.ADMINISTRATOR, Sites(), "test")
    fake.lie = LIES[lie]  # type: ignore[assignment]
    assert go(web, fake).status_code == 401
    assert web.get("/session").status_code == 401


def test_a_token_signed_by_somebody_else_or_with_a_shared_key_lets_nobody_in(
    web: TestClient, fake: FakeProvider, cat: Catalogue
) -> None:
    accounts.add_user(cat, NAME, None, Role.ADMINISTRATOR, Sites(), "test")
    fake.signing_key = RSAKey.generate_key(2048, parameters={"kid": "one"})
    assert go(web, fake).status_code == 401
    fake.header = {"alg": "HS256", "kid": "one"}
    fake.signing_key = OctKey.import_key(SECRET)  # type: ignore[assignment]
    assert go(web, fake).status_code == 401


def test_a_token_without_signature_lets_nobody_in(web: TestClient, fake: FakeProvider, cat: Catalogue) -> None:
    accounts.add_user(cat, NAME, None, Role.ADMINISTRATOR, Sites(), "test")
    issue = fake._token

    def unsigned(request: Any) -> Any:
        answer = issue(request)
        body = json.loads(answer.content)
        none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
        body["id_token"] = f"{none}.{body['id_token'].split('.')[1]}."
        return type(answer)(200, json=body)

    fake._token = unsigned  # type: ignore[method-assign]
    assert go(web, fake).status_code == 401


def test_a_code_of_somebody_else_is_not_taken_by_the_provider(web: TestClient, fake: FakeProvider, cat: Catalogue) -> None:
    """PKCE: a code that was caught elsewhere does not fit this browser's attempt."""
    accounts.add_user(cat, NAME, None, Role.ADMINISTRATOR, Sites(), "test")
    stolen = fake.authorize(web.get("/login/oidc").headers["location"])["code"]
    web.cookies.clear()
    assert go(web, fake, code=stolen).status_code == 401


def test_a_provider_that_is_down_or_calls_itself_otherwise_is_told_as_such(web: TestClient, fake: FakeProvider) -> None:
    fake.down = True
    assert web.get("/login/oidc").status_code == 503
    fake.down, fake.calls_itself = False, "https://evil.example"
    answer = web.get("/login/oidc")
    assert answer.status_code == 503
    assert "oidc.issuer" in answer.text


def test_without_a_provider_there_is_no_button_and_no_way(cat: Catalogue) -> None:
    web = TestClient(create_app(DataFolder(cat.path.parent)), follow_redirects=False)
    assert "/login/oidc" not in web.get("/login").text
    assert web.get("/login/oidc").status_code == 404
    assert web.get("/login/oidc/callback", params={"state": "s", "code": "c"}).status_code == 404


def test_addresses_without_tls_and_half_a_configuration_are_refused() -> None:
    for change in ({"issuer": "http://id.example"}, {"redirect_url": "http://bird.example/login/oidc/callback"}):
        with pytest.raises(ConfigError, match="https"):
            Provider(CONFIG.model_copy(update=change), SECRET)
    with pytest.raises(ValueError, match="client_id"):
        ServerConfig.model_validate({"oidc": {"issuer": ISSUER}})
