"""Cameras: films, folders and synthetic scenes give the same frames with the same identity whenever they run."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_agent.capture.capture import Camera, Frame, Segments, Source, open_camera, source_key, without_password
from bowerbird_agent.errors import CameraError, SourceError
from bowerbird_models.scenes import SceneStream

FPS = 10.0


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """40 frames at 10 a second; frame n is about 6n bright."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (64, 48))
    for n in range(40):
        writer.write(np.full((48, 64, 3), 6 * n, np.uint8))
    writer.release()
    os.utime(path, (1_000_000, 1_000_000))
    return path


def all_of(camera: Camera, limit: int = 1000) -> list[Frame]:
    frames = []
    while len(frames) < limit and (frame := camera.read()) is not None:
        frames.append(frame)
    camera.close()
    return frames


def test_a_film_gives_every_frame_once_on_its_own_timeline(film: Path) -> None:
    frames = all_of(open_camera(Source("gate", str(film))))
    assert [frame.sequence for frame in frames] == list(range(40))
    assert [frame.captured_at_ms for frame in frames] == [1_000_000_000 + 100 * n for n in range(40)]
    assert all(abs(float(frame.image_bgr.mean()) - 6 * frame.sequence) < 4 for frame in frames)


def test_a_film_starts_when_the_configuration_says(film: Path) -> None:
    frame = open_camera(Source("gate", str(film), start_at_ms=5000)).read()
    assert frame is not None
    assert frame.captured_at_ms == 5000


def test_a_range_keeps_the_numbers_and_the_pictures_of_the_film(film: Path) -> None:
    frames = all_of(open_camera(Source("gate", str(film), first_frame=10, last_frame=12)))
    assert [frame.sequence for frame in frames] == [10, 11, 12]
    assert abs(float(frames[0].image_bgr.mean()) - 60) < 4


def test_a_looping_film_repeats_sequences_and_times(film: Path) -> None:
    frames = all_of(open_camera(Source("gate", str(film), last_frame=4, loop=True)), limit=12)
    assert [frame.sequence for frame in frames] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert frames[0].captured_at_ms == frames[5].captured_at_ms


def test_two_agents_share_a_film_without_a_gap_or_an_overlap(film: Path) -> None:
    shares = [
        [frame.sequence for frame in all_of(open_camera(Source("gate", str(film), take=Segments.parse(text))))]
        for text in ("1s/2s", "1s/2s+1s")
    ]
    assert shares[0] == [*range(10), *range(20, 30)]
    assert sorted(shares[0] + shares[1]) == list(range(40))


@pytest.mark.parametrize("text", ["", "10s", "0s/10s", "20s/10s", "10s/20s+15s", "ten/20s"])
def test_nonsense_segments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="take is"):
        Segments.parse(text)


def test_broken_frames_inside_a_film_are_counted_and_the_others_come(film: Path) -> None:
    content = bytearray(film.read_bytes())
    starts = [i for i in range(len(content) - 8) if content[i : i + 4] == b"00dc" and content[i + 8 : i + 10] == b"\xff\xd8"]
    for start, end in list(itertools.pairwise(starts))[5:8]:
        content[start + 8 : end] = bytes(end - start - 8)
    film.write_bytes(content)
    camera = open_camera(Source("gate", str(film)))
    frames = all_of(camera)
    assert [frame.sequence for frame in frames] == [*range(5), *range(8, 40)], "the others keep their numbers"
    assert camera.trouble == "3 frames do not decode"


def test_a_film_that_is_cut_off_says_so(film: Path) -> None:
    content = film.read_bytes()
    film.write_bytes(content[: len(content) // 2])
    camera = open_camera(Source("gate", str(film)))
    frames = all_of(camera)
    assert 0 < len(frames) < 40
    assert camera.trouble == f"the film gave {len(frames)} of the 40 frames that it announces"


@pytest.mark.parametrize(("content", "says"), [(b"", "0 bytes"), (b"no film at all" * 100, "no film")], ids=["empty", "text"])
def test_a_file_that_is_no_film_is_a_clear_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.avi"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says):
        open_camera(Source("gate", str(path)))


def test_a_range_without_frames_is_a_clear_error(film: Path) -> None:
    camera = open_camera(Source("gate", str(film), first_frame=100))
    with pytest.raises(SourceError, match="none of the"):
        camera.read()


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_camera(Source("gate", str(tmp_path / "none.avi")))


def test_an_absent_device_says_where_to_look() -> None:
    with pytest.raises(CameraError, match="group `video`"):
        open_camera(Source("gate", "/dev/video97"))


def test_a_folder_gives_its_pictures_by_name_and_skips_the_broken_one(tmp_path: Path) -> None:
    for n in (2, 0, 1):
        cv2.imwrite(str(tmp_path / f"{n}.png"), np.full((20, 30, 3), 50 * n, np.uint8))
    (tmp_path / "1b.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("x")
    camera = open_camera(Source("gate", str(tmp_path)))
    frames = all_of(camera)
    assert [int(frame.image_bgr.mean()) for frame in frames] == [0, 50, 100]
    assert [frame.sequence for frame in frames] == [0, 1, 3]
    assert camera.trouble == "1 pictures do not decode"


def test_an_empty_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        open_camera(Source("gate", str(tmp_path)))


def test_a_synthetic_camera_is_the_scene_stream_and_its_numbers_are_the_frames() -> None:
    camera = open_camera(Source("gate", "synthetic:?seed=3&camera=1&night_from=2&frames=4&fps=2"))
    frames = all_of(camera)
    stream = SceneStream(3, 1, night_from=2)
    assert [frame.sequence for frame in frames] == [0, 1, 2, 3]
    assert all(np.array_equal(frame.image_bgr, stream.render(frame.sequence)[0]) for frame in frames)
    assert frames[1].captured_at_ms - frames[0].captured_at_ms == 500


def test_a_synthetic_camera_goes_on_behind_its_last_frame() -> None:
    camera = open_camera(Source("gate", "synthetic:?seed=3", resume_after=41))
    frame = camera.read()
    assert frame is not None
    assert frame.sequence == 42


@pytest.mark.parametrize("text", ["synthetic:?seed=x", "synthetic:?what=1", "synthetic:?seed=-1", "synthetic:?width=3"])
def test_a_wrong_synthetic_source_is_a_clear_error(text: str) -> None:
    with pytest.raises(SourceError, match="camera gate"):
        open_camera(Source("gate", text))


def test_passwords_are_left_out_of_what_is_shown() -> None:
    assert without_password("rtsp://me:secret@10.0.0.1/s") == "rtsp://***@10.0.0.1/s"


def test_the_key_of_a_source_changes_with_the_file(film: Path) -> None:
    before = source_key(str(film))
    assert source_key(str(film)) == before
    os.utime(film, (2_000_000, 2_000_000))
    assert source_key(str(film)) != before
