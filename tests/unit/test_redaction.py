"""Redaction covers what it must, says where, leaves the rest alone, and keeps nothing that it could not cover."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_agent.capture.camera_config import CameraConfig, RedactConfig
from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.capture.framing import FILL_GRAY, Framing
from bowerbird_agent.config import parse_config
from bowerbird_agent.errors import ConfigError, MaskError, RedactionError
from bowerbird_agent.selection.choose import Judgement
from bowerbird_agent.selection.novelty import HASH_BYTES, Fingerprint
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.redaction import Redactor, cover, grown, redactors_after
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_models.detections import Detections
from bowerbird_wire import codec
from bowerbird_wire.messages import FrameHeader, FrameMessage

NAMES = ("car", "person")


def redactor(**options: Any) -> Redactor:
    return Redactor("gate", RedactConfig(**{"classes": ("person",), **options}))


def noise(width: int = 320, height: int = 240, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def seen(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


def test_a_person_is_covered_with_a_margin_and_a_car_is_not() -> None:
    image = noise()
    kept, regions = redactor().apply(image, seen((100, 60, 140, 160, 0.06, 1), (10, 10, 60, 50, 0.9, 0)), NAMES)
    assert [region.box_xyxy for region in regions] == [(96, 50, 144, 170)]
    assert (kept[50:170, 96:144] == FILL_GRAY).all()
    untouched = np.ones(image.shape[:2], bool)
    untouched[50:170, 96:144] = False
    assert (kept[untouched] == image[untouched]).all()


def test_the_model_still_sees_the_picture_as_it_was() -> None:
    image = noise()
    before = image.copy()
    redactor().apply(image, seen((100, 60, 140, 160, 0.5, 1)), NAMES)
    assert (image == before).all()


def test_a_person_who_looks_a_little_more_like_a_car_is_covered() -> None:
    base = seen((100, 60, 140, 160, 0.5, 0))
    both = Detections(base.boxes_xyxy, base.scores, base.class_ids, class_scores=np.array([[0.5, 0.2]], np.float32))
    assert [region.class_name for region in redactor().apply(noise(), both, NAMES)[1]] == ["person"]


@pytest.mark.parametrize("detections", [None, seen((np.nan, 1, 2, 3, 0.9, 1))])
def test_a_picture_of_which_nobody_knows_what_to_cover_is_not_kept(detections: Detections | None) -> None:
    with pytest.raises(RedactionError, match="not kept"):
        redactor().apply(noise(), detections, NAMES)


def test_a_model_without_the_class_has_no_picture_kept_not_even_an_empty_one() -> None:
    with pytest.raises(RedactionError, match="does not know face"):
        redactor(classes=("person", "face")).apply(noise(), Detections.empty(), NAMES)


def test_a_redactor_that_crashes_has_no_picture_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise cv2.error("no memory")

    monkeypatch.setattr("bowerbird_agent.storing.redaction.cover", broken)
    with pytest.raises(RedactionError, match="no memory"):
        redactor().apply(noise(), seen((100, 60, 140, 160, 0.5, 1)), NAMES)


@given(
    st.tuples(st.floats(-50, 400), st.floats(-50, 400), st.floats(-50, 400), st.floats(-50, 400)),
    st.floats(0, 1),
    st.integers(4, 330),
    st.integers(4, 330),
)
def test_a_grown_box_lies_in_the_picture_and_contains_what_the_box_had_of_it(
    corners: tuple[float, float, float, float], margin: float, width: int, height: int
) -> None:
    left, right = sorted(corners[::2])
    top, bottom = sorted(corners[1::2])
    x0, y0, x1, y1 = grown((left, top, right, bottom), margin, width, height)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert x0 <= max(0.0, min(left, width - 1))
    assert x1 >= min(float(width), right)
    assert y0 <= max(0.0, min(top, height - 1))
    assert y1 >= min(float(height), bottom)


@pytest.mark.parametrize("method", ["fill", "pixelate", "blur"])
@pytest.mark.parametrize("side", [3, 8, 24, 200])
def test_two_pictures_that_differ_in_detail_only_cannot_be_told_apart_afterwards(method: str, side: int) -> None:
    """What a mosaic keeps is the mean of each tile; that is all there may be, also behind a blur that somebody undoes."""
    first = np.zeros((side, side, 3), np.uint8)
    first[::2] = 255
    second = np.zeros((side, side, 3), np.uint8)
    second[:, ::2] = 255
    for image in (first, second):
        cover(image, (0, 0, side, side), method)
    # Rows and columns of black and white have the same mean, but for the odd one at an edge.
    assert np.abs(first.astype(int) - second.astype(int)).max() <= (255 // 4 if side < 24 else 16)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) <= (1 if method == "fill" else side * side // 4 + 1)


def test_a_blurred_region_holds_no_more_than_its_mosaic() -> None:
    """Two faces with the same mosaic give the same blur, byte for byte: undoing the blur leads to the mosaic at most."""
    rng = np.random.default_rng(3)
    first = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
    second = first.copy()
    for y in range(0, 96, 16):
        for x in range(0, 96, 16):  # the pixels of each tile in another order
            tile = second[y : y + 16, x : x + 16].reshape(-1, 3)
            second[y : y + 16, x : x + 16] = rng.permutation(tile).reshape(16, 16, 3)
    assert (first != second).any()
    for image in (first, second):
        cover(image, (0, 0, 96, 96), "blur")
    assert (first == second).all()


def encoded(method: str, *, long_side: int = 160) -> tuple[FrameHeader, NDArray[np.uint8]]:
    image = np.full((240, 320, 3), 90, np.uint8)
    image[60:160, 100:140] = (255, 0, 255)
    encoder = FrameEncoder(
        ImageConfig(long_side=long_side), device="cam-01", boot_id="b", redactors={"gate": redactor(method=method)}
    )
    judgement = Judgement(True, "policy", 0.5, 0.5, (), {}, 0.1, Fingerprint(np.zeros(HASH_BYTES, np.uint8)))
    frame = Frame(image, "gate", 1, 1000, 1)
    header, jpeg = encoder.frame(frame, judgement, seen((100, 60, 140, 160, 0.5, 1)), class_names=NAMES, model_digest="m" * 64)
    assert codec.decode_frame(codec.encode_frame(FrameMessage(header, jpeg))).header == header
    return header, np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)


@pytest.mark.parametrize("long_side", [160, 320])
def test_nothing_of_the_object_is_in_the_jpeg_and_the_header_says_where_it_was(long_side: int) -> None:
    header, shown = encoded("fill", long_side=long_side)
    assert (shown[..., 0].astype(int) - shown[..., 1] < 30).all(), "magenta has bled out of the covered region"
    (redaction,) = header.redacted
    scale = long_side / 320
    assert (redaction.class_name, redaction.method) == ("person", "fill")
    assert redaction.box_xyxy[0] <= 96 * scale
    assert redaction.box_xyxy[3] >= 170 * scale


def test_what_is_stored_holds_no_metadata_of_the_source() -> None:
    image = noise()
    encoder = FrameEncoder(ImageConfig(), device="cam-01", boot_id="b")
    judgement = Judgement(True, "policy", 0.5, 0.5, (), {}, 0.1, Fingerprint(np.zeros(HASH_BYTES, np.uint8)))
    _, jpeg = encoder.frame(
        Frame(image, "gate", 1, 1000, 1), judgement, Detections.empty(), class_names=NAMES, model_digest="m" * 64
    )
    markers = []
    at = 2
    while jpeg[at + 1] != 0xDA:
        markers.append(jpeg[at + 1])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    assert not {marker for marker in markers if 0xE1 <= marker <= 0xEF or marker == 0xFE}, "no EXIF, no XMP, no comment"


def test_a_camera_that_leaves_the_configuration_takes_its_redactor_along_only_when_it_comes_back_without() -> None:
    """Its last frame may be in the model while the configuration changes."""
    before = {"gate": redactor(), "yard": redactor()}
    gone = redactors_after(before, [CameraConfig("gate", "synthetic:")])
    assert gone == {"yard": before["yard"]}


CONFIG = """
[device]
id = "cam-01"
site = "site"
[broker]
host = "127.0.0.1"
[[cameras]]
name = "gate"
source = "synthetic:"
redact = {{ {} }}
"""


def test_redaction_is_configured_per_camera(tmp_path: Any) -> None:
    config = parse_config(CONFIG.format('classes = ["person", "face"], method = "blur", margin = 0.2'), tmp_path)
    assert config.cameras[0].redact == RedactConfig(("person", "face"), "blur", 0.2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("classes = []", "classes is empty"),
        ('classes = ["person"], method = "smear"', "must be one of fill, pixelate, blur"),
        ('classes = ["person"], margin = -0.1', "margin"),
        ('classes = ["person"], confidence = 0.0', "confidence"),
        ('class = ["person"]', "did you mean 'classes'"),
    ],
)
def test_a_slip_in_the_redaction_stops_the_agent_instead_of_redacting_less(text: str, fault: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_config(CONFIG.format(text), tmp_path)


def framing(size: tuple[int, int]) -> Framing:
    masks = (((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),)
    return Framing(CameraConfig("gate", "synthetic:", masks=masks, masks_size=size).to_source())


@pytest.mark.parametrize(("width", "height"), [(640, 360), (1920, 1080), (1920, 1088)])
def test_masks_fit_every_resolution_of_the_shape_they_were_drawn_on(width: int, height: int) -> None:
    image = framing((1280, 720)).apply(Frame(noise(width, height), "gate", 1, 1, 1)).image_bgr
    assert (image[:, : width // 2] == FILL_GRAY).all()


@pytest.mark.parametrize(("width", "height"), [(640, 480), (720, 1280), (1280, 960)])
def test_pictures_of_another_shape_than_the_masks_were_drawn_on_stop_the_camera(width: int, height: int) -> None:
    with pytest.raises(MaskError, match="drawn on 1280x720"):
        framing((1280, 720)).apply(Frame(noise(width, height), "gate", 1, 1, 1))
