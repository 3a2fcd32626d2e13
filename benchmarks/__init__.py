"""`make bench` and further measurements: this implementation beside the model and processor built into transformers."""
