"""A checkpoint given other labels: which ones, and what of its stuff still applies."""

from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


def new_labels(saved: dict | None, kwargs: dict[str, Any]) -> dict | None:
    """The labels that `id2label` or `num_labels`, taken out of `kwargs`, put in place of the saved ones, or None."""
    if kwargs.get("id2label") is not None:
        kwargs.pop("num_labels", None)
        return kwargs.pop("id2label")
    count = kwargs.get("num_labels")
    if not saved or not isinstance(count, int) or count == len(saved):
        return None
    return {label: f"LABEL_{label}" for label in range(kwargs.pop("num_labels"))}


def applicable_stuff(stuff: list[int], old: dict | None, new: dict) -> list[int]:
    """Stuff labels that are still the same class when `new` id2label replaces `old`; one log line names the others."""
    if old is None:
        return stuff
    old, new = ({int(label): name for label, name in names.items()} for names in (old, new))
    if old == new:
        return stuff
    kept = [label for label in stuff if new.get(label) == old.get(label) != f"LABEL_{label}"]
    if len(kept) < len(stuff):
        dropped = [label for label in stuff if label not in kept]
        logger.warning(f"the labels changed: stuff_label_ids {dropped} no longer apply and are dropped")
    return kept
