"""training/configs: the configurations of accelerate."""

import json
from pathlib import Path

import yaml

from eomt.modeling_eomt import EoMTForUniversalSegmentation

CONFIGS = Path(__file__).parent.parent.parent / "training" / "configs"


def test_accelerate_reads_the_launch_configurations():
    from accelerate.commands.config.config_args import load_config_from_file

    for name, kind in (("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed_zero2", "DEEPSPEED")):
        config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
        assert config.distributed_type == kind
        assert config.num_processes == 4
    fsdp = yaml.safe_load((CONFIGS / "fsdp.yaml").read_text())["fsdp_config"]
    assert fsdp["fsdp_transformer_layer_cls_to_wrap"] in EoMTForUniversalSegmentation._no_split_modules
    file = yaml.safe_load((CONFIGS / "deepspeed_zero2.yaml").read_text())["deepspeed_config"]["deepspeed_config_file"]
    assert json.loads((CONFIGS.parent.parent / file).read_text())["train_batch_size"] == "auto"
