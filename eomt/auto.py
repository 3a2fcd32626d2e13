"""Registration with transformers' Auto classes: every EoMT checkpoint, also from the hub, then loads as ours."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from . import versions  # noqa: F401 (first: the modules below need names of newer versions of transformers)
from .configuration import EoMTConfig, EoMTDINOv3Config, EoMTEVA02Config, PMTConfig
from .image_processing import EoMTImageProcessor, EomtImageProcessor, EoMTImageProcessorPil, EomtImageProcessorPil
from .modeling_eomt import EoMTForUniversalSegmentation, PMTForUniversalSegmentation
from .modeling_eomt.ladder import LadderConfig, LadderDINOv3Config, LadderEVA02Config, LadderForUniversalSegmentation

MODEL_OF_CONFIG = {
    EoMTConfig: EoMTForUniversalSegmentation,
    EoMTDINOv3Config: EoMTForUniversalSegmentation,
    EoMTEVA02Config: EoMTForUniversalSegmentation,
    PMTConfig: PMTForUniversalSegmentation,
    LadderConfig: LadderForUniversalSegmentation,
    LadderDINOv3Config: LadderForUniversalSegmentation,
    LadderEVA02Config: LadderForUniversalSegmentation,
}
MODEL_CLASSES = (AutoModel, AutoModelForUniversalSegmentation, AutoModelForImageSegmentation)
# transformers looks up a saved processor by its class name. Ours are saved under the built-in names, so that they also
# load without this package. The last two entries are those names.
IMAGE_PROCESSORS = {
    "torchvision": EoMTImageProcessor,
    "pil": EoMTImageProcessorPil,
    "torchvision_by_hub_name": EomtImageProcessor,
    "pil_by_hub_name": EomtImageProcessorPil,
}


def register() -> None:
    """Shadow transformers' own `eomt` and `eomt_dinov3` behind the Auto classes and add our own model types."""
    for config_class, model_class in MODEL_OF_CONFIG.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class in MODEL_CLASSES:
            # auto_class.register allows one configuration for each model class; ours has three.
            auto_class._model_mapping.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes=IMAGE_PROCESSORS, exist_ok=True)
    # The pipeline checks class names against this table and would log an error for ours.
    for model_class in set(MODEL_OF_CONFIG.values()):
        MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES[model_class.__name__] = model_class.__name__
