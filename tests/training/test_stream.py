"""Streams of the `datasets` library: each image once per pass, and resume without reading earlier images."""

import datasets
import pytest

from eomt.training import EoMTTrainer
from tests.training.runs import losses, streaming
from tests.training.tiny import Samples, streamed, tiny_arguments, tiny_model


@pytest.mark.parametrize("workers", [0, 3])
def test_every_image_is_seen_once_per_pass(tmp_path, workers):
    trainer = streaming(tmp_path, max_steps=18, dataloader_num_workers=workers)
    trainer.train()
    names = [name for step in trainer.seen for name in step]
    for part in (names[:16], names[16:32]):
        assert sorted(part) == sorted(f"image{index}.png" for index in range(16))


@pytest.mark.parametrize(("workers", "saved", "steps"), [(0, 2, 4), (2, 3, 5), (2, 9, 11)])
def test_a_resumed_stream_equals_an_uninterrupted_one(tmp_path, workers, saved, steps):
    """Bitwise; also after a step of one of two workers (3), and in the second pass (9)."""
    options = {"max_steps": steps, "dataloader_num_workers": workers, "save_strategy": "steps", "save_steps": saved}
    uninterrupted = streaming(tmp_path, **options)
    uninterrupted.train()
    resumed = streaming(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}"))
    assert resumed.seen == uninterrupted.seen[saved:]
    assert losses(resumed) == losses(uninterrupted)


def test_a_resumed_stream_does_not_read_earlier_images(tmp_path):
    read = tmp_path / "read.txt"

    def sample(row):
        with read.open("a") as file:
            file.write(f"{row['number']}\n")
        return Samples()[row["number"]]

    numbers = datasets.Dataset.from_dict({"number": range(40)}).to_iterable_dataset(num_shards=4)
    options = {"dataloader_num_workers": 0, "max_steps": 20, "save_strategy": "steps", "save_steps": 18}
    streaming(tmp_path, numbers.map(sample, remove_columns=["number"]), **options).train()
    read.write_text("")
    resumed = streaming(tmp_path, numbers.map(sample, remove_columns=["number"]), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))
    assert read.read_text().split() == [str(number) for number in range(34, 40)]  # the last batch and two new ones


@pytest.mark.parametrize(("dataset", "options", "word"), [
    (streamed(), {"max_steps": -1}, "max_steps"),
    (streamed(), {"cache_features": "features"}, "cache_features"),
    (streamed().filter(lambda sample: False), {}, "no batch"),
])  # fmt: skip
def test_impossible_streams_are_refused(tmp_path, dataset, options, word):
    with pytest.raises(ValueError, match=word):
        EoMTTrainer(tiny_model(), tiny_arguments(tmp_path, **options), train_dataset=dataset).train()


def test_a_stream_cannot_be_resumed_with_other_workers(tmp_path):
    streaming(tmp_path, save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="2 workers"):
        streaming(tmp_path, dataloader_num_workers=1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
