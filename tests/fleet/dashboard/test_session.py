"""Who is let in, and where a browser is led."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet.store import Tokens
from tests.fleet.dashboard.conftest import FROM_US, Browser, Parsed, hidden
from tests.fleet.service.conftest import DAY, Site


def _nonsense(site: Site) -> str:
    return "<script>alert(1)</script>"


def _revoked(site: Site) -> str:
    token, text = Tokens(site.store).issue("bob", "admin", DAY)
    Tokens(site.store).revoke(token.token)
    return text


def _expired(site: Site) -> str:
    return Tokens(site.store).issue("bob", "admin", 1e-6)[1]


BACK = "/ui/devices/d0?x=1"
BAD: list[tuple[Callable[[Site], str], str]] = [
    (_nonsense, "that is no token"),
    (lambda site: f"tf_{'0' * 16}_{'5' * 64}", "nobody has issued this token"),
    (_revoked, "was revoked"),
    (_expired, "has expired"),
    (lambda site: "", "that is no token"),
    (lambda site: "tf_ä\r\nX: y", "that is no token"),
]


def test_a_token_that_is_no_good_is_told_in_the_words_of_the_api(site: Site) -> None:
    for make, words in BAD:
        form = {"token": make(site), "next": BACK}
        answer = Browser(site, "").post("/login", form)
        assert answer.status_code == 401
        page = Parsed(answer.text)
        assert words in page.text
        assert "<script>alert" not in answer.text
        assert {"type": "hidden", "name": "next", "value": BACK} in page.all("input")


def test_a_cookie_that_is_no_good_leads_to_the_log_in_and_back(site: Site) -> None:
    for make, words in BAD[:4]:
        answer = Browser(site, make(site)).get(BACK.removeprefix("/ui"))
        assert answer.status_code == 401
        page = Parsed(answer.text)
        assert words in page.text
        assert {"type": "hidden", "name": "next", "value": BACK} in page.all("input")
        assert 'tinyfleet_token=""' in answer.headers["Set-Cookie"]


def test_whoever_logs_in_gets_where_they_were_and_out_again(site: Site) -> None:
    someone = Browser(site, "")
    someone.http.cookies.clear()
    led = someone.get("/devices/d0?tab=2")
    assert led.headers["Location"] == "/ui/login?next=%2Fui%2Fdevices%2Fd0%3Ftab%3D2"
    form = {"token": f" {site.tokens['viewer']}\n", "next": "/ui/devices/d0?tab=2"}
    answer = someone.post("/login", form)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/devices/d0?tab=2")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/ui" in cookie
    assert "Secure" not in cookie
    assert "viewer-ann" in someone.page("/devices/d0").text
    out = someone.post("/logout")
    assert out.headers["Location"] == "/ui/login"
    assert someone.get("/devices/d0").status_code == 303


@pytest.mark.parametrize("secure", [{"X-Forwarded-Proto": "https"}, {"base": "https://service"}])
def test_over_tls_the_cookie_stays_on_tls(site: Site, secure: dict[str, str]) -> None:
    someone = Browser(site, "")
    base = secure.pop("base", "http://service")
    answer = someone.http.post(
        f"{base}/ui/login", data={"token": site.tokens["viewer"]}, headers={**FROM_US, **secure}
    )
    assert "Secure" in answer.headers["Set-Cookie"]


def test_nobody_is_led_elsewhere_after_logging_in(site: Site) -> None:
    for address in (
        "https://evil.example/",
        "//evil.example/ui/",
        "/\\evil.example/ui/",
        "/ui/\\evil.example",
        "/ui/../v1/devices",
        "/ui//../../x",
        "/ui/%2e%2e/x",
        "/ui/.%2E/x",
        "/ui/\t//evil.example",
        "javascript:alert(1)",
        "/uievil",
        "ui/",
        "",
        "/ui/\r\nSet-Cookie: a=b",
        "//[",
        "http://[x",
        "/ui/\u2100",
    ):
        form = {"token": site.tokens["viewer"], "next": address}
        assert Browser(site, "").post("/login", form).headers["Location"] == "/ui/", address


@pytest.mark.parametrize("address", ["//[", "http://[x", "//a]b", "http://\u2100/"])
def test_an_address_that_is_none_leads_to_the_first_page(site: Site, address: str) -> None:
    someone = Browser(site, site.tokens["viewer"])
    login = someone.http.get("/ui/login", params={"next": address})
    assert hidden(Parsed(login.text))["next"] == "/ui/"
    sent = address.encode()
    lost = someone.http.get("/ui/nowhere", headers={b"Referer": sent})
    assert lost.status_code == 404
    assert "/ui/" in [one.get("href") for one in Parsed(lost.text).all("a") if one.get("class")]
    forged = someone.http.post("/ui/logout", headers={b"Origin": sent})
    assert forged.status_code == 403


def test_a_form_of_another_site_does_nothing(site: Site) -> None:
    form = {"token": site.tokens["admin"], "theme": "dark"}
    for headers, allowed in (
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://service"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Accept": "text/html"}, False),
        ({"Origin": "http://service"}, True),
        ({"Origin": "https://fleet.example", "X-Forwarded-Host": "fleet.example"}, True),
    ):
        for path in ("/logout", "/login", "/theme"):
            answer = Browser(site, site.tokens["admin"]).post(path, form, **headers)
            assert (answer.status_code == 303) is allowed, (path, headers)
            if not allowed:
                assert answer.status_code == 403
                assert "Set-Cookie" not in answer.headers
                assert "nothing was done" in Parsed(answer.text).text


def test_a_link_of_another_site_is_followed_once_more_with_the_cookie(site: Site) -> None:
    someone = Browser(site, "")
    someone.http.cookies.clear()
    answer = someone.get("/devices/d0?a=1&b=2", **{"Sec-Fetch-Site": "cross-site"})
    refresh = {"http-equiv": "refresh", "content": "0; url=/ui/devices/d0?a=1&b=2"}
    assert refresh in Parsed(answer.text).all("meta")


def test_a_theme_is_remembered(site: Site) -> None:
    someone = Browser(site, site.tokens["viewer"])
    assert someone.page("/fleet").all("html")[0]["data-theme"] == "system"
    answer = someone.post("/theme", {"theme": "dark", "next": "/ui/fleet?after=d1"})
    assert answer.headers["Location"] == "/ui/fleet?after=d1"
    assert someone.page("/fleet").all("html")[0]["data-theme"] == "dark"
    someone.post("/theme", {"theme": "<pink>"})
    assert someone.page("/fleet").all("html")[0]["data-theme"] == "system"
