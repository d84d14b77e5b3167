"""The review page in a real browser: what is drawn and pressed there lands in the catalogue."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from bowerbird_server.batches.batch import build_batch
from bowerbird_server.catalogue.labels import labels_of, newest_label
from bowerbird_testing.scene_frames import SceneSite
from bowerbird_wire.messages import WireDetection

if TYPE_CHECKING:
    from conftest import WebServer

pytestmark = pytest.mark.browser

CAR = WireDetection((40.0, 50.0, 90.0, 80.0), 0.9, "car")
PERSON = WireDetection((200.0, 100.0, 220.0, 150.0), 0.6, "person")
HINT = WireDetection((120.0, 180.0, 160.0, 220.0), 0.12, "cyclist")


def open_review(page: Page) -> None:
    page.goto("/review")
    page.wait_for_selector("#canvas g.box")


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on the picture, in pixels of the stored image (320 x 240)."""
    area = page.locator("#canvas").bounding_box()
    assert area is not None
    points = [(area["x"] + x / 320 * area["width"], area["y"] + y / 240 * area["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline, "did not come true within 15 s"
        time.sleep(0.05)


def test_a_box_drawn_by_mouse_and_given_a_class_by_key_lands_in_the_catalogue(page: Page, site: SceneSite) -> None:
    """Draw, press 3, press Enter: the label holds the kept pre-labels and the new box, and says what it took."""
    (frame,) = site.send(0, detections=(CAR, PERSON, HINT))
    build_batch(site.cat, frames=1)
    open_review(page)
    drag(page, (240, 30), (300, 90))
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.locator("#save-state")).to_have_text("All saved")
    label = newest_label(site.cat, frame)
    assert label is not None
    assert label["author"] == "Ada"
    assert [box["class"] for box in label["boxes"]] == ["car", "person", "cyclist"]
    assert label["boxes"][0]["box_xyxy"] == list(CAR.box_xyxy)
    assert label["boxes"][2]["box_xyxy"] == pytest.approx([240, 30, 300, 90], abs=1.5)
    assert label["edits"] == {"kept": 2, "moved": 0, "added": 1, "deleted": 0, "reclassed": 0}
    assert label["seconds"] > 0
    expect(page.get_by_text("Nothing waits for a label")).to_be_visible()


def test_the_keyboard_alone_is_enough(page: Page, site: SceneSite) -> None:
    """Delete one pre-label, move and resize another, take a hint, make a box, undo once, accept: all without a mouse."""
    (frame,) = site.send(0, detections=(CAR, PERSON, HINT))
    build_batch(site.cat, frames=1)
    open_review(page)
    press = page.keyboard.press
    press("Tab")  # the car
    press("x")
    press("Tab")  # the person
    for _ in range(3):
        press("ArrowRight")
    press("Control+ArrowDown")
    press("Shift+ArrowRight")
    press("2")
    press("Tab")  # the hint
    press("Space")
    press("n")
    press("5")
    press("n")
    press("u")
    press("Escape")
    press("a")
    until(lambda: newest_label(site.cat, frame))
    label = newest_label(site.cat, frame)
    assert label is not None
    boxes = {box["class"]: box["box_xyxy"] for box in label["boxes"]}
    assert len(label["boxes"]) == 3
    assert boxes["person"] == [203, 110, 224, 160]
    assert boxes["cyclist"] == list(HINT.box_xyxy)
    assert boxes["fox"] == [128, 96, 192, 144]
    assert label["edits"] == {"kept": 0, "moved": 1, "added": 2, "deleted": 1, "reclassed": 0}


def test_boxes_are_moved_and_resized_by_mouse_and_hints_are_not_saved(page: Page, site: SceneSite) -> None:
    """Dragging a box moves it, dragging a corner resizes it; an untouched hint stays out of the label."""
    (frame,) = site.send(0, detections=(CAR, HINT))
    build_batch(site.cat, frames=1)
    open_review(page)
    drag(page, (60, 60), (80, 70))
    drag(page, (110, 90), (130, 110))
    page.get_by_role("button", name="Accept").click()
    until(lambda: newest_label(site.cat, frame))
    label = newest_label(site.cat, frame)
    assert label is not None
    (box,) = label["boxes"]
    assert box["box_xyxy"] == pytest.approx([60, 60, 130, 110], abs=1.5)


def test_rejecting_and_correcting(page: Page, site: SceneSite) -> None:
    """R rejects; the frame's page leads back to the review page, whose label becomes the next revision."""
    (frame,) = site.send(0, detections=(CAR,))
    build_batch(site.cat, frames=1)
    open_review(page)
    page.keyboard.press("r")
    until(lambda: newest_label(site.cat, frame))
    page.goto(f"/frames/{frame}")
    page.get_by_role("link", name="Correct the label").click()
    page.wait_for_selector("#stage:not([hidden])")
    page.keyboard.press("n")
    page.keyboard.press("1")
    page.keyboard.press("a")
    until(lambda: len(labels_of(site.cat, frame)) == 2)
    assert [label["verdict"] for label in labels_of(site.cat, frame)] == ["rejected", "labelled"]


def test_nothing_is_lost_while_the_server_is_away(page: Page, site: SceneSite, server: WebServer) -> None:
    """Frames are labelled on while saves fail; they are shown as unsaved and land once, when the server is back."""
    ids = site.send(0, 10, 20, detections=(CAR,))
    build_batch(site.cat, frames=3)
    open_review(page)
    page.wait_for_load_state("networkidle")
    server.stop()
    page.keyboard.press("a")
    page.keyboard.press("a")
    expect(page.locator("#save-state")).to_contain_text("2 not saved yet")
    server.start()
    expect(page.locator("#save-state")).to_have_text("All saved")
    assert sorted(len(labels_of(site.cat, frame)) for frame in ids) == [0, 1, 1]


def test_leaving_with_unsaved_work_warns(page: Page, site: SceneSite) -> None:
    """A drawn box that is not accepted yet makes the browser ask before the page is left."""
    site.send(0, detections=(CAR,))
    build_batch(site.cat, frames=1)
    open_review(page)
    drag(page, (240, 30), (300, 90))
    asked: list[str] = []

    def stay(dialog: object) -> None:
        asked.append(dialog.type)  # type: ignore[attr-defined]
        dialog.accept()  # type: ignore[attr-defined]

    page.on("dialog", stay)
    page.goto("/")
    assert asked == ["beforeunload"]


def test_a_class_is_added_and_help_is_shown(page: Page, site: SceneSite) -> None:
    """A new class is typed in beside the picture; the question mark shows the keys and Escape closes them."""
    site.send(0, detections=(CAR,))
    build_batch(site.cat, frames=1)
    open_review(page)
    page.locator("#class-name").fill("deer")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#classes")).to_contain_text("deer")
    page.locator("#canvas").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_every_page_opens_without_a_violation(page: Page, site: SceneSite) -> None:
    """Dashboard, frames, a frame, an unknown frame: no script error and nothing that the policy forbids."""
    frame, _ = site.send(0, 10)
    build_batch(site.cat, frames=1)
    for path in ("/", "/frames", "/frames?state=received", f"/frames/{frame}", "/frames/" + "0" * 64, "/review"):
        page.goto(path)
        expect(page.locator("main")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("/", "/frames", f"/frames/{frame}", "/review"):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        accept = page.locator("#accept").bounding_box() if path == "/review" else None
        assert accept is None or accept["x"] + accept["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} scrolls sideways on a phone"


def test_the_dashboard_stays_fresh_by_itself(page: Page, site: SceneSite) -> None:
    """Frames that arrive while the dashboard is open are counted there without a reload."""
    expect(page.locator("#tiles")).to_contain_text("0frames received")
    site.send(0, 10)
    expect(page.locator("#tiles")).to_contain_text("2frames received")


def test_new_frames_appear_by_themselves_when_the_queue_was_empty(page: Page, site: SceneSite) -> None:
    """An annotator who waits at the end of the queue is shown the next batch as soon as it is opened."""
    site.send(0, detections=(CAR,))
    build_batch(site.cat, frames=1)
    open_review(page)
    page.keyboard.press("a")
    expect(page.get_by_text("Nothing waits for a label")).to_be_visible()
    (frame,) = site.send(10, detections=(PERSON,))
    build_batch(site.cat, frames=1)
    expect(page.locator("#boxes")).to_contain_text("person")
    page.keyboard.press("a")
    until(lambda: newest_label(site.cat, frame))


def test_a_class_that_only_the_model_knows_is_offered_for_the_list(page: Page, site: SceneSite) -> None:
    """A pre-label of a class that is not in the list is not saved silently nor lost: one button adds it."""
    (frame,) = site.send(0, detections=(WireDetection((40.0, 50.0, 90.0, 80.0), 0.9, "zebra"),))
    build_batch(site.cat, frames=1)
    open_review(page)
    page.keyboard.press("a")
    expect(page.locator("#problems")).to_contain_text("zebra is not in the class list")
    page.get_by_role("button", name="Add zebra").click()
    expect(page.locator("#classes")).to_contain_text("zebra")
    page.get_by_role("button", name="Accept").click()
    until(lambda: newest_label(site.cat, frame))
    label = newest_label(site.cat, frame)
    assert label is not None
    assert label["classes_reviewed"][-1] == "zebra"


def test_the_next_frames_are_shown_from_memory_while_the_link_is_cut(page: Page, site: SceneSite) -> None:
    """Four frames are fetched ahead, and no answer is waited for: with the link cut, four more frames are shown whole."""
    site.send(*range(0, 60, 10), detections=(CAR,))
    build_batch(site.cat, frames=6)
    open_review(page)
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    for _ in range(4):
        before = page.locator("#image").get_attribute("src")
        page.keyboard.press("a")
        expect(page.locator("#image")).not_to_have_attribute("src", before or "")
        until(lambda: page.locator("#image").evaluate("image => image.complete && image.naturalWidth === 320"))
    expect(page.locator("#save-state")).to_contain_text("4 not saved yet")
    page.context.set_offline(False)
    expect(page.locator("#save-state")).to_have_text("All saved")
