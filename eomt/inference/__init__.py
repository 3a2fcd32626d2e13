"""Images in, segments out: models, exported models and their engines, files."""
