"""`eomt predict`: segment image files; write machine-readable results and overlays."""

import glob
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from .configuration import TASK_ROWS
from .configuration.labels import LabelSpace
from .drawing import draw_confidence, draw_prediction, side_by_side, write_jpeg
from .image_processing.bands import open_any, picture_of
from .image_processing.images import is_animated
from .image_processing.inference import FAILS_ALONE, Inferred, confident_instances, counted, error_line, infer
from .image_processing.rasters import Raster, open_raster
from .loading import load_for_inference, model_files, needs_cpu_group, require_model
from .options import PredictOptions
from .results import Results, file_state, image_ids_by_name
from .tiling import infer_tiled, require_tiles
from .training.data.files import HEIC_SUFFIXES, IMAGE_SUFFIXES, files_below

WAITING_PIXELS = 50_000_000  # in results that wait for a writer, unless a single one is larger
DRAWN_PIXELS = 25_000_000  # in an overlay; overlays of larger images are reduced


def predict(sources: Sequence[str], options: PredictOptions) -> int:
    """Segment images and list failures at the end. Returns the exit code: 1 if any image failed."""
    require_model(options.model)
    images = find_images(sources, exclude=options.output)
    image_ids = image_ids_by_name(images)
    state = PartialState(cpu=needs_cpu_group(options.device))
    model, processor = load_for_inference(
        options.model,
        options.device,
        task=options.task,
        masked=options.masked,
        token_merging=options.token_merging,
        merging_layers=options.merging_layers,
        dtype=getattr(torch, options.dtype),
        num_requests=1 if options.tile or len(images) == 1 else None,
    )
    require_options(options, processor.task, model)
    threshold = TASK_ROWS[processor.task].drawing_threshold if options.threshold is None else options.threshold
    labels = LabelSpace.from_config(model.config, name=str(options.model))
    with state.main_process_first():  # the main process writes run.json, the others check it
        results = Results(options.output, processor.task, labels, settings(options, threshold))
    share = list(images.items())[state.process_index :: state.num_processes]  # independent of the images done so far
    states = {name: file_state(file) for name, file in share}
    items = {file: name for name, file in share if results.needs(name, image_ids[name], states[name])}
    if options.compile:
        model = torch.compile(model)

    started = time.perf_counter()
    failures: list[tuple[str, str]] = []
    bar = tqdm(total=len(items), desc="predict", unit="image", disable=not state.is_main_process)

    def failed(file: Path | str, reason: str) -> None:
        failures.append((str(file), reason))
        bar.update()

    def write(result: Inferred) -> None:
        """Write the overlay, then the results: their record marks the image as done."""
        name = items[result.item]
        if is_drawn:
            draw_files(results, name, read(result.item), result, options, threshold, model.config.id2label)
        file_name = str(Path(name).with_name(Path(result.item).name))  # with folders: file names alone may repeat
        results.write(name, file_name, result.prediction, image_ids[name], states[name])

    is_drawn = options.overlays or options.confidence
    downloads = TemporaryDirectory()
    opened = open_raster if options.tile else open_any
    kept = downloads.name if is_drawn else None
    read = partial(opened, channels=processor.num_channels, max_pixels=options.max_pixels, kept=kept)
    common = {"read": read, "on_error": failed, "batch_size": options.batch_size}
    common |= {"panoptic": {"threshold": threshold}, "semantic": {"confidence": options.confidence}}.get(
        processor.task, {}
    )
    if options.tile:
        tiles = {"tile": options.tile, "overlap": options.overlap, "show_progress": state.is_main_process}
        found = infer_tiled(model, processor, list(items), **tiles, **common)
    else:
        found = infer(model, processor, list(items), num_workers=options.workers, **common)
    with downloads, bar, writing_threads(write, failures, most_results=2 * options.batch_size + 2) as submit:
        for result in found:
            if is_animated(result.item):
                tqdm.write(f"note: {result.item}: only the first frame is segmented", file=sys.stderr)
            submit(result)
            del result  # results of large images are large
            bar.update()
    return finish(results, images, len(items), failures, state, time.perf_counter() - started)


def require_options(options: PredictOptions, task: str, model) -> None:
    """Raise `ValueError` for options that would have no effect."""
    if options.confidence and task != "semantic":
        raise ValueError(f"--confidence is for semantic segmentation; the task of this model is {task}")
    if options.threshold is not None and task == "semantic":
        raise ValueError(f"--threshold {options.threshold} cannot be used with semantic segmentation")
    if options.tile:
        require_tiles(options.tile, options.overlap, model.config.patch_size)
    if options.compile and not isinstance(model, torch.nn.Module):
        raise ValueError(f"--compile is for PyTorch models; {options.model} is exported and runs on its engine")


def settings(options: PredictOptions, threshold: float) -> dict:
    """Settings that change the results. `Results` refuses to mix runs with different ones."""
    names = ("confidence", "dtype", "overlays", "masked", "tile", "token_merging")
    found = {name: getattr(options, name) for name in names}
    if options.tile:
        found["overlap"] = options.overlap
    if options.token_merging is not None:
        found["merging_layers"] = list(options.merging_layers)
    return {"model": options.model, "weights": model_files(options.model), "threshold": threshold} | found


@contextmanager
def writing_threads(
    write: Callable[[Inferred], None], failures: list[tuple[str, str]], most_results: int
) -> Iterator[Callable[[Inferred], None]]:
    """Two threads that write results. Yields a function that submits a result, and blocks while the queue is full."""
    waiting: list[tuple[str, int, Future]] = []  # file, pixels, future of the writer

    def finish_first() -> None:
        file, _, future = waiting.pop(0)
        try:
            future.result()
        except FAILS_ALONE as error:
            failures.append((file, error_line(error)))

    def submit(result: Inferred) -> None:
        waiting.append((str(result.item), math.prod(result.size), pool.submit(write, result)))
        while len(waiting) > most_results or sum(pixels for _, pixels, _ in waiting) > WAITING_PIXELS:
            finish_first()

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield submit
        while waiting:
            finish_first()


def draw_files(
    results: Results, name: str, image, result: Inferred, options: PredictOptions, threshold: float, id2label: dict
) -> None:
    prediction = result.prediction
    step = math.ceil(math.sqrt(math.prod(result.size) / DRAWN_PIXELS))
    if isinstance(image, Raster):
        image = picture_of(image.reduced(step))
    else:
        image = image if isinstance(image, Image.Image) else picture_of(image)
        image = image.reduce(step)
    shown = confident_instances(prediction, threshold) if "masks" in prediction else prediction
    if options.overlays:
        overlay = draw_prediction(image, shown, id2label, step, legend=True)
        write_jpeg(results.path("overlays", name, ".jpg"), overlay)
    if options.confidence:
        plain = draw_prediction(image, shown, id2label, step)
        heat = draw_confidence(prediction["confidence"].numpy()[::step, ::step])
        sheet = side_by_side([("image", image), ("prediction", plain), ("confidence", heat)])
        write_jpeg(results.path("confidence_pictures", name, ".jpg"), sheet)


def finish(results: Results, images: dict, tried: int, failures: list, state: PartialState, seconds: float) -> int:
    """Gather the processes, join the results and print a summary. Returns the exit code."""
    state.wait_for_everyone()
    if state.num_processes > 1:
        tried, failures = sum(gather_object([tried])), gather_object(failures)
    if state.is_main_process:
        results.finish(images)
        done = tried - len(failures)
        before = f" ({len(images) - tried} already done)" if tried < len(images) else ""
        print(f"{counted(done)}{before} in {seconds:.1f} s, {done / seconds:.2f} images/s: {results.output}")
        for path, reason in sorted(failures):
            print(f"eomt predict: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
        if failures:
            print(f"eomt predict: {len(failures)} of {counted(len(images))} failed", file=sys.stderr)
    return 1 if failures else 0


# --- input files -----------------------------------------------------------------------------------------------------


def find_images(sources: Iterable[str | Path], exclude: Path | None = None) -> dict[str, Path | str]:
    """{name: file or URL} of files, folders (searched recursively), globs and URLs, in a fixed order.

    A name is the path below the folder (or below the fixed part of the glob) without suffix. Repeated names are made
    unique by the path from the common root, then by the suffix: "a/1", "b/1"; "1_jpg", "1_png". A file "1_jpg.png"
    beside these keeps its name, and "1.jpg" becomes "1_jpg_".

    Args:
        exclude: a folder to leave out, such as the results of an earlier run.

    Raises:
        ValueError: for a source without images.
        FileNotFoundError: for a source that does not exist.
    """
    named: dict[Path | str, str] = {}
    for source in map(str, sources):
        if source.startswith(("http://", "https://")):
            named[source] = Path(source.partition("?")[0]).stem or "image"
            continue
        found = [(base, path.absolute()) for base, path in _expand(source)]
        found = [(base, path) for base, path in found if exclude is None or exclude.absolute() not in path.parents]
        if not found:
            raise ValueError(f"no images in {source!r}; give image files, a folder of images, or a glob")
        for base, path in found:
            named.setdefault(path, path.relative_to(base.absolute()).with_suffix("").as_posix())
    if len(set(named.values())) < len(named):
        files = [path for path in named if isinstance(path, Path)]
        root = Path(os.path.commonpath([path.parent for path in files])) if files else None
        for path in files:
            named[path] = path.relative_to(root).with_suffix("").as_posix()
    uses = Counter(named.values())
    taken = {name for name, count in uses.items() if count == 1}
    unique = {}
    for path, name in named.items():
        if uses[name] > 1:
            name = f"{name}_{Path(path).suffix[1:]}"
            while name in taken:
                name += "_"
            taken.add(name)
        unique[name] = path
    return unique


def _expand(source: str) -> Iterator[tuple[Path, Path]]:
    """Pairs (base folder, file) of one source."""
    path = Path(source)
    if path.is_dir():
        for name in sorted(files_below(str(path))):
            file = path / name
            if file.suffix.lower() in (*IMAGE_SUFFIXES, *HEIC_SUFFIXES) and not file.name.startswith("."):
                yield path, file
    elif path.is_file():
        yield path.parent, path
    elif path.exists():
        raise ValueError(f"{source!r} is a pipe or a device; give an image file")
    elif glob.has_magic(source):
        fixed = Path()
        for part in path.parts[:-1]:
            if glob.has_magic(part):
                break
            fixed /= part
        for match in sorted(glob.glob(source, recursive=True)):
            if Path(match).is_file():
                yield fixed, Path(match)
    else:
        raise FileNotFoundError(f"there is no file or folder {source!r}")
