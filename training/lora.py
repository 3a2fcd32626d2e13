"""LoRA on the backbone, by peft: the matrices are frozen and have trainable differences of low rank.

Queries and heads are trained as usual. The saved model has the differences merged, so it loads without peft.
"""

from torch import nn

from .optimizer import BACKBONE, is_lora

INNER = ".base_layer."  # peft's name of the frozen matrix


def add_lora(model: nn.Module, rank: int) -> None:
    """Add trainable differences of this rank to the matrices in the blocks, and freeze the backbone.

    Raises:
        ValueError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError(f"lora is {rank} and needs peft: pip install '.[peft]' in the checkout") from None
    matrices = [
        name for name, module in model.named_modules() if name.startswith("layers.") and isinstance(module, nn.Linear)
    ]
    model.enable_input_require_grads()  # reentrant checkpointing computes gradients only if an input requires one
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=matrices), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name) or not name.startswith(BACKBONE))


def merged_state_dict(model: nn.Module) -> dict:
    """The weights of a model with its differences merged, under the names of a model without LoRA."""
    from peft.tuners.lora import LoraLayer

    state = {name.replace(INNER, "."): value for name, value in model.state_dict().items() if not is_lora(name)}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight(adapter)
    return state
