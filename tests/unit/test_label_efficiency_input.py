"""What the label-efficiency benchmark is given: any YOLO data set or film, and clear words about those that it cannot use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import label_efficiency
from efficiency import worlds


def _data_set(folder: Path) -> Path:
    """Twelve pictures to select from and four to test on, each with one box; returns its data.yaml."""
    for split, count in (("train", 12), ("val", 4)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / "images" / split / f"{split}{i}.png"), np.full((48, 64, 3), i, np.uint8))
            (folder / "labels" / split / f"{split}{i}.txt").write_text("0 0.5 0.5 0.5 0.25\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    return folder / "data.yaml"


def _groups(folder: Path, group_of: Callable[[str, int], str]) -> Path:
    """A line for each picture of `_data_set`."""
    lines = [f"{split}{i}.png,{group_of(split, i)}" for split, count in (("train", 12), ("val", 4)) for i in range(count)]
    (folder / "groups.csv").write_text("\n".join(["image,group", *lines]))
    return folder / "groups.csv"


def test_a_data_set_is_split_by_group_and_refuses_a_group_in_both_parts(tmp_path: Path) -> None:
    data = _data_set(tmp_path)
    world = worlds.data_set(0, data, _groups(tmp_path, lambda split, i: f"{split}-{i // 3}"), start=4)
    assert len(world.start) == 4
    assert not {frame.scene for frame in world.start} & {frame.scene for frame in world.stream}
    assert world.test[0].boxes_xyxy.tolist() == [[16.0, 18.0, 48.0, 30.0]]
    both = _groups(tmp_path, lambda split, i: "same" if i == 0 else f"{split}-{i}")
    with pytest.raises(SystemExit, match="'same' is in `train` and in `val`"):
        worlds.data_set(0, data, both)


def test_a_data_set_whose_test_pictures_are_selected_from_is_refused(tmp_path: Path) -> None:
    data = _data_set(tmp_path)
    data.write_text(data.read_text().replace("images/val", "images/train"))
    with pytest.raises(SystemExit, match="must share no picture"):
        worlds.data_set(0, data, None)


def test_pictures_of_one_name_in_two_folders_are_two_frames_and_may_be_in_two_groups(tmp_path: Path) -> None:
    data = _data_set(tmp_path)
    for kind, end in (("images", "png"), ("labels", "txt")):
        (tmp_path / kind / "val" / f"val0.{end}").rename(tmp_path / kind / "val" / f"train0.{end}")
    assert len({frame.name for frame in _all_frames(worlds.data_set(0, data, None, start=4))}) == 16
    groups = _groups(tmp_path, lambda split, i: f"{split}-{i}")
    groups.write_text(groups.read_text().replace("val0.png", "val/train0.png"))
    assert {frame.scene for frame in worlds.data_set(0, data, groups, start=4).test} == {f"val-{i}" for i in range(4)}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("data.yaml", "train: images/train\nval: images/val\nnames: []\n", "has no class names"),
        ("data.yaml", "train: images/train\nnames: [thing]\n", "names no picture under `val`"),
        ("data.yaml", "{{{", "is not YAML"),
        ("labels/train/train3.txt", "0 0.5 oops 0.5 0.25\n", r"train3\.txt:1"),
        ("labels/train/train3.txt", "7 0.5 0.5 0.5 0.25\n", r"train3\.txt:1"),
        ("groups.csv", "image,group\nelsewhere0.png,g0\n", "no line for 16 of 16 pictures"),
        ("groups.csv", "image,group\ntrain0.png\n", r"groups\.csv:2: a line is `image,group"),
        ("groups.csv", "train0.png,g0,cam,noon\n", r"groups\.csv:1: seconds must be a number, not 'noon'"),
    ],
)
def test_a_faulty_data_set_is_refused_with_the_place_of_the_fault(tmp_path: Path, file: str, text: str, said: str) -> None:
    data, groups = _data_set(tmp_path), _groups(tmp_path, lambda split, i: f"{split}-{i}")
    (tmp_path / file).write_text(text)
    with pytest.raises(SystemExit, match=said):
        worlds.data_set(0, data, groups)


def test_a_data_set_without_a_single_label_file_is_refused(tmp_path: Path) -> None:
    data = _data_set(tmp_path)
    for path in (tmp_path / "labels").rglob("*.txt"):
        path.unlink()
    with pytest.raises(SystemExit, match="no image has a label file"):
        worlds.data_set(0, data, None)


def _film(path: Path, grey: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(120):
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()
    return path


def test_a_second_film_in_the_same_folder_is_not_taken_for_the_first(tmp_path: Path) -> None:
    gt = tmp_path / "gt.txt"
    gt.write_text("".join(f"{i},1,8,8,16,16,1\n" for i in range(1, 121)))
    greys = [
        worlds.film(0, _film(tmp_path / f"{grey}.avi", grey), gt, tmp_path / "film").start[0].render().mean()
        for grey in (40, 200)
    ]
    assert greys == pytest.approx([40, 200], abs=8)


def test_faulty_ground_truth_of_a_film_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "gt.txt").write_text("1,1,8,8,16,16,1\nhello\n")
    with pytest.raises(SystemExit, match=r"gt\.txt:2: not a MOT line"):
        worlds.film(0, _film(tmp_path / "a.avi", 40), tmp_path / "gt.txt", tmp_path / "film")


def _all_frames(world: worlds.World) -> tuple[worlds.WorldFrame, ...]:
    return (*world.start, *world.stream, *world.test)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "abc"], "must be like 0-9 or 0,3,5, not 'abc'"),
        (["--seeds", "3-1"], "must be like 0-9 or 0,3,5, not '3-1'"),
        (["--rounds", "0"], "must be a whole number of at least 1, not '0'"),
        (["--picks", "-4"], "must be a whole number of at least 1, not '-4'"),
        (["--gt", "gt.txt"], "name that with --video"),
        (["--video", "a.avi"], "--video needs --gt"),
        (["--groups", "groups.csv"], "name that with --data"),
        (["--data", "data.yaml", "--video", "a.avi", "--gt", "gt.txt"], "two streams"),
        (["--report"], "has no results.csv yet"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["label_efficiency.py", "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as ended:
        label_efficiency.main()
    assert said in capsys.readouterr().err + str(ended.value)
    assert not out.exists()


def test_ground_truth_of_another_film_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gt.txt").write_text("".join(f"{i},1,908,908,16,16,1\n" for i in range(1, 121)))
    film = str(_film(tmp_path / "a.avi", 40))
    arguments = ["--out", str(tmp_path / "out"), "--video", film, "--gt", str(tmp_path / "gt.txt")]
    monkeypatch.setattr(sys, "argv", ["label_efficiency.py", *arguments])
    with pytest.raises(SystemExit, match="no frame of the start has an object"):
        label_efficiency.main()
