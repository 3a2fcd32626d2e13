"""What `make bench` runs: ratios against the model and processor built into transformers, same work, one run."""
