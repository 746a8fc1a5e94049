"""A page of the cluster on this machine: a small HTTP proxy on loopback that goes through the Kubernetes API server.

The API server asks for this person's credentials and Ray for its token. A browser would send neither; the proxy adds both. So that other
users of this machine cannot use them, the first request has to bring a key that only the printed address contains; a cookie keeps it.
Web sockets are not passed on.
"""

from __future__ import annotations

import hmac
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from urllib3 import BaseHTTPResponse

KEY = "launcher-key"
CHUNK_BYTES = 64 * 1024
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-authorization", "host", "cookie"}
)
"""Headers that belong to one connection (RFC 9110, 7.6.1), and those that the proxy sets itself."""

Request = Callable[[str, str, Mapping[str, str], bytes | None], BaseHTTPResponse]
"""Method, path with query, headers, body -> a response whose content is not loaded yet."""


@contextmanager
def serve(request: Request) -> Iterator[str]:
    """Serve the page while the context lasts; yields its address, with the key in it."""
    key = secrets.token_urlsafe(18)

    class Handler(_Handler):
        pass

    Handler.request_page, Handler.key = staticmethod(request), key
    server = _Server((_address(), 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="service-proxy", daemon=True)
    thread.start()
    try:
        yield f"http://{server.server_address[0]!s}:{server.server_address[1]}/?{KEY}={key}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a page was closed, or somebody sent a broken request; neither is of interest in the person's terminal."""


def _address() -> str:
    """A loopback address that other servers here hardly use, because a browser sends a host's cookies to all its ports.

    Systems other than Linux have 127.0.0.1 alone.
    """
    if sys.platform != "linux":
        return "127.0.0.1"
    return ".".join(["127", *(str(secrets.randbelow(254) + 1) for _ in range(3))])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    request_page: Request
    key: str

    def _pass_on(self) -> None:
        given = parse_qs(urlsplit(self.path).query).get(KEY, [""])[0]
        if given and self._is_key(given):
            self._welcome()
        elif not self._is_known():
            self.close_connection = True  # the request's body, if there is one, is still in the connection
            self._answer(403, b"open the address that `launch dashboard` has printed\n")
        else:
            self._fetch()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing in the person's terminal."""

    def _is_known(self) -> bool:
        morsel = SimpleCookie(self.headers.get("Cookie", "")).get(KEY)
        return morsel is not None and self._is_key(morsel.value)

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.key.encode())

    def _welcome(self) -> None:
        self.send_response(302)
        self.send_header("Location", urlsplit(self.path).path)
        self.send_header("Set-Cookie", f"{KEY}={self.key}; HttpOnly; SameSite=Strict; Path=/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _fetch(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            response = self.request_page(self.command, self.path, headers, body)
        except Exception as error:  # noqa: BLE001 - the person who looks at the page has to see it, of whatever kind it is
            self._answer(502, f"the cluster does not answer: {error}\n".encode())
            return
        try:
            self._pass_back(response)
        except BaseException:
            self.close_connection = True  # the rest of the answer is still in both connections
            response.close()
            raise
        response.release_conn()

    def _pass_back(self, response: BaseHTTPResponse) -> None:
        has_body = self.command != "HEAD" and response.status not in (204, 304)
        self.send_response(response.status)
        for name, value in response.headers.items():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        if has_body:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if has_body:
            for chunk in response.stream(CHUNK_BYTES, decode_content=False):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
