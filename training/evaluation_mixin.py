"""Evaluation inside the Trainer: the task's metric, batch by batch, without masked attention."""

import math
import time
from contextlib import contextmanager

from transformers.trainer_utils import speed_metrics

from ..configuration.labels import LabelSpace
from .data.wrappers import SignalSafeDataset
from .evaluation import evaluate_model


class EvaluationMixin:
    """Mixin of a `Trainer`: `evaluate` gives PQ, mIoU or AP and keeps no predictions.

    `evaluation_details`: the last metric in full, lists per class included.
    """

    evaluation_details: dict | None = None

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Task's metric over the images at their own sizes: `eval_pq`, `eval_mean_iou` or `eval_ap` and
        their parts; masked attention off unless `masking` is "always". Samples made for training give `eval_loss`."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if isinstance(dataset, dict):
            results = {}
            for name, part in dataset.items():
                results |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return results
        if dataset is None or not len(dataset):
            raise ValueError("there is no evaluation data; give eval_dataset with at least one image")
        if "reference" not in dataset[0]:
            with self.inference_masking():
                return super().evaluate(dataset, ignore_keys, metric_key_prefix)
        if self.processing_class is None:
            raise ValueError("evaluation needs the image processor; give EoMTTrainer a processing_class")
        return self._evaluate_metric(dataset, metric_key_prefix)

    def _evaluate_metric(self, dataset, prefix: str) -> dict[str, float]:
        args, started = self.args, time.time()
        with self.inference_masking():
            self.evaluation_details = self._stream(dataset, intermediate=False)
        if args.evaluate_blocks and self.accelerator.unwrap_model(self.model).attn_mask_probs.any():
            masked = self._stream(dataset, intermediate=True)  # as it trains at this moment
            self.evaluation_details |= {name: value for name, value in masked.items() if "_block_" in name}
        metrics = {
            f"{prefix}_{name}": value
            for name, value in self.evaluation_details.items()
            if isinstance(value, (int, float))
        }
        steps = math.ceil(len(dataset) / (args.per_device_eval_batch_size * args.world_size))
        metrics |= speed_metrics(prefix, started, num_samples=len(dataset), num_steps=steps)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def _stream(self, dataset, intermediate: bool) -> dict:
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            with self.accelerator.autocast():
                return evaluate_model(
                    model,
                    self.processing_class,
                    SignalSafeDataset(dataset),
                    task=model.config.task,
                    label_space=LabelSpace.from_config(model.config),
                    batch_size=args.per_device_eval_batch_size,
                    num_workers=args.dataloader_num_workers,
                    intermediate=intermediate,
                    progress=not args.disable_tqdm,
                )
        finally:
            model.train(was_training)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs.pop("file_name", None)
        return super().prediction_step(model, inputs, True, ignore_keys)  # masks of a data set fit no memory

    @contextmanager
    def inference_masking(self):
        """The model as it is at inference: without masks, unless they are to stay."""
        model = self.accelerator.unwrap_model(self.model)
        before = model.attn_mask_probs.tolist()
        if self.args.masking != "always":
            model.set_attn_mask_probs([0.0] * len(before))
        try:
            yield
        finally:
            model.set_attn_mask_probs(before)
