"""YOLO and COCO files in and out of a real catalogue: round trips, and every fault listed before anything is taken."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bowerbird_server.catalogue import frames
from bowerbird_server.catalogue.labels import newest_label
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.labelling.files import (
    BadLabelFiles,
    export_coco,
    export_yolo,
    import_coco,
    import_yolo,
    read_yolo_dataset,
)
from bowerbird_testing.scene_frames import SceneSite


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SceneSite]:
    made = SceneSite(tmp_path_factory.mktemp("site") / "data")
    yield made
    made.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


boxes = st.lists(
    st.tuples(st.floats(-20, 300), st.floats(-20, 220), st.floats(1, 200), st.floats(1, 200)).filter(
        lambda b: b[0] + b[2] > 1 and b[1] + b[3] > 1
    ),
    max_size=5,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes, st.sampled_from([(export_yolo, import_yolo), (export_coco, import_coco)]))
def test_export_import_export_gives_the_same_bytes(site: SceneSite, drawn: list[tuple[float, ...]], kind: tuple) -> None:  # type: ignore[type-arg]
    """Both formats bring back exactly the boxes that went out."""
    export, take = kind
    (frame,) = site.send(0)
    labelled = [Box("car" if i % 2 else "person", (x, y, x + w, y + h)) for i, (x, y, w, h) in enumerate(drawn)]
    submit_label(site.cat, site.blobs, frame, "test", "labelled", labelled)
    before = newest_label(site.cat, frame)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        export(site.cat, site.blobs, out / "a", [frame])
        result = take(site.cat, site.blobs, out / "a", "importer")
        assert (result.frames, result.boxes) == (1, len(drawn))
        export(site.cat, site.blobs, out / "b", [frame])
        assert tree(out / "a") == tree(out / "b")
    after = newest_label(site.cat, frame)
    assert before is not None
    assert after is not None
    assert after["boxes"] == before["boxes"]
    assert (after["author"], after["revision"]) == ("importer", before["revision"] + 1)


def yolo_folder(folder: Path, files: dict[str, str], names: str = "names: {0: car, 1: person}") -> Path:
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text(names)
    for name, text in files.items():
        (folder / "labels" / name).write_text(text)
    return folder


def test_every_fault_of_a_yolo_folder_is_listed_and_nothing_is_imported(site: SceneSite, tmp_path: Path) -> None:
    """A good file beside bad ones is not taken either: no half import."""
    good, bad = site.send(300, 310)
    lines = "0 0.5 0.5 0.2 0.2\n0 1.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n0 nan 0.5 0.1 0.1\n0 160 120 40 30\n0 .5 .5 0 .1\n"
    folder = yolo_folder(tmp_path / "y", {f"{good[:16]}.txt": "0 0.5 0.5 0.2 0.2\n", f"{bad}.txt": lines, "holiday.txt": ""})
    with pytest.raises(BadLabelFiles) as caught:
        import_yolo(site.cat, site.blobs, folder, "test")
    places = {(fault.file.name, fault.line) for fault in caught.value.faults}
    assert places == {(f"{bad}.txt", n) for n in (2, 3, 4, 5, 6, 7)} | {("holiday.txt", 0)}
    assert "look like pixels" in str(caught.value)
    assert newest_label(site.cat, good) is None
    assert frames.get(site.cat, good)["state"] == "received"


def test_files_are_matched_by_a_beginning_of_the_id_or_by_the_image(site: SceneSite, tmp_path: Path) -> None:
    """A file named by another tool is found through the image beside it; an empty file is a frame with nothing in it."""
    one, two = site.send(320, 330)
    folder = yolo_folder(tmp_path / "y", {f"{one[:10]}.txt": "", "renamed.txt": "1 0.5 0.5 0.2 0.2\n"})
    (folder / "images").mkdir()
    (folder / "images" / "renamed.jpg").write_bytes(site.blobs.read(frames.get(site.cat, two)["blob"]))
    assert import_yolo(site.cat, site.blobs, folder, "test").frames == 2
    labels = [newest_label(site.cat, frame) for frame in (one, two)]
    assert [len(label["boxes"]) if label else None for label in labels] == [0, 1]


def test_unknown_classes_are_refused_unless_they_may_be_added(site: SceneSite, tmp_path: Path) -> None:
    """The message names them; with permission they join the class list."""
    (frame,) = site.send(340)
    folder = yolo_folder(tmp_path / "y", {f"{frame}.txt": "0 0.5 0.5 0.2 0.2\n"}, "names: [otter]")
    with pytest.raises(BadLabelFiles, match="otter"):
        import_yolo(site.cat, site.blobs, folder, "test")
    assert import_yolo(site.cat, site.blobs, folder, "test", add_classes=True).classes_added == ("otter",)


def test_every_fault_of_a_coco_file_is_listed(site: SceneSite, tmp_path: Path) -> None:
    """Unknown images and categories, crowds, boxes outside and inverted, wrong sizes: all in one message, nothing taken."""
    good, small = site.send(350, 360)
    document = {
        "images": [
            {"id": 1, "file_name": f"{good}.jpg", "width": 320, "height": 240},
            {"id": 2, "file_name": "elsewhere.jpg"},
            {"id": 3, "file_name": f"{small}.jpg", "width": 640, "height": 480},
        ],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [10, 10, 20, 20]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [500, 10, 20, 20]},
            {"id": 4, "image_id": 1, "category_id": 1, "bbox": [10, 10, -20, 20]},
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10, 10]},
            {"id": 6, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 1},
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(BadLabelFiles) as caught:
        import_coco(site.cat, site.blobs, tmp_path, "test")
    assert len(caught.value.faults) == 7
    assert newest_label(site.cat, good) is None
    (tmp_path / "annotations.json").write_text('{"images": [\n  oops')
    with pytest.raises(BadLabelFiles, match=r"annotations.json:2: is not JSON"):
        import_coco(site.cat, site.blobs, tmp_path, "test")


def test_an_export_does_not_mix_with_what_is_there(site: SceneSite, tmp_path: Path) -> None:
    """Old labels among new ones would be taken for current."""
    (tmp_path / "old.txt").write_text("x")
    with pytest.raises(BadInput, match="not empty"):
        export_yolo(site.cat, site.blobs, tmp_path)
    with pytest.raises(BadInput, match="not empty"):
        export_coco(site.cat, site.blobs, tmp_path)


def foreign(root: Path) -> Path:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        cv2.imwrite(str(root / "images" / split / "a.jpg"), np.full((100, 200, 3), 90, np.uint8))
        (root / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.3 0.1 0.2 0.4\n")
    cv2.imwrite(str(root / "images" / "train" / "empty.png"), np.zeros((50, 50, 3), np.uint8))
    path = root / "data.yaml"
    path.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [car, dog]\n")
    return path


def test_a_foreign_data_set_is_read_with_polygons_and_background(tmp_path: Path) -> None:
    """Shares become pixels, polygons their boxes, and an image without a label file is background."""
    images = {(image.split, image.path.name): image for image in read_yolo_dataset(foreign(tmp_path)).images}
    assert len(images) == 3
    first = images["train", "a.jpg"]
    assert (first.width, first.height, first.labelled) == (200, 100, True)
    assert [(box.class_name, box.box_xyxy) for box in first.boxes] == [("car", (50, 25, 150, 75)), ("dog", (20, 10, 60, 40))]
    assert not images["train", "empty.png"].labelled


def test_every_fault_of_a_foreign_data_set_is_listed_before_the_first_image(tmp_path: Path) -> None:
    """A broken image, a bad line and a missing folder in one message."""
    path = foreign(tmp_path)
    (tmp_path / "images" / "train" / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n5 0.5 0.5 0.5 0.5\n")
    path.write_text(path.read_text() + "test: images/test\n")
    with pytest.raises(BadLabelFiles) as caught:
        read_yolo_dataset(path)
    assert {(fault.file.name, fault.line) for fault in caught.value.faults} == {
        ("broken.jpg", 0),
        ("a.txt", 2),
        ("data.yaml", 0),
    }


@pytest.mark.parametrize("text", ["", "names: []\n", "names: {0: 7: 8}\n", "train: images/train\n", "names: {a: b}\n"])
def test_a_data_yaml_without_usable_names_is_refused(tmp_path: Path, text: str) -> None:
    """Empty, no list, not YAML, not numbered."""
    path = foreign(tmp_path)
    path.write_text(text)
    with pytest.raises(BadLabelFiles, match=r"data\.yaml"):
        read_yolo_dataset(path)


def test_a_data_set_without_any_label_or_image_is_refused(tmp_path: Path) -> None:
    """There would be nothing to learn from; the message says where a label file is expected."""
    path = foreign(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(BadLabelFiles, match=r"labels.*a\.txt"):
        read_yolo_dataset(path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(BadLabelFiles, match="missing"):
        read_yolo_dataset(path)
