"""The demo pages in a headless Chromium: steps arrive, the slider goes back, stop cancels, a wrong value is said in a sentence."""

from __future__ import annotations

import shutil

import pytest
from live_server import live_server, metric, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra test-services")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(served):
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        assert page.errors == []
        browser.close()


def test_simple_shows_steps_and_scrubs(page, served):
    page.goto(str(served.base_url))
    # The page has filled in what the profile says.
    wait_until(lambda: page.get_attribute("#steps", "max") is not None)
    page.fill("#prompt", "the user is")
    page.fill("#steps", "5")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    wait_until(lambda: page.inner_text("#answer") != "")
    steps = int(page.get_attribute("#slider", "max")) + 1
    assert 1 < steps <= 5 and page.locator("#plot rect").count() == steps and "NFE" in page.inner_text("#numbers")
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.inner_text("#where") == "step 1 of 5"
    page.click("#forward")
    assert page.inner_text("#where") == "step 2 of 5"


def test_stop_cancels_on_the_server(page, served):
    page.goto(f"{served.base_url}/advanced")
    wait_until(lambda: page.locator("#set-steps").count() == 1)
    page.click("summary >> nth=0")
    before = metric(served, "lad_requests_cancelled_total")
    for name, value in {"set-steps": "400", "set-max_new_tokens": "400", "prompt": "the user is"}.items():
        page.fill(f"#{name}", value)
    page.uncheck("#set-early_stop")
    page.click("#go")
    wait_until(lambda: page.locator(".token").count() > 0)
    page.click("#stop")
    wait_until(lambda: metric(served, "lad_requests_cancelled_total") == before + 1)
    assert page.is_enabled("#go") and "stopped" in page.inner_text("#numbers")


def test_a_wrong_value_is_said_and_the_next_request_works(page):
    page.fill("#set-steps", "3")
    page.fill("#set-temperature", "500")
    page.click("#go")
    wait_until(lambda: page.inner_text("#error") != "")
    assert page.inner_text("#error") == "temperature is 500, expected less than or equal to 100."
    page.fill("#set-temperature", "1")
    page.click("#go")
    wait_until(lambda: page.inner_text("#answer") != "")
    assert page.inner_text("#error") == ""


def test_the_conversation_keeps_what_was_asked_and_what_is_typed_meanwhile(page, served):
    page.goto(f"{served.base_url}/advanced")
    wait_until(lambda: page.locator("#set-steps").count() == 1)
    page.click("summary >> nth=0")
    for name, value in {"set-steps": "4", "set-max_new_tokens": "4", "pause": "0.3", "prompt": "the user is"}.items():
        page.fill(f"#{name}", value)
    page.uncheck("#set-early_stop")
    page.check("#talk")
    page.click("#go")
    wait_until(lambda: page.locator(".token").count() > 0)
    page.fill("#prompt", "and the next")
    wait_until(lambda: page.locator("#turns li").count() == 2)
    assert page.inner_text("#turns li >> nth=0") == "user: the user is" and page.input_value("#prompt") == "and the next"
    page.fill("#set-eos_bias", "-10000")
    page.click("#go")
    wait_until(lambda: "empty" in page.inner_text("#answer"))
    assert page.locator("#turns li").count() == 2, "an empty answer is no turn"


def test_a_phone_needs_no_sideways_scrolling(page, served):
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", "/advanced"):
        page.goto(f"{served.base_url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_with_keys_the_page_starts_when_one_is_entered(page, engine_of):
    key = "0123456789abcdef"
    with live_server(engine_of(), has_demo=True, api_keys=(key,)) as client:
        page.goto(str(client.base_url))
        wait_until(lambda: page.is_visible("#key"))
        assert page.is_disabled("#go") and page.get_attribute("#steps", "max") is None
        page.fill("#key", "not the right one")
        page.keyboard.press("Enter")
        wait_until(lambda: "no valid API key" in page.inner_text("#error"))
        page.fill("#key", key)
        page.keyboard.press("Enter")
        wait_until(lambda: page.get_attribute("#steps", "max") is not None)
        assert page.inner_text("#error") == "" and page.is_enabled("#go")
        page.fill("#prompt", "the user")
        page.fill("#steps", "3")
        page.click("#go")
        wait_until(lambda: "NFE" in page.inner_text("#numbers"))
