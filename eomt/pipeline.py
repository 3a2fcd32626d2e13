"""`EoMTImageSegmentationPipeline`: transformers' image-segmentation pipeline with whole, overlapping instances.

    pipeline("image-segmentation", model=…, pipeline_class=EoMTImageSegmentationPipeline)

The stock pipeline works too; its instances cannot overlap, and it clips 16-bit pictures at 255.
"""

import numpy as np
from PIL import Image
from transformers import ImageSegmentationPipeline

from eomt.image_processing.images import open_image, upright


class EoMTImageSegmentationPipeline(ImageSegmentationPipeline):
    """As the stock pipeline, except that an instance model's masks come out whole (they may overlap), best first, and
    that thresholds left out are the paper's: 0.8 and 0.8 for panoptic, the 0.5 people look at for instances."""

    def preprocess(self, image, subtask=None, timeout=None):
        # as the stock pipeline, which turns pictures too
        picture = open_image(upright(image) if isinstance(image, Image.Image) else image, timeout=timeout)
        inputs = self.image_processor(images=[picture], return_tensors="pt").to(self.dtype)
        inputs["target_size"] = [(picture.height, picture.width)]
        return inputs

    def postprocess(
        self, model_outputs, subtask=None, threshold=None, mask_threshold=0.5, overlap_mask_area_threshold=0.8
    ):
        task = subtask or self.image_processor.task
        if task != "instance" or not hasattr(self.image_processor, "post_process_instance_segmentation"):
            threshold = 0.8 if threshold is None else threshold
            return super().postprocess(model_outputs, task, threshold, mask_threshold, overlap_mask_area_threshold)
        result = self.image_processor.post_process_instance_segmentation(
            model_outputs,
            target_sizes=model_outputs["target_size"],
            threshold=0.5 if threshold is None else threshold,
            mask_threshold=mask_threshold,
            return_binary_maps=True,
        )[0]
        return [
            {
                "score": segment["score"],
                "label": self.model.config.id2label[segment["label_id"]],
                "mask": Image.fromarray(mask.numpy().astype(np.uint8) * 255),
            }
            for mask, segment in zip(result["segmentation"], result["segments_info"])
        ]
