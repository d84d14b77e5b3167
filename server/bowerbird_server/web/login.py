"""Coming in and going out: the log-in page, log-out, and what a page asks about its session.

In: a name and password, or a token. Out: a session cookie. Every wrong try gets the same answer after the same time, and whoever tries
too often is told to wait (`throttle.py`). A name that belongs to an account is never given to somebody who shows only a token.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from bowerbird_server.access.first_run import FIRST_TOKEN_NAME
from bowerbird_server.access.roles import Principal, Role
from bowerbird_server.access.throttle import FREE_TRIES, Throttle
from bowerbird_server.catalogue import accounts, sessions
from bowerbird_server.catalogue.core import ORIGIN, Catalogue
from bowerbird_server.catalogue.sessions import Ages, Session
from bowerbird_server.web.auth import COOKIE, csrf_matches, error_answer, safe_next
from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import Stores, whole_catalogue

router = APIRouter()

WRONG = (
    "This is not right. Give the name and password of your account, or a token and a name that is no account's; an administrator "
    "makes new ones with `bowerbird users` and `bowerbird tokens`."
)


@router.get("/login")
def login_page(request: Request, next: str = "/") -> Response:  # noqa: A002 - the name in the address
    if request.state.session is not None:
        return RedirectResponse(safe_next(next), status_code=303)
    return render(request, "login.html", next=safe_next(next), fault="")


@router.post("/login")
async def login(
    request: Request,
    name: Annotated[str, Form(max_length=80)] = "",
    password: Annotated[str, Form(max_length=256)] = "",
    token: Annotated[str, Form(max_length=500)] = "",
    author: Annotated[str, Form(max_length=80)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/",  # noqa: A002 - the name of the field
) -> Response:
    throttle: Throttle = request.app.state.throttle
    name = name.strip().lower()
    keys = [f"address {request.client.host if request.client else ''}", *([f"name {name}"] if name else [])]
    wait_s = max(throttle.wait_s(key, time.monotonic()) for key in keys)
    if wait_s > 0:
        fault = f"Too many tries; wait {wait_s:.0f} s and try again."
        answer = render(request, "login.html", 429, next=safe_next(next), fault=fault, author=author, account=name)
        answer.headers["Retry-After"] = str(int(wait_s) + 1)
        return answer
    principal = await run_in_threadpool(_principal, request, name, password, token.strip(), author.strip())
    if principal is None:
        failures = max(throttle.failed(key, time.monotonic()) for key in keys)
        if failures <= FREE_TRIES or failures % 10 == 0:  # a flood of wrong tries must not become a flood of events
            who = await run_in_threadpool(_who_tried, request, name)
            await run_in_threadpool(log_refusal, request, who, failures)
        await asyncio.sleep(request.app.state.failed_login_delay_s)
        return render(request, "login.html", 401, next=safe_next(next), fault=WRONG, author=author, account=name)
    for key in keys[1:]:
        throttle.succeeded(key)
    cookie = await run_in_threadpool(begin_session, request, principal)
    answer = RedirectResponse(safe_next(next), status_code=303)
    set_session_cookie(request, answer, cookie)
    return answer


def set_session_cookie(request: Request, answer: Response, cookie: str) -> None:
    """Give a browser its session: no script reads it, no other site sends it, and on TLS it stays on TLS."""
    ages: Ages = request.app.state.ages
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=int(ages.oldest_s),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _principal(request: Request, name: str, password: str, token: str, author: str) -> Principal | None:
    """Who this is, None for nobody."""
    cat = whole_catalogue(request)
    if token:
        found = accounts.principal_of_token(cat, token)
        if found is None or found.role is Role.METRICS or (author and accounts.is_user(cat, author)):
            return None
        return replace(found, name=author or "reviewer")
    return accounts.principal_of_password(cat, name, password)


def begin_session(request: Request, principal: Principal) -> str:
    """A session for somebody who has shown who they are; returns its cookie."""
    cat, now_s = whole_catalogue(request), time.time()
    sessions.drop_old(cat, request.app.state.ages, now_s)
    ORIGIN.set(f"{request.client.host if request.client else 'unknown'} {principal.credential}")
    cookie = sessions.begin(cat, principal, now_s)
    _forget_first_token(request, cat, principal)
    return cookie


def _forget_first_token(request: Request, cat: Catalogue, principal: Principal) -> None:
    """The file with the first token has served its purpose once somebody has come in with it."""
    stores: Stores = request.app.state.stores
    path = stores.folder.root / FIRST_TOKEN_NAME
    with suppress(OSError, UnicodeDecodeError):
        kept = accounts.principal_of_token(cat, path.read_text(encoding="utf-8").strip())
        if kept is not None and kept.credential == principal.credential:
            path.unlink()


def _who_tried(request: Request, name: str) -> str:
    # What is no account's name may be a password that was typed into the wrong field.
    if not name:
        return "token"
    return name if accounts.is_user(whole_catalogue(request), name) else "unknown name"


def log_refusal(request: Request, who: str, failures: int = 1) -> None:
    """Note that somebody did not come in."""
    whole_catalogue(request).log("nobody", "log-in refused", who, {"tries": failures})


@router.post("/logout")
def logout(request: Request, csrf_token: Annotated[str, Form(max_length=100)] = "") -> Response:
    session: Session | None = request.state.session
    if session is None or not csrf_matches(session, csrf_token):
        return error_answer(403, "csrf", "reload the page and log out again")
    sessions.end(whole_catalogue(request), request.cookies[COOKIE], session.author)
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@router.get("/session")
def session_facts(request: Request) -> Response:
    """For a page that outlived its session: after a new login in another tab it fetches the new token here."""
    session: Session | None = request.state.session
    if session is None:
        return error_answer(400, "no_session", "this address is for pages; programs send the token")
    return JSONResponse(
        {"author": session.author, "csrf_token": session.csrf_token, "role": session.principal.role.word},
    )
