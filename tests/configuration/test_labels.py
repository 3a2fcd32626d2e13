"""Label spaces: the packaged ones equal the authors', and errors."""

import pytest

from eomt.configuration.labels import PACKAGED, LabelSpace, label_space

THINGS_LEFT_OUT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of COCO's 1 … 90


def test_coco_panoptic():
    space = label_space("coco_panoptic")
    assert space.num_labels == 133
    assert space.dataset_ids[:80] == tuple(i for i in range(1, 91) if i not in THINGS_LEFT_OUT)
    assert space.dataset_ids[80:83] == (92, 93, 95)
    assert space.dataset_ids[-17:] == tuple(range(184, 201))
    assert space.stuff_label_ids == tuple(range(80, 133))
    assert space.names[0] == "person"
    assert space.names[132] == "rug-merged"


def test_coco_instance_is_the_things_of_panoptic():
    space = label_space("coco_instance")
    assert space.names == label_space("coco_panoptic").names[:80]
    assert space.dataset_ids == label_space("coco_panoptic").dataset_ids[:80]
    assert space.stuff_label_ids == ()


def test_ade20k():
    semantic, panoptic = label_space("ade20k_semantic"), label_space("ade20k_panoptic")
    assert semantic.names == panoptic.names
    assert semantic.dataset_ids == tuple(range(1, 151))
    assert semantic.ignored_ids == (0,)
    assert semantic.stuff_label_ids == ()
    stuff = [*range(7), 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79]
    stuff += [84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145]
    assert panoptic.stuff_label_ids == tuple(stuff)
    assert (panoptic.names[0], panoptic.names[7], panoptic.names[149]) == ("wall", "bed", "flag")


def test_cityscapes():
    space = label_space("cityscapes_semantic")
    assert space.dataset_ids == (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    assert space.names[0] == "road"
    assert space.names[18] == "bicycle"
    assert sorted(space.dataset_ids + space.ignored_ids) == [*range(34), 255]


@pytest.mark.parametrize("name", PACKAGED)
def test_labels_and_dataset_ids_are_inverse_and_names_differ(name):
    space = label_space(name)
    assert [space.dataset_id_to_label[i] for i in space.dataset_ids] == list(range(space.num_labels))
    assert len(space.label2id) == space.num_labels
    assert {space.label2id[n]: n for n in space.names} == space.id2label
    assert hash(space) == hash(label_space(name))


@pytest.mark.parametrize(("arguments", "value"), [
    ({"names": ()}, "'mine'"),
    ({"names": ("a", "b"), "dataset_ids": (1,)}, "1 .* 2"),
    ({"names": ("a", "b"), "dataset_ids": (1, 1)}, "id 1"),
    ({"names": ("a", "b"), "stuff_label_ids": (2,)}, "label 2"),
])  # fmt: skip
def test_contradictory_label_spaces_are_refused(arguments, value):
    with pytest.raises(ValueError, match=value):
        LabelSpace("mine", **arguments)


def test_the_ignored_label_is_never_a_class():
    assert LabelSpace("mine", [str(i) for i in range(255)]).ignore_index == 255
    assert LabelSpace("mine", [str(i) for i in range(300)]).ignore_index == 65535


def test_an_unknown_label_space_is_refused():
    with pytest.raises(ValueError, match="voc"):
        label_space("voc")
