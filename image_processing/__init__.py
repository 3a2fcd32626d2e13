"""Pixels ↔ tensors: geometry and its inverse, targets, post-processing, pictures, processors."""
