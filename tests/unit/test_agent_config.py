"""The device's configuration: typed, strict, and all faults at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_agent.capture.camera_config import Region
from bowerbird_agent.config import parse_config, read_config, summary
from bowerbird_agent.config_files import check_files
from bowerbird_agent.errors import ConfigError
from bowerbird_agent.link.config import read_password

GOOD = """\
[device]
id = "cam-01"
site = "demo"
[broker]
host = "127.0.0.1"
[model]
factory = "m.onnx"
[[cameras]]
name = "gate"
source = "film.avi"
"""


def faults_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Path("/etc/bowerbird"))
    return caught.value.faults


def test_paths_are_relative_to_the_file() -> None:
    config = parse_config(GOOD, Path("/etc/bowerbird"))
    assert config.device.state_dir == Path("/etc/bowerbird/state")
    assert config.cameras[0].source == "/etc/bowerbird/film.avi"
    assert config.model.factory == Path("/etc/bowerbird/m.onnx")


def test_sources_that_are_no_files_stay_as_they_are() -> None:
    for source in ("synthetic:?seed=1", "rtsp://h/s", "/dev/video0", "0"):
        config = parse_config(GOOD.replace('"film.avi"', f'"{source}"'), Path("/etc"))
        assert config.cameras[0].source == source


def test_every_fault_is_told_in_one_go_with_its_key_path_and_line() -> None:
    text = GOOD.replace('id = "cam-01"', 'id = "Cam 01"').replace('host = "127.0.0.1"', 'host = "h"\nprot = 1883')
    text += 'fps = "fast"\n[image]\nquality = 900\n[nonsense]\n'
    faults = faults_of(text)
    assert any("broker.prot (line 6)" in fault and "did you mean 'port'" in fault for fault in faults)
    assert any("cameras[0].fps (line 12)" in fault and "must be a number" in fault for fault in faults)
    assert any(fault.startswith("device (line 1)") and "Cam 01" in fault for fault in faults)
    assert any(fault.startswith("image") and "quality is 900" in fault for fault in faults)
    assert any(fault.startswith("nonsense") and "unknown key" in fault for fault in faults)
    assert len(faults) == 5


def test_how_the_model_runs_is_left_to_tuning_unless_it_is_written_down() -> None:
    left = parse_config(GOOD, Path("/etc")).model
    assert (left.runtime, left.is_pinned, left.variant, left.threads, left.spinning) == ("auto", False, None, None, None)
    text = GOOD.replace(
        'factory = "m.onnx"',
        'runtime = "openvino-cpu"\nprecision = "bf16"\nthreads = 2\nspinning = false\nmemory_limit_mb = 300',
    )
    named = parse_config(text, Path("/etc")).model
    assert (named.runtime, named.precision, named.threads, named.spinning) == ("openvino-cpu", "bf16", 2, False)
    assert named.is_pinned


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('runtime = "openvino"', "must be one of 'auto', 'onnxruntime-cpu'"),
        ('precision = "bf16"', "precision is for a runtime that is named"),
        ('runtime = "onnxruntime-cpu"\nprecision = "bf16"', "onnxruntime-cpu computes in 'fp32'"),
        ("threads = 0", "threads is 0; it must be 1 to 64"),
        ("memory_limit_mb = 3", "it must be at least 16"),
        ("accuracy_loss_points = -1.0", "it must be 0 to 100"),
        ('spinning = "yes"', "must be true or false"),
    ],
)
def test_a_model_section_that_cannot_be_meant_says_what_to_write(line: str, says: str) -> None:
    assert says in faults_of(GOOD.replace('factory = "m.onnx"', line))[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[device]", "[device"), "not TOML"),
        (('site = "demo"', ""), "device.site (line 1): is missing"),
        (('source = "film.avi"', 'source = "rtsp://u:p@h/s"\npace = "fast"'), "live camera"),
        (('source = "film.avi"', 'source = "synthetic:?sed=1"'), "unknown key 'sed'"),
        (('source = "film.avi"', 'source = "f"\nfirst_frame = 9\nlast_frame = 3'), "before first_frame"),
        (('source = "film.avi"', 'source = "f"\ntake = "20s/10s"'), "inside the period"),
        (('source = "film.avi"', 'source = "f"\nstart_at_utc = "noon"'), "start_at_utc"),
        (('name = "gate"', 'name = "gate"\nloop = 1'), "cameras[0].loop (line 10): must be true or false"),
        (("[model]", "[selection]\nepsilon = 2\nwindow_frames = 0\n[model]"), "epsilon"),
        (("[model]", '[selection]\ntemplate = "best"\n[model]'), "template"),
        (("[model]", "[budget]\nbytes_per_s = -1\n[model]"), "bytes_per_s"),
    ],
)
def test_a_fault_says_what_is_wrong(change: tuple[str, str], says: str) -> None:
    assert any(says in fault for fault in faults_of(GOOD.replace(*change)))


def test_a_password_in_an_address_is_in_no_fault_and_in_no_summary() -> None:
    text = GOOD.replace('source = "film.avi"', 'source = "rtsp://user:secret@h/s"')
    assert "secret" not in str(summary(parse_config(text, Path("/etc"))))
    assert "secret" not in str(faults_of(text + 'pace = "fast"\n'))


def test_masks_and_region_are_read_and_their_faults_are_told_with_the_key() -> None:
    text = GOOD + "region = { x = 0.5, y = 0.0, width = 0.5, height = 1.0 }\nmasks = [[[0, 0], [1, 0], [1, 0.5]]]\n"
    camera = parse_config(text, Path("/etc/bowerbird")).cameras[-1]
    assert camera.region == Region(0.5, 0.0, 0.5, 1.0)
    assert camera.masks == (((0.0, 0.0), (1.0, 0.0), (1.0, 0.5)),)
    with pytest.raises(ConfigError) as error:
        parse_config(text.replace("width = 0.5", "width = 5").replace("[1, 0.5]]", "[1, '0.5']]"), Path("/etc/bowerbird"))
    assert "region" in str(error.value)
    assert "masks[0][2][1]" in str(error.value)


def test_two_cameras_of_one_name_are_refused() -> None:
    assert any("gate" in fault for fault in faults_of(GOOD + '[[cameras]]\nname = "gate"\nsource = "0"\n'))


def test_a_template_gives_the_policy_and_own_keys_win() -> None:
    text = GOOD + '[selection]\ntemplate = "uncertain_only"\nepsilon = 0.3\n'
    policy = parse_config(text, Path("/etc")).selection
    assert (policy.shortlist, policy.epsilon) == (1, 0.3)


def test_missing_files_and_a_readable_password_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o644)
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace('host = "127.0.0.1"', 'host = "h"\npassword_file = "password"'))
    with pytest.raises(ConfigError) as caught:
        check_files(read_config(path), str(path))
    text = str(caught.value)
    assert "film.avi does not exist" in text
    assert "m.onnx does not exist" in text
    assert "chmod 600" in text
    assert read_password(read_config(path).broker) == "secret"


def test_a_missing_file_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        read_config(tmp_path / "none.toml")


def test_a_misspelt_template_is_told_beside_what_else_is_wrong_in_its_section() -> None:
    text = GOOD + '\n[selection]\ntemplete = "balanced"\nepsilon = -0.3\nstrategies = { entropie = 1.0, novelty = 2.0 }\n'
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Path("/"))
    said = str(caught.value)
    assert "selection.templete" in said
    assert "did you mean 'template'?" in said
    assert "epsilon must be between 0 and 1" in said
    assert "unknown strategy 'entropie'" in said
    assert "weight of strategy novelty" in said
