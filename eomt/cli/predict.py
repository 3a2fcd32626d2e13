"""`eomt predict`: photos in, segments out; pictures for people, COCO files and label pngs for machines."""

import argparse
import math
import sys
import time
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")
MAX_PIXELS = 100_000_000
WAITING_PIXELS = 50_000_000  # of results that wait to be written, beside one
DRAWN_PIXELS = 25_000_000  # of an overlay: of larger images it is reduced
PICTURE_THRESHOLD = {"panoptic": 0.8, "instance": 0.5, "semantic": None}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt predict",
        description="Segment images. Writes overlays and machine-readable results, goes on over files that fail, and "
        "goes on where an interrupted run stopped. Several processes share the work: torchrun --nproc_per_node 4 -m "
        "eomt predict … or accelerate launch -m eomt predict …",
    )
    p.add_argument("images", nargs="+", help="image files, folders (searched to the bottom), globs")
    p.add_argument("--model", required=True, help="local directory or name on the hub")
    p.add_argument("--output", required=True, type=Path, help="folder for the results; run again to go on")
    p.add_argument("--task", choices=sorted(PICTURE_THRESHOLD), help="the model's own by default")
    p.add_argument("--batch-size", type=int, default=1, metavar="N", help="images a step (default 1)")
    p.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model's arithmetic (default float32)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model: slow start, faster after")
    p.add_argument(
        "--threshold",
        type=float,
        help="panoptic: class probability a query needs (default 0.8). instance: score from which an instance is drawn "
        "(default 0.5); the results always hold the best 100",
    )
    p.add_argument("--confidence", action="store_true", help="semantic: also a map and a picture of the confidence")
    p.add_argument(
        "--label-space",
        help="write this data set's category ids (coco_panoptic, cityscapes_semantic, …); default: those saved with "
        "the model, of the data it was trained on. Image ids are the numbers in file names, else these names",
    )
    p.add_argument("--no-overlays", action="store_true", help="machine-readable results only")
    p.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse larger images; memory grows by about 13 bytes a pixel (default {MAX_PIXELS:,})",
    )
    p.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read and resize (default 1)")
    return p


def main(argv: list[str]) -> int:
    """0: all images done; 1: some could not be, listed at the end with the reason. Bad arguments raise `ValueError`."""
    args = parser().parse_args(argv)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: give at least 1")
    if args.max_pixels < 1:
        raise ValueError(f"--max-pixels {args.max_pixels}: give at least 1")
    if args.workers < 0:
        raise ValueError(f"--workers {args.workers}: give 0 or more")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold}: give a probability from 0 to 1")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; give a folder")

    from accelerate import PartialState
    from accelerate.utils import gather_object

    from eomt.cli.checks import require_model, without_accelerator
    from eomt.image_processing.files import find_images
    from eomt.image_processing.results import image_ids_of

    require_model(args.model)
    images = find_images(args.images, exclude=args.output)
    state = PartialState(cpu=without_accelerator(args.device))
    job = _Job(args, state, image_ids_of(images))
    left = job.left(list(images.items())[state.process_index :: state.num_processes])
    started = time.perf_counter()
    made, failures = job.run(left)
    state.wait_for_everyone()
    if state.num_processes > 1:
        made, failures = sum(gather_object([made])), gather_object(failures)
    if state.is_main_process:
        job.results.finish(images)
        seconds = time.perf_counter() - started
        skipped = len(images) - made - len(failures)
        before = f" ({skipped} were there already)" if skipped else ""
        print(f"{made} images{before} in {seconds:.1f} s, {made / seconds:.2f} images/s: {args.output}")
        for path, reason in sorted(failures):
            print(f"eomt predict: {path}: {reason}", file=sys.stderr)
        if failures:
            print(f"eomt predict: {len(failures)} of {len(images)} images could not be segmented", file=sys.stderr)
    return 1 if failures else 0


class _Job:
    """One process's part: model, processor, results; `image_ids` are the whole run's {name: id}."""

    def __init__(self, args, state, image_ids: dict[str, int | str]):
        import torch
        from transformers import AutoImageProcessor

        from eomt.cli.checks import load_model, usable_device
        from eomt.configuration.labels import LabelSpace, label_space
        from eomt.image_processing.results import Results, weights_of

        self.args, self.is_main, self.image_ids = args, state.is_main_process, image_ids
        self.device = usable_device(args.device) if args.device else state.device
        self.dtype = getattr(torch, args.dtype)
        model = load_model(args.model, dtype=self.dtype)
        if model.attn_mask_probs.any():
            if state.is_main_process:
                print("note: masked attention is on in this checkpoint; it is turned off", file=sys.stderr)
            model.set_attn_mask_probs([0.0] * model.config.num_blocks)
        self.model = model.eval().to(self.device)
        self.processor = AutoImageProcessor.from_pretrained(args.model, **({"task": args.task} if args.task else {}))
        self.task = self.processor.task
        if args.confidence and self.task != "semantic":
            raise ValueError(f"--confidence is for semantic segmentation, this model's task is {self.task}")
        self.threshold = PICTURE_THRESHOLD[self.task] if args.threshold is None else args.threshold
        self.id2label = dict(model.config.id2label)
        own = LabelSpace.from_config(model.config, name=str(args.model))
        space = label_space(args.label_space) if args.label_space else own
        if space.num_labels != own.num_labels:
            raise ValueError(
                f"--label-space {args.label_space} has {space.num_labels} classes, the model has {own.num_labels}"
            )
        run = {"model": str(args.model), "label_space": args.label_space, "confidence": args.confidence}
        run |= {"threshold": self.threshold, "dtype": args.dtype, "overlays": not args.no_overlays}
        run["weights"] = weights_of(args.model)
        if state.is_main_process:  # the folder's marker is written once
            self.results = Results(args.output, self.task, space, run)
        state.wait_for_everyone()
        if not state.is_main_process:
            self.results = Results(args.output, self.task, space, run)
        if args.compile:
            self.model = torch.compile(self.model)

    def left(self, items: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """Those of the (name, file) pairs that an earlier run did not do, from the very same file."""
        from eomt.image_processing.results import state_of

        self.sources = {name: state_of(file) for name, file in items}
        for name, source in self.sources.items():
            self.results.discard_outdated(name, self.image_ids[name], source)
        return [(name, file) for name, file in items if not self.results.is_done(name)]

    def run(self, items: list[tuple[str, Path]]) -> tuple[int, list[tuple[str, str]]]:
        """(name, file) pairs → number of images done, [(file, reason)] of those that could not be."""
        from concurrent.futures import Future, ThreadPoolExecutor

        import torch
        from torch.utils.data import DataLoader
        from tqdm.auto import tqdm

        from eomt.image_processing.reading import (
            FAILS_ALONE,
            ImageInputs,
            allow_pixels,
            collate,
            failure,
            outputs_of,
        )

        allow_pixels(self.args.max_pixels)
        loader = DataLoader(
            ImageInputs(items, self.processor, self.args.max_pixels),
            batch_size=self.args.batch_size,
            num_workers=min(self.args.workers, len(items)),
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )
        failures, writing = [], []

        def written(file: Path, future: Future, pixels: int) -> None:
            try:
                future.result()
            except FAILS_ALONE as error:
                failures.append(failure(file, error))

        bar = tqdm(total=len(items), desc="predict", unit="image", disable=not self.is_main)
        with ThreadPoolExecutor(max_workers=2) as pool, torch.inference_mode(), bar:
            for batch in loader:
                failures += batch["failures"]
                done = len(batch["images"]) + len(batch["failures"])
                if batch["images"]:
                    pixels = batch["pixel_values"].to(self.device, self.dtype, non_blocking=True)  # [V, 3, S_h, S_w]
                    try:
                        outputs = self.model(pixel_values=pixels, patch_offsets=batch["patch_offsets"] or None)
                    except FAILS_ALONE as error:  # out of memory, on any device
                        failures += [failure(item["file"], error) for item in batch["images"]]
                        batch["images"], outputs = [], None
                    for i, item in enumerate(batch["images"]):
                        if item["frames"] > 1:
                            tqdm.write(f"note: {item['file']}: the first of {item['frames']} frames", file=sys.stderr)
                        try:
                            prediction = self._segments(outputs_of(i, outputs, batch), item["size"])
                        except FAILS_ALONE as error:
                            failures.append(failure(item["file"], error))
                        else:
                            future = pool.submit(self._write, item, prediction)
                            writing.append((item["file"], future, item["size"][0] * item["size"][1]))
                            del prediction, future
                        # results wait in memory: not too many
                        while (
                            len(writing) > 2 * self.args.batch_size + 2 or sum(w[-1] for w in writing) > WAITING_PIXELS
                        ):
                            written(*writing.pop(0))
                bar.update(done)
            for waiting in writing:
                written(*waiting)
        return len(items) - len(failures), failures

    def _segments(self, outputs, size: tuple[int, int]) -> dict:
        """One image's outputs → its prediction on the host, at its own (height, width)."""
        sizes = [size]
        if self.task == "panoptic":
            found = self.processor.post_process_panoptic_segmentation(outputs, sizes, threshold=self.threshold)
        elif self.task == "instance":
            found = self.processor.post_process_instance_rle(outputs, sizes)
        elif self.args.confidence:
            found = self.processor.post_process_semantic_confidence(outputs, sizes)
        else:
            maps = self.processor.post_process_semantic_segmentation(outputs, sizes)
            found = [{"segmentation": labels} for labels in maps]
        return {key: v.cpu() if hasattr(v, "cpu") else v for key, v in found[0].items()}

    def _write(self, item: dict, prediction: dict) -> None:
        """Pictures first: the results' record marks the image as done."""
        if not self.args.no_overlays or self.args.confidence:
            self._draw(item, prediction)
        name = item["name"]
        file_name = str(Path(name).with_name(item["file"].name))  # with its folders: names alone may repeat
        self.results.write(name, file_name, prediction, self.image_ids[name], self.sources[name])

    def _draw(self, item: dict, prediction: dict) -> None:
        import numpy as np
        from PIL import Image

        from eomt.image_processing import read_image
        from eomt.image_processing.pictures import draw_confidence, draw_segments, side_by_side, write_jpeg
        from eomt.image_processing.writing import write_whole

        name, picture = item["name"], read_image(item["file"])
        step = math.ceil(math.sqrt(picture.width * picture.height / DRAWN_PIXELS))
        picture = picture.reduce(step) if step > 1 else picture
        shown = self._to_draw(prediction, step)
        if not self.args.no_overlays:
            overlay = draw_segments(picture, *shown, self.id2label, legend=True)
            write_jpeg(self.results.path("overlays", name, ".jpg"), overlay)
        if self.args.confidence:
            confidence = prediction["confidence"].numpy()
            stored = np.empty(confidence.shape, np.uint16)
            for row, values in zip(stored, confidence):
                row[:] = np.floor(values * 65535)  # as BRAVO wants it
            write_whole(self.results.path("confidence", name, ".png"), Image.fromarray(stored).save)
            plain = draw_segments(picture, *shown, self.id2label)
            heat = draw_confidence(confidence[::step, ::step])
            sheet = side_by_side([("image", picture), ("prediction", plain), ("confidence", heat)])
            write_jpeg(self.results.path("confidence_pictures", name, ".jpg"), sheet)

    def _to_draw(self, prediction: dict, step: int) -> tuple:
        """Segmentation and segments, every `step`-th row and column."""
        if self.task != "instance":
            return prediction["segmentation"][::step, ::step], prediction.get("segments_info")
        from eomt.image_processing.results import EncodedMasks

        best = [k for k, score in enumerate(prediction["scores"]) if score >= self.threshold]
        masks = EncodedMasks([prediction["masks"][k] for k in best], step)
        return masks, [{"id": k, "label_id": prediction["labels"][k]} for k in best]
