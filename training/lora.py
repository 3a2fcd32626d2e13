"""LoRA on the backbone through peft: its matrices stay as they are, and learn a difference of a low rank.

Queries and heads train as ever. What is saved as the model has the differences merged in, so it loads anywhere.
"""

from torch import nn

from .optimizer import BACKBONE, is_lora

INNER = ".base_layer."  # where peft puts the matrix itself


def add_lora(model: nn.Module, rank: int) -> None:
    """Give the matrices of the backbone's blocks trainable differences of a rank, and freeze what else is pre-trained.

    Raises:
        ValueError: where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError(f"lora is {rank}, which needs peft: pip install '.[peft]' in the checkout") from None
    matrices = [
        name for name, module in model.named_modules() if name.startswith("layers.") and isinstance(module, nn.Linear)
    ]
    model.enable_input_require_grads()  # reentrant checkpointing gives a block no gradient where no input asks for one
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=matrices), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name) or not name.startswith(BACKBONE))


def merged_state_dict(model: nn.Module) -> dict:
    """The weights of a model with differences as those of one without, under its names."""
    from peft.tuners.lora import LoraLayer

    state = {name.replace(INNER, "."): value for name, value in model.state_dict().items() if not is_lora(name)}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight(adapter)
    return state
