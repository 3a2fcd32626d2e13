"""Third-party weights: key maps, state dicts, backbones, configurations inferred from checkpoints."""
