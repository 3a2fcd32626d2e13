"""Images in, segments out: reading files, the model, post-processing by the task, results in the standard formats."""
