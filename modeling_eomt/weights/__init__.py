"""Weights as others name them: key maps, the authors' and the backbones' checkpoints, resampling."""
