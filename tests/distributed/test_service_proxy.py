"""The proxy passes a page on for whoever has its key, and for nobody else."""

from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any

import pytest
from urllib3.response import HTTPResponse

from launcher.backends.kuberay.service_proxy import serve

pytestmark = pytest.mark.distributed


class Torn(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        raise ConnectionResetError


class Page:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes | None]] = []

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Any:
        self.asked.append((method, path, dict(headers), body))
        if path == "/broken":
            raise ConnectionError("the API server is away")
        if path == "/known":
            return HTTPResponse(io.BytesIO(b""), status=304, preload_content=False)
        if path == "/torn":
            return HTTPResponse(Torn(), status=200, preload_content=False)
        return HTTPResponse(io.BytesIO(b"the page"), headers={"Content-Type": "text/html"}, status=200, preload_content=False)


def test_a_browser_with_the_key_sees_the_page_and_one_without_it_nothing() -> None:
    page = Page()
    with serve(page.request) as address:
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        with browser.open(address, timeout=5) as shown:
            assert shown.read() == b"the page"
            assert shown.headers["Content-Type"] == "text/html"
        root = address.partition("?")[0]
        with browser.open(urllib.request.Request(f"{root}api/jobs/", data=b"{}", method="POST"), timeout=5):
            pass
        asked = len(page.asked)
        for stranger in (root, f"{root}?launcher-key=guess"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(stranger, timeout=5)
            assert refused.value.code == 403
        assert len(page.asked) == asked
        with pytest.raises(urllib.error.HTTPError) as broken:
            browser.open(f"{root}broken", timeout=5)
        assert broken.value.code == 502
    assert [(method, path, body) for method, path, _, body in page.asked[:2]] == [("GET", "/", None), ("POST", "/api/jobs/", b"{}")]
    assert all("Cookie" not in headers for _, _, headers, _ in page.asked), "the key stays here"


def test_an_answer_without_a_body_has_none_and_the_connection_goes_on() -> None:
    page = Page()
    with serve(page.request) as address:
        where = urllib.parse.urlsplit(address)
        connection = http.client.HTTPConnection(where.netloc, timeout=5)
        cookie = {"Cookie": where.query}
        for path, method, status, body in (
            ("/known", "GET", 304, b""),
            ("/", "HEAD", 200, b""),
            ("/", "GET", 200, b"the page"),
        ):
            connection.request(method, path, headers=cookie)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (status, body), path
        connection.close()


def test_a_strangers_request_and_an_answer_that_breaks_off_leave_the_terminal_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with serve(Page().request) as address:
        where = urllib.parse.urlsplit(address)
        connection = http.client.HTTPConnection(where.netloc, timeout=5)
        connection.request("POST", "/?launcher-key=%C3%A9", body=b"GET / HTTP/1.1")
        refused = connection.getresponse()
        assert refused.status == 403
        connection.close()
        connection.request("GET", "/torn", headers={"Cookie": where.query})
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse().read()
        connection.close()
    assert "Traceback" not in capfd.readouterr().err
