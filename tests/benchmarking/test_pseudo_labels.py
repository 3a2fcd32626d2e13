"""The data sets of the comparison with pseudo-labels: no image is labeled in one and to be labeled in the other."""

import json

from PIL import Image

from benchmarks.pseudo_labels import ANNOTATIONS, split
from eomt.training.data import load_data


def test_labeled_and_other_images_are_apart(tmp_path):
    for name, count in (("train", 5), ("valid", 2)):
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        images, annotations = [], []
        for i in range(1, count + 1):
            Image.new("RGB", (20, 10)).save(folder / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": 10, "width": 20})
            shape = {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "area": 64, "bbox": [1, 1, 8, 8]}
            annotations.append({"id": i, "image_id": i, "category_id": 1, "iscrowd": 0} | shape)
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
        (folder / ANNOTATIONS).write_text(json.dumps(content))
    few, others = split(tmp_path / "cells", 2, tmp_path / "made")
    assert few.name == "cells-2"
    rows, _ = load_data(few, task="instance", split="train")
    assert rows.with_format(None)["file_name"][:] == ["1.png", "2.png"]
    assert all(len(row["segments"]) == 1 for row in rows)
    assert len(load_data(few, task="instance", split="val")[0]) == 2
    assert sorted(path.name for path in others.iterdir()) == ["3.png", "4.png", "5.png"]
