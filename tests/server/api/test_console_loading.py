"""The console's tabs whose scripts come late, twice, or not at all, in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from browsers import browser, sync_api
from server_process import LiveServer

__all__ = ["browser"]


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    yield page
    page.close()


def choose(page: Any, tab: str) -> None:
    page.locator(f'nav a[href="#{tab}"]').click()


def is_there(page: Any, tab: str) -> None:
    """Wait until the tab is the only one that is there."""
    sync_api.expect(page.locator(f"#tab-{tab}")).to_be_visible()
    sync_api.expect(page.locator(".tab:visible")).to_have_count(1)
    sync_api.expect(page.locator('nav a[aria-current="page"]')).to_have_attribute("href", f"#{tab}")


def hold(page: Any, path: str) -> list[Any]:
    """Hold the answers to requests for `path`; they are in the list, to go on."""
    held: list[Any] = []
    page.route(path, lambda route: held.append(route))
    return held


def test_tab_chosen_twice_before_it_is_loaded_opens_once(page: Any, server: LiveServer) -> None:
    asked: list[str] = []
    page.on("request", lambda each: asked.append(each.url))
    page.goto(f"{server.url}/#try")
    is_there(page, "try")
    held = hold(page, "**/journal.js")
    with page.expect_request("**/journal.js"):
        choose(page, "journal")
    choose(page, "try")
    is_there(page, "try")
    choose(page, "journal")
    held[0].continue_()
    is_there(page, "journal")
    page.wait_for_load_state("networkidle")
    assert len([url for url in asked if "/v1/journal?" in url and "limit=200" in url]) == 1


def test_stream_of_events_ends_with_the_visit(page: Any, server: LiveServer) -> None:
    page.goto(f"{server.url}/#now")
    page.wait_for_selector("#figures dd")
    with (
        page.expect_event("requestfailed", lambda each: each.url.endswith("/v1/events")),
        page.expect_request("**/v1/events"),
    ):
        choose(page, "try")
        choose(page, "now")
    is_there(page, "now")


def test_script_of_a_lost_server_comes_once_it_is_back(page: Any, server: LiveServer) -> None:
    page.goto(f"{server.url}/#try")
    is_there(page, "try")
    page.route("**/*", lambda route: route.abort())
    with page.expect_event("requestfailed", lambda each: each.url.endswith("/models.js")):
        choose(page, "models")
    sync_api.expect(page.locator("#tab-try")).to_be_visible()
    page.unroute("**/*")
    is_there(page, "models")
    page.wait_for_selector("#model-cards > *")


def test_tab_opened_before_the_first_is_known_stays(page: Any, server: LiveServer) -> None:
    held = hold(page, "**/v1/cameras")
    with page.expect_request("**/v1/cameras"):
        page.goto(server.url, wait_until="commit")
    choose(page, "journal")
    is_there(page, "journal")
    with page.expect_response("**/v1/cameras"):
        held[0].continue_()
    page.wait_for_load_state("networkidle")
    is_there(page, "journal")


def test_back_and_forward_open_the_tabs_of_their_addresses(page: Any, server: LiveServer) -> None:
    page.goto(server.url)
    is_there(page, "try")
    choose(page, "models")
    is_there(page, "models")
    page.go_back()
    is_there(page, "try")
    page.go_forward()
    is_there(page, "models")
