"""The optional login: one token, for people by a form, for programs by a header.

A browser gets a session cookie for the token; what is stored is the digest of the
session, so nothing in memory or in a core dump opens the door. The token never comes
in a URL, which browsers, proxies and logs keep.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import secrets
import time
from string import Template
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from pilotfleet.protocol.limits import TokenBucket, TokenBuckets
from pilotfleet.web.answers import refuse
from pilotfleet.web.assets import SHARED_PREFIX, Assets
from pilotfleet.web.limits import client_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Access"]

SESSION_S: Final = 12 * 3600
MAX_SESSIONS: Final = 1_000
ATTEMPTS: Final = 10
"""Tries at once from one address; then one each ten seconds."""
ATTEMPT_RATE: Final = 0.1
ALL_ATTEMPTS: Final = 100
"""Tries at once from everywhere; then five a second."""
ALL_ATTEMPTS_RATE: Final = 5.0
MAX_FIELDS: Final = 10
MAX_ADDRESSES: Final = 10_000
RETRY_AFTER_S: Final = 10


class Access:
    """Who may see the pages. Without a token: everybody."""

    def __init__(
        self,
        token: str | None,
        *,
        open_paths: Iterable[str] = ("/healthz",),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest = _digest(token) if token else None
        self._open = frozenset(open_paths)
        self._clock = clock
        self._sessions: dict[bytes, float] = {}
        """Digest of the session to when it ends; the oldest first."""
        self._proven: dict[str, float] = {}
        """Addresses that had the right token to when that is forgotten; the oldest
        first."""
        self._by_address = TokenBuckets(ATTEMPT_RATE, ATTEMPTS, capacity=MAX_ADDRESSES)
        self._of_all = TokenBucket(ALL_ATTEMPTS, ALL_ATTEMPTS_RATE, clock())
        self._page = Template(Assets("pilotfleet.web").text("login.html"))

    @property
    def is_required(self) -> bool:
        """Whether a token is asked for."""
        return self._digest is not None

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return ``app`` behind the login."""
        if not self.is_required:
            return app

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            request = Request(scope, receive)
            answer = await self._answer(request)
            await (answer or app)(scope, receive, send)

        return run

    async def _answer(self, request: Request) -> Response | None:
        """Return what is said instead of the page; None: let it through."""
        # Not request.url, in which the Host header has a part.
        path = request.scope["path"]
        if path in self._open or path.startswith(f"{SHARED_PREFIX}/"):
            return None
        if path == "/login":
            return await self._login(request)
        if path == "/logout" and request.method == "POST":
            return self._logout(request)
        # What a program may ask before it sends its token (CORS); it says nothing.
        if self._has_session(request) or request.method == "OPTIONS":
            return None
        header = request.headers.get("authorization", "")
        kind, _, token = header.partition(" ")
        if kind.lower() == "bearer":
            return self._check_bearer(request, token.strip())
        return _ask(request)

    # The form.

    async def _login(self, request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            return self._form(_safe_path(request.query_params.get("next", "/")))
        if request.method != "POST":
            return Response(status_code=405, headers={"Allow": "GET, POST"})
        try:
            body = (await request.body()).decode("latin-1")
            fields = parse_qs(body, max_num_fields=MAX_FIELDS)
        except ValueError:
            return refuse(400, "invalid_argument", "the form has too many fields")
        path = _safe_path(fields.get("next", ["/"])[0])
        match self._try(request, fields.get("token", [""])[0].strip()):
            case None:
                return self._form(path, "Too many attempts. Wait a little.", 429)
            case False:
                return self._form(path, "This is not the token.", 401)
        answer = RedirectResponse(path, status_code=303)
        self._set_cookie(request, answer, self._new_session(), SESSION_S)
        return answer

    def _form(self, path: str, problem: str = "", status: int = 200) -> Response:
        text = self._page.substitute(
            next=html.escape(path, quote=True), problem=html.escape(problem)
        )
        headers = {"Cache-Control": "no-store"}
        if status == 429:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        return HTMLResponse(text, status_code=status, headers=headers)

    def _logout(self, request: Request) -> Response:
        session = request.cookies.get(_cookie_name(request), "")
        self._sessions.pop(_digest(session), None)
        answer = RedirectResponse("/login", status_code=303)
        self._set_cookie(request, answer, "", 0)
        return answer

    # Sessions and tokens.

    def _try(self, request: Request, token: str) -> bool | None:
        """Tell whether the token is right; None: nobody may try now.

        The right one is held back as well, else the limit would stop nobody who
        guesses; but not from where it came before, else one program with a wrong token
        would shut out all others of its machine. It costs nothing, so programs may
        send it as often as they like.
        """
        address, now = client_network(request), self._clock()
        is_right = hmac.compare_digest(_digest(token), self._digest or b"")
        if is_right and self._proven.get(address, 0.0) > now:
            self._note_proof(address, now)
            return True
        # Who has used up his own tries takes none from all the others.
        if not self._by_address.allow(address, now):
            return None
        if not self._of_all.take(now):
            self._by_address.give_back(address)
            return None
        if is_right:
            self._of_all.give_back()
            self._by_address.give_back(address)
            self._note_proof(address, now)
        return is_right

    def _note_proof(self, address: str, now: float) -> None:
        self._proven.pop(address, None)
        self._proven[address] = now + SESSION_S
        if len(self._proven) > MAX_ADDRESSES:
            del self._proven[next(iter(self._proven))]

    def _check_bearer(self, request: Request, token: str) -> Response | None:
        match self._try(request, token):
            case True:
                return None
            case False:
                return _unauthorized("the token is wrong")
        return refuse(
            429,
            "auth_required",
            "too many attempts",
            hint="wait, then send the right token",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )

    def _new_session(self) -> str:
        now = self._clock()
        self._sessions = {key: end for key, end in self._sessions.items() if end > now}
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = now + SESSION_S
        return session

    def _has_session(self, request: Request) -> bool:
        session = request.cookies.get(_cookie_name(request))
        # Looked up by digest: how long it takes says nothing about the session.
        end = self._sessions.get(_digest(session)) if session else None
        return end is not None and end > self._clock()

    def _set_cookie(
        self, request: Request, answer: Response, value: str, age_s: int
    ) -> None:
        answer.set_cookie(
            _cookie_name(request),
            value,
            max_age=age_s,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _cookie_name(request: Request) -> str:
    """Return a name of this server's own: a host's ports share their cookies."""
    server = request.scope.get("server") or ("", 0)
    return f"pilotfleet-{server[1]}"


def _ask(request: Request) -> Response:
    """Send a person to the form, and tell a program what is missing."""
    wants_page = "text/html" in request.headers.get("accept", "")
    if request.method == "GET" and wants_page:
        query = request.scope["query_string"].decode("latin-1")
        path = request.scope["path"] + (f"?{query}" if query else "")
        return RedirectResponse(f"/login?next={quote(path, safe='/')}", 303)
    return _unauthorized("a token is needed")


def _unauthorized(message: str) -> Response:
    return refuse(
        401,
        "auth_required",
        message,
        hint="send the header Authorization: Bearer TOKEN, or log in at /login",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _safe_path(path: str) -> str:
    """Return a path of this server; anything that leads elsewhere becomes ``/``."""
    # Browsers read \ as / and drop control characters: "/\t/evil" is "//evil".
    is_odd = any(ord(char) <= 0x20 or char == "\\" or ord(char) > 0x7E for char in path)
    if is_odd or not path.startswith("/") or path.startswith("//"):
        return "/"
    return path if len(path) <= 2048 else "/"
