"""Importing this module, before anything else that needs transformers, refuses one that is too old."""

from transformers.utils.versions import require_version

require_version("transformers>=5.13", "Run `pip install --upgrade transformers`.")
