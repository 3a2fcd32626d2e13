"""What `eomt predict` does: segment image files, write results for machines and overlays for people."""

import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from .configuration import TASK_ROWS
from .configuration.labels import LabelSpace, label_space
from .image_processing.inference import FAILS_ALONE, Inferred, confident_instances, counted, error_line, infer
from .image_processing.reading import allow_pixels, count_frames, read_image
from .inference.image_files import find_images
from .inference.loading import (
    load_model,
    merge_tokens,
    needs_cpu_group,
    require_model,
    set_inference_masks,
    usable_device,
)
from .inference.prediction_files import Results, file_state, image_ids_by_name, weight_files
from .inference.pseudo_labels import write_dataset
from .tiling import infer_tiles, require_tiles
from .tiling.tiles import cut
from .training.files import write_atomic
from .visualization import draw_confidence, draw_prediction, side_by_side
from .visualization.sheets import write_jpeg

WAITING_PIXELS = 50_000_000  # of results that wait to be written, beside one
DRAWN_PIXELS = 25_000_000  # of an overlay: those of larger images are reduced


def predict(args) -> int:
    """Segment all images; the exit code: 1 where some could not be, which are listed at the end with the reason."""
    require_model(args.model)
    images = find_images(args.images, exclude=args.output)
    state = PartialState(cpu=needs_cpu_group(args.device))
    run = PredictionRun(args, state, image_ids_by_name(images))
    items = run.remaining(list(images.items())[state.process_index :: state.num_processes])
    started = time.perf_counter()
    run(items)
    done, failures = len(items) - len(run.failures), run.failures
    state.wait_for_everyone()
    if state.num_processes > 1:
        done, failures = sum(gather_object([done])), gather_object(failures)
    if state.is_main_process:
        run.results.finish(images)
        if args.as_dataset:
            names = {str(Path(name).with_name(file.name)): file for name, file in images.items()}
            count = write_dataset(args.output, args.as_dataset, run.task, names, args.least_score)
            print(f"{counted(count)} with pseudo-labels: eomt train --data {args.as_dataset} --task {run.task}")
        seconds = time.perf_counter() - started
        skipped = len(images) - done - len(failures)
        before = f" ({skipped} were there already)" if skipped else ""
        print(f"{counted(done)}{before} in {seconds:.1f} s, {done / seconds:.2f} images/s: {args.output}")
        for path, reason in sorted(failures):
            print(f"eomt predict: {path}: {reason}", file=sys.stderr)
        if failures:
            print(f"eomt predict: {len(failures)} of {counted(len(images))} could not be segmented", file=sys.stderr)
    return 1 if failures else 0


class PredictionRun:
    """One process's part: model, processor, results; `image_ids` are the whole run's {name: id}."""

    def __init__(self, args, state: PartialState, image_ids: dict[str, int | str]):
        self.args, self.is_main, self.image_ids = args, state.is_main_process, image_ids
        self.failures: list[tuple[str, str]] = []  # (file, reason)
        device = usable_device(args.device)
        at_once = None if args.tile else len(image_ids)
        self.model = load_model(args.model, at_once, dtype=getattr(torch, args.dtype)).eval().to(device)
        saved = self.model.attn_mask_probs.any()
        set_inference_masks(self.model)
        if self.is_main and saved and not self.model.attn_mask_probs.any():
            print("note: masked attention is on in this checkpoint; it is turned off", file=sys.stderr)
        if args.compile and not isinstance(self.model, torch.nn.Module):
            raise ValueError(f"--compile is for models in PyTorch; {args.model} is exported and runs on its engine")
        merge_tokens(self.model, args.token_merging, args.merging_layers)
        self.processor = AutoImageProcessor.from_pretrained(args.model, **({"task": args.task} if args.task else {}))
        self.task = self.processor.task
        if args.confidence and self.task != "semantic":
            raise ValueError(f"--confidence is for semantic segmentation, this model's task is {self.task}")
        if args.threshold is not None and self.task == "semantic":
            raise ValueError(f"--threshold {args.threshold} is not for semantic segmentation, this model's task")
        args.confidence |= bool(args.as_dataset) and self.task == "semantic"  # decides which pixels become labels
        self.threshold = TASK_ROWS[self.task].drawing_threshold if args.threshold is None else args.threshold
        self.id2label = dict(self.model.config.id2label)
        own = LabelSpace.from_config(self.model.config, name=str(args.model))
        space = label_space(args.label_space) if args.label_space else own
        if space.num_labels != own.num_labels:
            raise ValueError(
                f"--label-space {args.label_space} has {space.num_labels} classes, the model has {own.num_labels}"
            )
        settings = {"model": str(args.model), "label_space": args.label_space, "confidence": args.confidence}
        settings |= {"threshold": self.threshold, "dtype": args.dtype, "overlays": not args.no_overlays}
        settings["weights"] = weight_files(args.model)
        if args.tile:
            require_tiles(args.tile, args.overlap, self.task, self.model.config.patch_size)
            settings |= {"tile": args.tile, "overlap": args.overlap}
        if args.token_merging is not None:
            settings["token_merging"] = [args.token_merging, *args.merging_layers]
        with state.main_process_first():  # run.json is written once
            self.results = Results(args.output, self.task, space, settings)
        if args.compile:
            self.model = torch.compile(self.model)

    def remaining(self, items: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """Those of the (name, file) pairs that an earlier run has not done, or from another version of the file."""
        self.sources = {name: file_state(file) for name, file in items}
        for name, source in self.sources.items():
            self.results.discard_outdated(name, self.image_ids[name], source)
        return [(name, file) for name, file in items if not self.results.is_done(name)]

    def __call__(self, items: list[tuple[str, Path]]) -> None:
        """Segment the (name, file) pairs and write their results in threads."""
        allow_pixels(self.args.max_pixels)
        writing: list[tuple[Path, int, Future]] = []  # file, pixels
        bar = tqdm(total=len(items), desc="predict", unit="image", disable=not self.is_main)

        def failed(item: tuple[str, Path], reason: str) -> None:
            self.failures.append((str(item[1]), reason))
            bar.update()

        def finish(file: Path, pixels: int, future: Future) -> None:
            try:
                future.result()
            except FAILS_ALONE as error:
                self.failures.append((str(file), error_line(error)))

        with ThreadPoolExecutor(max_workers=2) as pool, bar:
            for result in self._segmented(items, failed):
                file = result.item[1]
                if (frames := count_frames(file)) > 1:
                    tqdm.write(f"note: {file}: the first of {frames} frames", file=sys.stderr)
                writing.append((file, result.size[0] * result.size[1], pool.submit(self._write, result)))
                del result
                while len(writing) > 2 * self.args.batch_size + 2 or sum(w[1] for w in writing) > WAITING_PIXELS:
                    finish(*writing.pop(0))
                bar.update()
            for waiting in writing:
                finish(*waiting)

    def _segmented(self, items: list[tuple[str, Path]], failed) -> Iterator[Inferred]:
        rules = {"panoptic": {"threshold": self.threshold}, "semantic": {"confidence": self.args.confidence}}
        rules = rules.get(self.task, {})
        if not self.args.tile:
            yield from infer(
                self.model,
                self.processor,
                items,
                batch_size=self.args.batch_size,
                num_workers=self.args.workers,
                read=partial(_read, max_pixels=self.args.max_pixels),
                on_error=failed,
                **rules,
            )
            return
        for item in items:
            try:
                result = self._infer_tiles(item, rules)
            except FAILS_ALONE as error:
                failed(item, error_line(error))
            else:
                yield result
                del result

    def _infer_tiles(self, item: tuple[str, Path], rules: dict) -> Inferred:
        picture, args = _read(item, self.args.max_pixels), self.args
        size = (picture.height, picture.width)
        count = len(cut(size, args.tile, args.overlap))
        with tqdm(
            total=count + 1, desc=item[0], unit="tile", leave=False, disable=count == 1 or not self.is_main
        ) as bar:
            prediction = infer_tiles(
                self.model,
                self.processor,
                picture,
                tile=args.tile,
                overlap=args.overlap,
                batch_size=args.batch_size,
                on_tile=bar.update,
                **rules,
            )
        return Inferred(item, size, prediction)

    def _write(self, result: Inferred) -> None:
        """Pictures first: the results' record marks the image as done."""
        name, file = result.item
        if not self.args.no_overlays or self.args.confidence:
            self._draw(name, file, result.prediction)
        file_name = str(Path(name).with_name(file.name))  # with its folders: names alone may repeat
        self.results.write(name, file_name, result.prediction, self.image_ids[name], self.sources[name])

    def _draw(self, name: str, file: Path, prediction: dict) -> None:
        picture = read_image(file)
        step = math.ceil(math.sqrt(picture.width * picture.height / DRAWN_PIXELS))
        picture = picture.reduce(step) if step > 1 else picture
        shown = confident_instances(prediction, self.threshold) if self.task == "instance" else prediction
        if not self.args.no_overlays:
            overlay = draw_prediction(picture, shown, self.id2label, step, legend=True)
            write_jpeg(self.results.path("overlays", name, ".jpg"), overlay)
        if self.args.confidence:
            confidence = prediction["confidence"].numpy()
            stored = np.empty(confidence.shape, np.uint16)
            for row, values in zip(stored, confidence):
                row[:] = np.floor(values * 65535)  # as BRAVO wants it
            write_atomic(self.results.path("confidence", name, ".png"), Image.fromarray(stored).save)
            plain = draw_prediction(picture, shown, self.id2label, step)
            heat = draw_confidence(confidence[::step, ::step])
            sheet = side_by_side([("image", picture), ("prediction", plain), ("confidence", heat)])
            write_jpeg(self.results.path("confidence_pictures", name, ".jpg"), sheet)


def _read(item: tuple[str, Path], max_pixels: int) -> Image.Image:
    """Called in the data-loading processes."""
    allow_pixels(max_pixels)
    return read_image(item[1], max_pixels=max_pixels)
