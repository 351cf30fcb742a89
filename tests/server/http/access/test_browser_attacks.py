"""Pages of other origins in a real browser, against a server that is open, and one that asks for
keys where a person is signed in."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from browsers import CHROMIUM, FLAGS, sync_api
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, answering, live_server

from server.store.keys import read_keys

NAME = "evil.example"
# What the page of another origin tries: it can't read what is answered, but might change something.
ATTACK = """async (url) => {
  const send = (path, method, body) => fetch(url + path, {
    method, body, mode: "no-cors", credentials: "include",
  }).catch(() => null);
  await send("/v1/keys", "POST", '{"name":"evil","rights":["admin"]}');
  await send("/v1/models/colors/load", "POST");
  await send("/v1/session", "POST", '{"key":"ls_x"}');
  const read = await fetch(url + "/v1/settings", {credentials: "include"})
    .then((answer) => answer.text(), () => "unread");
  const picture = await new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve("shown");
    image.onerror = () => resolve("not shown");
    image.src = url + "/v1/now/picture";
  });
  const frame = document.createElement("iframe");
  frame.name = "answer";
  const form = document.createElement("form");
  Object.assign(form, {method: "POST", action: url + "/v1/keys", target: "answer"});
  form.enctype = "text/plain";
  const field = document.createElement("input");
  field.name = '{"name":"form","rights":["admin"],"rate":"';
  field.value = '"}';
  form.append(field);
  document.body.append(frame, form);
  const loaded = new Promise((resolve) => { frame.onload = resolve; });
  form.submit();
  await loaded;
  return [read, picture];
}"""
# The statuses that a page gets of its own origin, which the name of this server became.
REBOUND = """async () => {
  const asked = [
    ["GET", "/v1/settings"], ["GET", "/v1/now"], ["GET", "/v1/events"], ["POST", "/v1/keys"],
    ["POST", "/v1/models/colors/load"],
  ];
  const statuses = asked.map(([method, path]) => fetch(path, {method, body: method === "POST"
    ? '{"name":"evil","rights":["admin"]}' : undefined}).then((answer) => answer.status));
  return Promise.all(statuses);
}"""


class Blank(BaseHTTPRequestHandler):
    """A page of another server, without a policy of its own."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium for which `NAME` leads to this machine, as after a rebinding."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    rules = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.jsonl"


@pytest.fixture(scope="module")
def server(colors: Path, keys_file: Path) -> Iterator[LiveServer]:
    """Open at first; the second test makes its first key."""
    with live_server(models=colors, keys_file=keys_file) as server:
        yield server


def refusals(server: LiveServer) -> int:
    """How many lines of the log are of requests that were refused for their origin."""
    return sum(line.get("status") == 403 for line in list(server.lines))


def attack(page: Any, server: LiveServer) -> None:
    """From another port of this host, which is the same site, and from another site."""
    loads = sum(line["event"] == "model changed" for line in server.lines)
    refused = refusals(server)
    with answering(Blank) as url:
        for origin in (url, url.replace("127.0.0.1", NAME)):
            page.goto(origin)
            assert page.evaluate(ATTACK, server.url) == ["unread", "not shown"], origin
            # The attack did reach the server: by a session, with the cookie of the same site.
            if origin == url:
                await_that(lambda: refusals(server) > refused, "a refusal")
    assert sum(line["event"] == "model changed" for line in server.lines) == loads


def test_other_origins_reach_nothing_without_keys(
    browser: Any, server: LiveServer, keys_file: Path
) -> None:
    server.recognize(encode(plain((255, 0, 0)), "PNG"))
    page = browser.new_page()
    attack(page, server)
    page.goto(f"http://{NAME}:{server.port}/")
    assert "not known as" in page.content()
    assert page.evaluate(REBOUND) == [403] * 5
    assert not keys_file.exists()
    page.close()


def test_other_origins_reach_nothing_of_a_session(
    browser: Any, server: LiveServer, keys_file: Path
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector('#health[data-state="ready"]')
    own = """async (body) => (await fetch("v1/keys", {method: "POST", body})).json()"""
    made = page.evaluate(own, '{"name":"office","rights":["recognize","admin"]}')
    page.reload()
    page.get_by_label("Key", exact=True).fill(made["key"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("#samples, #sign-out:not([hidden])")
    sync_api.expect(page.locator("#who")).to_have_text("office")
    other = context.new_page()
    attack(other, server)
    other.goto(f"http://{NAME}:{server.port}/")
    other.wait_for_selector("#key-form:not([hidden])")
    assert other.evaluate(REBOUND) == [401] * 5
    assert [key.name for key in read_keys(keys_file)] == ["office"]
    settings = """async () => (await fetch("v1/settings")).status"""
    assert page.evaluate(settings) == 200, "the session is still there"
    context.close()
