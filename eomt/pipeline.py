"""`EoMTImageSegmentationPipeline`: transformers' image-segmentation pipeline with complete, overlapping instances.

    pipeline("image-segmentation", model=…, pipeline_class=EoMTImageSegmentationPipeline)

The stock pipeline works, too, but its instances cannot overlap, and it clips 16-bit images at 255.
"""

from PIL import Image
from transformers import ImageSegmentationPipeline

from .configuration import TASK_ROWS
from .image_processing.images import URL_TIMEOUT, open_image, upright
from .image_processing.inference import confident_instances, iter_segments, predict_image


class EoMTImageSegmentationPipeline(ImageSegmentationPipeline):
    """The stock pipeline with complete instance masks, best score first. They may overlap.

    Default thresholds: for panoptic segmentation the paper's (score 0.8, visible share 0.8), for instances a score of
    0.5.
    """

    def preprocess(self, image, subtask=None, timeout=URL_TIMEOUT):
        if isinstance(image, Image.Image):
            image = upright(image)  # as the stock pipeline does
        image = open_image(image, timeout=timeout)
        inputs = self.image_processor(images=[image], return_tensors="pt").to(self.dtype)
        inputs["target_size"] = [(image.height, image.width)]
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
