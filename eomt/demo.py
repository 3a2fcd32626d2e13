"""`eomt demo`: train on synthetic shapes, evaluate, save, reload and draw predictions, in minutes on a CPU."""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline
from transformers.utils.logging import disable_progress_bar

from .configuration import EoMTConfig
from .drawing import draw_prediction, draw_segments, side_by_side
from .image_processing import EoMTImageProcessor
from .modeling_eomt import EoMTForUniversalSegmentation
from .options import DemoOptions
from .training import EoMTTrainer, EoMTTrainingArguments
from .training.callbacks import ReadableProgress
from .training.data import EvaluationTransform, TrainTransform, load_data, make_shapes
from .training.files import write_json

# 1.1 M parameters. Images of 64 × 64 pixels: 8 × 8 patches of 8 pixels, masks at a quarter of the image's resolution.
MODEL = {
    "hidden_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_blocks": 2,
    "num_queries": 16,
    "patch_size": 8,
    "layerscale_value": 1.0,
    "train_num_points": 512,
}
IMAGE_SIZE = 64
DRAWN_IMAGES = 4


def demo(options: DemoOptions) -> int:
    """Run the demonstration. Returns the exit code."""
    started = time.time()
    trainer, space, folder = train_on_shapes(options)
    metrics = trainer.evaluate()
    model_folder = Path(options.output, "model")
    trainer.save_model(model_folder)
    reloaded = reload_and_compare(model_folder, trainer)
    drawn = draw_predictions(reloaded, folder, space, options.output)
    report = {
        "pq": 100 * metrics["eval_pq"],
        "pq_things": 100 * metrics["eval_pq_things"],
        "pq_stuff": 100 * metrics["eval_pq_stuff"],
        "steps": trainer.state.global_step,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "seconds": round(time.time() - started, 1),
    }
    write_json(Path(options.output, "report.json"), report, indent=2)
    print(
        f"held-out PQ {report['pq']:.1f} (things {report['pq_things']:.1f}, stuff {report['pq_stuff']:.1f}) after "
        f"{report['steps']} steps, {report['seconds']:.0f} s; masking off, reloaded through the Auto classes"
    )
    print("\n".join(f"  {path}" for path in [model_folder, *drawn, Path(options.output, "curves.png")]))
    return 0


def train_on_shapes(options: DemoOptions):
    """Draw the data and train. Returns the trainer, the label space and the data folder."""
    disable_progress_bar()
    counts = {"train": options.train_images, "val": options.val_images}
    folder = make_shapes(options.output / "data", **counts, seed=options.seed)
    train_set, space = load_data(folder, task="panoptic", split="train")
    val_set, _ = load_data(folder, task="panoptic", split="val")
    print(f"{len(train_set)} images to train on, {len(val_set)} held out: {', '.join(space.names)}")

    torch.manual_seed(options.seed)
    config = EoMTConfig.for_backbone(
        "vit_small_patch14_reg4_dinov2",
        image_size=IMAGE_SIZE,
        task="panoptic",
        **space.config_fields,
        stuff_label_ids=list(space.stuff_label_ids),
        **MODEL,
    )
    trainer = EoMTTrainer(
        EoMTForUniversalSegmentation(config),
        EoMTTrainingArguments(
            output_dir=str(options.output),
            max_steps=options.steps,
            total_batch_size=16,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            llrd=1.0,  # from scratch: no pre-trained layers to protect
            head_warmup_steps=0,
            backbone_warmup_steps=options.steps // 20,
            masking=options.masking,
            eval_strategy="steps",
            eval_steps=max(1, options.steps // 4),
            per_device_eval_batch_size=16,
            logging_steps=max(1, options.steps // 40),
            save_strategy="no",
            report_to=[],
            seed=options.seed,
        ),
        train_dataset=train_set.with_transform(
            TrainTransform(space, task="panoptic", size=IMAGE_SIZE, scale_range=(0.7, 1.4))
        ),
        eval_dataset=val_set.with_transform(EvaluationTransform(space, task="panoptic")),
        processing_class=EoMTImageProcessor(
            task="panoptic", size=IMAGE_SIZE, stuff_label_ids=list(space.stuff_label_ids)
        ),
    )
    ReadableProgress.replace_stock(trainer)
    trainer.train()
    return trainer, space, folder


def reload_and_compare(model_folder: Path, trainer):
    """Load the saved model by the Auto classes and compare its logits with the trained model's. Returns a pipeline."""
    model = AutoModelForUniversalSegmentation.from_pretrained(model_folder)
    processor = AutoImageProcessor.from_pretrained(model_folder)
    pixels = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        expected = trainer.model.cpu().eval()(pixels).masks_queries_logits
        found = model(pixels).masks_queries_logits
    if not torch.equal(expected, found):
        raise RuntimeError(f"the reloaded model differs by {(expected - found).abs().max():.2g}")
    return pipeline("image-segmentation", model=model, image_processor=processor)


def draw_predictions(pipe, folder: Path, space, output: Path) -> list[Path]:
    """Draw input, ground truth and prediction of the first held-out images side by side. Returns the paths."""
    dataset, _ = load_data(folder, task="panoptic", split="val")
    dataset = dataset.with_transform(EvaluationTransform(space, task="panoptic"))
    paths = []
    for index in range(min(DRAWN_IMAGES, len(dataset))):
        sample = dataset[index]
        image = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        ground_truth = draw_prediction(image, sample["reference"], space.id2label)
        segments = pipe(image, threshold=0.8, overlap_mask_area_threshold=0.8)  # the paper's thresholds
        masks = [np.array(segment["mask"]) > 0 for segment in segments]
        info = [{"id": i, "label_id": space.label2id[segment["label"]]} for i, segment in enumerate(segments)]
        found = draw_segments(image, masks, info, space.id2label)
        path = output / f"prediction-{index}.png"
        side_by_side([("input", image), ("ground truth", ground_truth), ("prediction", found)], height=320).save(path)
        paths.append(path)
    return paths
