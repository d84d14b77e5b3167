"""The page of devices in a real browser: a board that waits is let in, another is shut out."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_testing.scene_frames import SceneSite

pytestmark = pytest.mark.browser


def test_a_board_that_waits_is_let_in_and_another_shut_out_with_a_reason(page: Page, site: SceneSite) -> None:
    rows.add_pending(site.cat, "cam-07", site="demo", label="north gate", serial="SN-7", actor="test")
    with site.cat.transaction():
        rows.alarm(site.cat, "cam-07", "two devices say the same serial number")
    page.goto("/")
    page.get_by_role("link", name="cam-07").first.click()  # out of the dashboard's alarm
    expect(page.locator("#alarms")).to_contain_text("the same serial number")
    waiting = page.locator("#device-cam-07")
    waiting.get_by_text("Approve", exact=True).click()
    waiting.get_by_role("button", name="Approve cam-07").click()
    expect(page.locator("#device-cam-07 .chip")).to_have_text("active")
    known = page.locator("#device-cam-01")
    known.get_by_text("Suspend", exact=True).click()
    known.get_by_label("Why").first.fill("stolen")
    known.get_by_role("button", name="Suspend cam-01").click()
    expect(page.locator("#device-cam-01")).to_contain_text("stolen")
    assert [fleet.get(site.cat, name)["state"] for name in ("cam-07", "cam-01")] == ["active", "suspended"]
