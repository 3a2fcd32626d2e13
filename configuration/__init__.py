"""What a model and a run are: no torch, no I/O."""
