"""Tokens → masks: encoder, masked attention, heads, matcher, loss, the model, checkpoints."""
