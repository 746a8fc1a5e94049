"""The proxy passes a page on for whoever has its key, and for nobody else."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any

import pytest
from urllib3.response import HTTPResponse

from launcher.backends.service_proxy import serve

pytestmark = pytest.mark.distributed


class Page:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes | None]] = []

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Any:
        self.asked.append((method, path, dict(headers), body))
        if path == "/broken":
            raise ConnectionError("the API server is away")
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
