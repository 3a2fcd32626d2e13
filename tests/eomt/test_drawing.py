"""Drawing: colors, outlines, names, legends, confidence, sheets."""

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.drawing import class_colors, draw_confidence, draw_segments, side_by_side, write_jpeg

GRAY = Image.new("RGB", (640, 500), (128, 128, 128))


def two_segments():
    ids = np.full((500, 640), -1)
    ids[:250, :320], ids[300:, 400:] = 0, 1
    return ids, [{"id": 0, "label_id": 3, "score": 0.9}, {"id": 1, "label_id": 7, "score": 0.8}]


def test_segments_are_tinted_with_their_color_and_void_is_not():
    ids, segments = two_segments()
    picture = np.asarray(draw_segments(GRAY, torch.from_numpy(ids), segments, names=False, opacity=0.5), int)
    colors = class_colors([3, 7])
    assert np.abs(picture[60, 60] - (np.array(colors[3]) + 128) / 2).max() <= 1
    assert np.abs(picture[400, 500] - (np.array(colors[7]) + 128) / 2).max() <= 1
    assert (picture[ids == -1] == 128).all()
    outline = np.abs(picture[60, :320] - picture[60, 60]).sum(-1) > 30
    assert outline[-2:].all()
    assert not outline[20:300].any()


def test_names_are_drawn_inside_their_segments():
    ids, segments = two_segments()
    plain = np.asarray(draw_segments(GRAY, ids, segments, names=False), int)
    named = np.asarray(draw_segments(GRAY, ids, segments, {3: "tree", 7: "horse"}), int)
    changed = (plain != named).any(-1)
    assert changed[ids == 0].sum() > 300
    assert changed[ids == 1].sum() > 300
    assert not changed[ids == -1].any()
    tiny = np.full((500, 640), -1)
    tiny[5:9, 5:9] = 0
    assert np.array_equal(
        draw_segments(GRAY, tiny, segments[:1], {3: "a name too long"}),
        draw_segments(GRAY, tiny, segments[:1], names=False),
    )


def test_masks_labels_and_ids_have_the_same_picture():
    ids, segments = two_segments()
    labels = np.where(ids == 0, 3, np.where(ids == 1, 7, 255))
    masks = np.stack([ids == 0, ids == 1])
    by_ids = np.asarray(draw_segments(GRAY, ids, segments))
    assert np.array_equal(by_ids, draw_segments(GRAY, masks, segments))
    assert np.array_equal(by_ids, draw_segments(GRAY, labels))
    of_many = np.where(ids == 0, 255, 65535)
    names = dict.fromkeys(range(300), "")
    expected = draw_segments(GRAY, ids, [{"id": 0, "label_id": 255}], names)
    assert np.array_equal(draw_segments(GRAY, of_many, None, names), expected)


def test_legends_small_images_and_empty_results():
    ids, segments = two_segments()
    assert draw_segments(GRAY, ids, segments, legend=True).height > 500
    small = draw_segments(Image.new("RGB", (64, 48)), np.zeros((48, 64), int), [{"id": 0, "label_id": 1}])
    assert small.size == (640, 480)
    empty = draw_segments(GRAY, np.full((500, 640), -1), [], legend=True)
    assert empty.height > GRAY.height  # the legend says that there are no segments
    assert np.array_equal(empty.crop((0, 0, *GRAY.size)), GRAY)
    draw_segments(Image.new("L", (1, 1)), np.zeros((1, 1), int), [{"id": 0, "label_id": 1}], legend=True)


def test_side_by_side_and_confidence():
    sheet = side_by_side([("input", GRAY), ("truth", GRAY.resize((64, 50)))], height=200)
    assert sheet.height > 200
    assert sheet.width == 2 * 256 + 3 * 12
    ramp = np.asarray(draw_confidence(np.linspace(0, 1, 50)[None].repeat(4, 0)), int).sum(-1)[0]
    assert (np.diff(ramp) >= -8).all()
    assert ramp[0] < 30  # dark for low confidence


def test_very_long_pictures_fit_into_a_file(tmp_path):
    line = Image.new("RGB", (3000, 1), "red")
    sheet = side_by_side([("image", line), ("prediction", line)])
    assert max(sheet.size) < 20_000
    assert sheet.getpixel((sheet.width // 4, sheet.height - 13)) == (255, 0, 0)
    for size in ((66_000, 4), (1, 70_000)):
        write_jpeg(tmp_path / "long.jpg", Image.new("RGB", size, "red"))
        with Image.open(tmp_path / "long.jpg") as written:
            assert max(written.size) == 65_500


def test_colors_of_one_picture_differ():
    for start in range(0, 133, 9):
        colors = np.array(list(class_colors(range(start, start + 12)).values()), int)
        gaps = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(len(colors), dtype=int)
        assert gaps.min() >= 40


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="10 × 10"):
        draw_segments(GRAY, np.zeros((10, 10), int), [{"id": 0, "label_id": 0}])
