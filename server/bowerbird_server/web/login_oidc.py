"""Coming in by OpenID Connect: off to the provider, and back.

In: a browser that wants to come in, and later brings what the provider gave it. Out: a session of the account whose name the provider
vouches for. Only accounts made with `users add --oidc` come in so: a name at the provider never opens an account with a password.
"""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from bowerbird_server.access.oidc import ATTEMPT_S, Provider
from bowerbird_server.catalogue import accounts
from bowerbird_server.errors import NotFound, ServerError
from bowerbird_server.web.auth import safe_next
from bowerbird_server.web.login import begin_session, log_refusal, set_session_cookie
from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import whole_catalogue

router = APIRouter()

STATE_COOKIE = "bowerbird_oidc"
_PATH = "/login/oidc"


@router.get(_PATH)
def oidc_begin(request: Request, next: str = "/") -> Response:  # noqa: A002 - the name in the address
    url, state = _provider(request).begin(safe_next(next), time.time())
    answer = RedirectResponse(url, status_code=303)
    answer.set_cookie(
        STATE_COOKIE,
        state,
        max_age=int(ATTEMPT_S),
        path=_PATH,
        httponly=True,
        samesite="lax",  # it has to come along when the provider sends the browser back
        secure=request.url.scheme == "https",
    )
    return answer


@router.get(f"{_PATH}/callback")
def oidc_callback(
    request: Request,
    state: Annotated[str, Query(max_length=200)] = "",
    code: Annotated[str, Query(max_length=4000)] = "",
) -> Response:
    try:
        cookie = request.cookies.get(STATE_COOKIE, "")
        name, onward = _provider(request).finish(state, cookie, code, time.time())
    except NotFound:
        raise
    except ServerError as error:
        log_refusal(request, "single sign-on")
        return render(request, "login.html", 401, next="/", fault=str(error))
    principal = accounts.principal_of_provider(whole_catalogue(request), name)
    if principal is None:
        log_refusal(request, "single sign-on")
        fault = f"{name} has no account here; an administrator makes one: bowerbird users add {name} --oidc --role viewer"
        return render(request, "login.html", 403, next="/", fault=fault)
    # A page and not a redirect: the session's cookie is strict, and browsers leave it out of a chain that began on another site.
    answer = render(request, "arrived.html", onward=onward)
    set_session_cookie(request, answer, begin_session(request, principal))
    answer.delete_cookie(STATE_COOKIE, path=_PATH)
    return answer


def _provider(request: Request) -> Provider:
    provider: Provider | None = request.app.state.oidc
    if provider is None:
        raise NotFound("this server has no single sign-on; log in with a password or a token")
    return provider
