"""`EoMTImageSegmentationPipeline`: transformers' image-segmentation pipeline with complete, overlapping instances.

    pipeline("image-segmentation", model=…, pipeline_class=EoMTImageSegmentationPipeline)

The stock pipeline works too; its instances cannot overlap, and it clips 16-bit pictures at 255.
"""

from PIL import Image
from transformers import ImageSegmentationPipeline

from .configuration import TASK_ROWS
from .image_processing.images import URL_TIMEOUT, open_image, upright
from .image_processing.inference import confident_instances, iter_segments, predict_image


class EoMTImageSegmentationPipeline(ImageSegmentationPipeline):
    """As the stock pipeline, except that an instance model's masks are complete (they may overlap), best first, and
    that thresholds left out are the paper's: 0.8 and 0.8 for panoptic, the 0.5 people look at for instances."""

    def preprocess(self, image, subtask=None, timeout=URL_TIMEOUT):
        # as the stock pipeline, which turns pictures too
        picture = open_image(upright(image) if isinstance(image, Image.Image) else image, timeout=timeout)
        inputs = self.image_processor(images=[picture], return_tensors="pt").to(self.dtype)
        inputs["target_size"] = [(picture.height, picture.width)]
        return inputs

    def postprocess(
        self, model_outputs, subtask=None, threshold=None, mask_threshold=0.5, overlap_mask_area_threshold=0.8
    ):
        task = subtask or self.image_processor.task
        if task not in TASK_ROWS:
            raise ValueError(f"subtask is {task!r}; choose from {', '.join(TASK_ROWS)}")
        threshold = TASK_ROWS[task].drawing_threshold if threshold is None else threshold
        rules = {} if task == "semantic" else {"mask_threshold": mask_threshold}
        if task == "panoptic":
            rules |= {"threshold": threshold, "overlap_mask_area_threshold": overlap_mask_area_threshold}
        found = predict_image(self.image_processor, model_outputs, model_outputs["target_size"][0], task, **rules)
        if task == "instance":
            found = confident_instances(found, threshold)
        names = self.model.config.id2label
        return [
            {"score": score, "label": names[label], "mask": Image.fromarray(mask.astype("u1") * 255)}
            for label, score, mask in iter_segments(found)
        ]
