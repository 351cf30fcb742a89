"""/v1/session: sign in to the console with a key, sign out, and who is signed in."""

from typing import Annotated

import msgspec
from flask import Response, request

from server.errors import BodyTooLargeError
from server.http.access.auth import Authenticator
from server.http.access.caller import SECRET_CHARACTERS_MAX, Caller
from server.http.access.sessions import session_cookie
from server.http.body.image import need_length
from server.http.body.json_body import decode_json, read_body
from server.http.routes import OPEN, route, to_json
from server.http.wsgi import current
from server.store.keys import RIGHTS

# Bytes of a body with a key or token.
BODY_BYTES_MAX = SECRET_CHARACTERS_MAX + 100


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """key: an API key, or a token if the server takes them."""

    key: Annotated[str, msgspec.Meta(min_length=1)]


class SessionState(msgspec.Struct, frozen=True):
    """Who asks. keys_asked: the server asks for keys. name: of the caller's key or token; empty
    without. rights: what it opens; all of them if no key is asked for."""

    keys_asked: bool
    name: str
    rights: tuple[str, ...]


class SessionRoutes:
    """Begins and ends the sessions of `authenticator`."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def _state(self, caller: Caller | None) -> SessionState:
        asked = self._authenticator.closed()
        rights = caller.rights if caller else () if asked else RIGHTS
        name = caller.name if caller else ""
        return SessionState(asked, name, tuple(each for each in RIGHTS if each in rights))

    @route("GET", "/v1/session", rights=OPEN, quiet=True)
    def read(self) -> SessionState:
        """Return who asks, by a key or by a session's cookie, and with which rights."""
        return self._state(current().caller)

    @route(
        "POST",
        "/v1/session",
        rights=OPEN,
        body=SignIn,
        example={"key": "ls_the-key"},
        answer=SessionState,
        errors=(400, 401, 403, 413),
    )
    def sign_in(self) -> Response:
        """Begin a session of the key in the body: a cookie takes its place. It ends with the key,
        after an hour without a request, and after twelve hours."""
        need_length(request)
        data = read_body()
        if len(data) > BODY_BYTES_MAX:
            raise BodyTooLargeError(f"a key or token has at most {SECRET_CHARACTERS_MAX:,} letters")
        key = decode_json(SignIn, data).key.strip()
        context = current()
        context.caller, value = self._authenticator.sign_in(key, request.environ)
        response = to_json(self._state(context.caller))
        response.headers["Set-Cookie"] = session_cookie(request.environ, value)
        response.headers["Cache-Control"] = "no-store"
        return response

    @route("DELETE", "/v1/session", rights=OPEN, answer=SessionState, errors=(403,))
    def sign_out(self) -> Response:
        """End the session whose cookie the request has."""
        self._authenticator.sign_out(request.environ)
        response = to_json(self._state(None))
        response.headers["Set-Cookie"] = session_cookie(request.environ, "")
        return response
