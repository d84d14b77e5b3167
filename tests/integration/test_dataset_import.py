"""Data sets as people have them: what the tools of this field write is taken, and what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_server.catalogue.labels import newest_label
from bowerbird_server.errors import BadInput
from bowerbird_server.ingest.image_header import is_upright
from bowerbird_server.labelling.files import BadLabelFiles, read_yolo_dataset
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import DatasetImport, import_dataset


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty site."""
    return Site.open(tmp_path / "site")


def picture(path: Path, gray: int, *, width: int = 200, height: int = 100) -> Path:
    """A picture whose content depends on `gray` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((height, width, 3), gray, np.uint8)
    image[: height // 2, : width // 2] = 255 - gray
    assert cv2.imwrite(str(path), image)
    return path


def label(image: Path, text: str = "0 0.5 0.5 0.5 0.5\n") -> None:
    """A label file where this format expects it."""
    folders = ["labels" if part == "images" else part for part in image.parts]
    path = Path(*folders).with_suffix(".txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def taken(site: Site, data_yaml: Path, text: str, **options: object) -> DatasetImport:
    """Import what a data.yaml of this text leads to."""
    data_yaml.write_text(text)
    return import_dataset(site, data_yaml, actor="test", **options)  # type: ignore[arg-type]


def test_paths_that_labelling_services_export_are_found(site: Site, tmp_path: Path) -> None:
    """`../train/images` is written where `train/images` beside the file is meant."""
    for split, gray in (("train", 40), ("valid", 60)):
        label(picture(tmp_path / "export" / split / "images" / "a.jpg", gray))
    text = "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['car']\n"
    result = taken(site, tmp_path / "export" / "data.yaml", text)
    assert (result.frames, result.held_out, result.boxes) == (2, 1, 2)


def test_a_path_that_names_the_folder_itself_is_found(site: Site, tmp_path: Path) -> None:
    """`path: shop` is written for a folder of data sets; the file may lie inside `shop` too."""
    for split, gray in (("train", 40), ("val", 60)):
        label(picture(tmp_path / "shop" / "images" / split / "a.jpg", gray))
    result = taken(site, tmp_path / "shop" / "data.yaml", "path: shop\ntrain: images/train\nval: images/val\nnc: 2\n")
    assert (result.frames, result.held_out, result.class_names) == (2, 1, ("class_0", "class_1"))


def test_one_name_on_both_sides_is_two_images(site: Site, tmp_path: Path) -> None:
    """Frames numbered from 1 in each split are not each other's twins."""
    for split, gray in (("train", 40), ("val", 60)):
        label(picture(tmp_path / "images" / split / "000001.jpg", gray))
    result = taken(site, tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [car]\n")
    assert (result.frames, result.held_out) == (2, 1)


def test_groups_may_name_images_by_the_end_of_their_path(site: Site, tmp_path: Path) -> None:
    """Where names repeat, folders tell them apart; a plain name still does where they do not."""
    for camera, gray in (("east", 40), ("west", 60)):
        label(picture(tmp_path / "images" / camera / "1.jpg", gray))
    label(picture(tmp_path / "images" / "west" / "2.jpg", 80))
    groups = tmp_path / "groups.csv"
    groups.write_text("image,scene\neast/1.jpg,a\nwest/1.jpg,b\n2.jpg,b\n")
    text = "train: images/east\nval: images/west\nnames: [car]\n"
    result = taken(site, tmp_path / "data.yaml", text, groups=groups)
    assert (result.frames, result.held_out) == (3, 2)
    groups.write_text("image,scene\n1.jpg,a\n")
    with pytest.raises(BadInput, match=r"nothing about 1 images, 2\.jpg first"):
        taken(site, tmp_path / "data.yaml", text, groups=groups)


def test_images_that_both_sides_name_are_trained_on_and_told(site: Site, tmp_path: Path) -> None:
    """Small public data sets validate on their training images: that is no reason to refuse, and no proof either."""
    for number in range(3):
        label(picture(tmp_path / "images" / f"{number}.jpg", 40 + 20 * number))
    result = taken(site, tmp_path / "data.yaml", "train: images\nval: images\nnames: [car]\n")
    assert (result.frames, result.held_out) == (3, 0)
    assert "3 images are in both train and val" in result.notices[0]


def test_faulty_images_can_be_left_out(site: Site, tmp_path: Path) -> None:
    """Refused at first, with the way out; then the good ones are taken and the bad ones named."""
    label(picture(tmp_path / "images" / "good.jpg", 40))
    label(picture(tmp_path / "images" / "outside.jpg", 60), "0 1.5 0.5 0.5 0.5\n")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"none")
    text = "train: images\nnames: [car]\n"
    with pytest.raises(BadLabelFiles, match="--skip-faulty"):
        taken(site, tmp_path / "data.yaml", text)
    result = taken(site, tmp_path / "data.yaml", text, skip_faulty=True)
    assert result.frames == 1
    assert "2 faulty images" in result.notices[0]
    assert "outside.jpg" in "".join(result.notices).replace("outside.txt", "outside.jpg")


def test_a_data_set_of_faulty_images_only_is_refused_even_then(tmp_path: Path) -> None:
    """Leaving everything out is no import."""
    picture(tmp_path / "images" / "a.jpg", 40)
    (tmp_path / "images" / "a.jpg").write_bytes(b"none")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [car]\n")
    with pytest.raises(BadLabelFiles, match="every image is faulty"):
        read_yolo_dataset(tmp_path / "data.yaml", skip_faulty=True)


def test_bitmaps_and_tiffs_are_taken_as_png(site: Site, tmp_path: Path) -> None:
    """What reads headers knows three formats; pixels stay what they were."""
    for name, gray in (("a.bmp", 40), ("b.tif", 60)):
        label(picture(tmp_path / "images" / name, gray))
    taken(site, tmp_path / "data.yaml", "train: images\nnames: [car]\n")
    rows = site.catalogue.rows("SELECT blob, image_format, width, height FROM frame ORDER BY sequence")
    assert [(row["image_format"], row["width"], row["height"]) for row in rows] == [("png", 200, 100)] * 2
    kept = cv2.imdecode(np.frombuffer(site.blobs.read(rows[0]["blob"]), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(kept, cv2.imread(str(tmp_path / "images" / "a.bmp")))


def turned(path: Path, orientation: int, order: str) -> Path:
    """A JPEG whose EXIF says that it lies otherwise than it shall be seen."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    number = {"<": "little", ">": "big"}[order]
    entry = b"".join(value.to_bytes(size, number) for value, size in ((0x0112, 2), (3, 2), (1, 4), (orientation, 2), (0, 2)))  # type: ignore[arg-type]
    tiff = mark + (8).to_bytes(4, number) + (1).to_bytes(2, number) + entry + (0).to_bytes(4, number)  # type: ignore[arg-type]
    segment = b"Exif\0\0" + tiff
    plain = path.read_bytes()
    path.write_bytes(plain[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + plain[2:])
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_turned_jpeg_is_turned_for_good(site: Site, tmp_path: Path, order: str) -> None:
    """Labels are drawn on what people see; the frame has that size, and its box lies where it was drawn."""
    image = turned(picture(tmp_path / "images" / "a.jpg", 40), 6, order)
    assert not is_upright(image.read_bytes())
    label(image, "0 0.5 0.9 0.5 0.2\n")
    taken(site, tmp_path / "data.yaml", "train: images\nnames: [car]\n")
    row = site.catalogue.rows("SELECT id, blob, width, height FROM frame")[0]
    assert (row["width"], row["height"]) == (100, 200)
    assert is_upright(site.blobs.read(row["blob"]))
    kept = newest_label(site.catalogue, row["id"])
    assert kept is not None
    np.testing.assert_allclose(kept["boxes"][0]["box_xyxy"], [25, 160, 75, 200], atol=0.01)


@pytest.mark.parametrize("cut", [3, 12, 20, 30, 36])
def test_a_cut_exif_turns_nothing(tmp_path: Path, cut: int) -> None:
    """Damaged EXIF is no reason to fail."""
    data = turned(picture(tmp_path / "a.jpg", 40), 6, ">").read_bytes()
    assert isinstance(is_upright(data[:cut]), bool)
    assert is_upright(data[:20])
