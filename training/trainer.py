"""`EoMTTrainer`: transformers' Trainer with the paper's training (§4.1) and evaluation.

trainer = EoMTTrainer(model, EoMTTrainingArguments("runs/mine"), train_dataset=…, eval_dataset=…,
                      processing_class=processor)
trainer.train(); trainer.evaluate(); trainer.save_model()
"""

import math
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path

import torch
from datasets import IterableDataset
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput, speed_metrics
from transformers.utils import logging

from ..configuration import TASK_ROWS
from ..configuration.labels import LabelSpace
from ..configuration.pmt import PMTConfig
from ..modeling_eomt import PMTForUniversalSegmentation
from .annealing import MaskAnnealingCallback
from .arguments import EoMTTrainingArguments
from .callbacks import AveragingCallback, CurvesCallback, InterruptionCallback, PatienceCallback
from .card import run_card
from .checkpoints import STAGING, check_length, checkpoint_name, checkpoint_to_resume, put_in_place
from .collator import EoMTDataCollator
from .data.samples import RepeatableDataset, SignalSafeDataset
from .data.stream import StreamedBatches, StreamLoader
from .evaluation import evaluate_model
from .features import cached_features
from .files import write_text
from .lora import add_lora, merged_state_dict
from .optimizer import (
    is_pretrained,
    layerwise_lr_groups,
    normalizer_shares,
    two_stage_warmup_poly_schedule,
    warmup_cosine_schedule,
)
from .processes import gather

logger = logging.get_logger(__name__)

MAX_CONSECUTIVE_OVERFLOWS = 10  # of the loss in fp16; this many end the run
DIVERGED = 10  # least ratio of last to lowest loss in a diverged run
UNLOGGED = "UnloggedLosses"  # in a checkpoint's trainer_state.json
ROPE_AUGMENTATION = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


class NonFiniteLoss(ValueError):
    """The loss is NaN or infinite. The message names the step and the files of the batch."""


class LossLog:
    """Sums of the loss parts since the last log entry.

    Checkpoints hold them, so that the first entry of a resumed run covers all its steps.
    """

    def __init__(self):
        self.parts: dict[str, torch.Tensor] = defaultdict(float)
        self.start = 0  # step of the last entry
        self.skipped = 0  # batches with an overflow in fp16 since then

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        for name, value in parts.items():
            self.parts[name] = self.parts[name] + value.detach().float()

    def clear(self, step: int) -> None:
        self.parts.clear()
        self.start, self.skipped = step, 0

    def sums(self, accelerator) -> dict[str, float]:
        """The sum of each part, averaged over the processes. All processes must call this."""
        if not self.parts:
            return {}
        names = sorted(self.parts)
        values = torch.stack([self.parts[name] for name in names])
        return dict(zip(names, accelerator.reduce(values, reduction="mean").tolist()))

    def state(self, accelerator) -> dict:
        return {"losses": self.sums(accelerator), "logged_step": self.start, "lost": self.skipped}

    def load(self, state: dict, device) -> None:
        for name, value in state["losses"].items():
            self.parts[name] = torch.tensor(value, device=device)
        self.start, self.skipped = state["logged_step"], state["lost"]


class EoMTTrainer(Trainer):
    """Trains and evaluates EoMT.

    It adds to the stock Trainer: layer-wise learning rates, two-stage warm-up and polynomial decay; mask annealing;
    loss parts, learning rates of heads, first and last block and mask probabilities in the logs; the exact loss and
    gradient of accumulated batches; repeatable augmentation, so that `train(resume_from_checkpoint=True)` has the same
    result as an uninterrupted run; atomic checkpoints.

    Args:
        model: `EoMTForUniversalSegmentation`, also wrapped by peft.
        args: `EoMTTrainingArguments`.
        data_collator: by default an `EoMTDataCollator` with the normalization of the processor.
        train_dataset: samples {"pixel_values", "mask_labels", "class_labels", "file_name"?} (`TrainTransform`). An
            `IterableDataset` of `datasets` needs `max_steps`; a resumed run does not read earlier images again.
        eval_dataset: samples {"image", "reference", …} (`EvaluationTransform`) for PQ, mIoU or AP at original sizes,
            or training samples for the loss. A dictionary evaluates several sets, each under its name.
        processing_class: `EoMTImageProcessor` of the model, for evaluation. It is saved with the model.

    Raises:
        ValueError: for arguments of the stock Trainer that would have no effect.
    """

    evaluation_details: dict | None = None
    "Complete results of the last evaluation, with lists per class."

    def __init__(self, model=None, args: EoMTTrainingArguments | None = None, data_collator=None, **kwargs):
        args = EoMTTrainingArguments("tmp_trainer") if args is None else args
        _refuse(args, kwargs)
        processor = kwargs.get("processing_class")
        if data_collator is None and processor is not None:
            data_collator = EoMTDataCollator.from_processor(processor, keep_file_names=True)
        elif data_collator is None:
            data_collator = EoMTDataCollator(keep_file_names=True)
        super().__init__(model, args, data_collator, **kwargs)
        self._refuse_shards()
        self.losses = LossLog()
        self._overflows = 0
        self._file_names: list[str] | None = None  # of the current batch
        self._shares = None  # of each accumulated batch in the normalizers of the step
        self._learning_rates: dict[str, float] = {}
        self._repeatable: RepeatableDataset | None = None
        self._train_stream: StreamLoader | None = None
        self._saving = False  # whether a checkpoint is being saved, with LoRA and average apart from the weights
        self._prepare_model()
        self._choose_metric()
        self.interruption = InterruptionCallback(self.accelerator)
        self.averaging = AveragingCallback(self.args.ema) if self.args.ema else None
        self.add_callback(_RunCallback(self))
        if self.annealing is None:
            self.add_callback(MaskAnnealingCallback(power=self.args.poly_power, plan=self.args.annealing))
        if self.averaging is not None:
            self.add_callback(self.averaging)
        self.add_callback(self.interruption)
        self.add_callback(CurvesCallback())
        self.early_stopping = PatienceCallback(self, self.args.early_stopping) if self.args.early_stopping else None
        if self.early_stopping is not None:
            self.add_callback(self.early_stopping)

    # --- set-up ----------------------------------------------------------------------------------------------------

    def _refuse_shards(self) -> None:
        """Raise `ValueError` for options that need all weights in one process, if weights are sharded."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return
        by = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
        for name, instead in (("ema", "leave ema out"), ("lora", "give freeze_backbone")):
            if getattr(self.args, name):
                raise ValueError(f"{name} does not work with {by}; use ddp.yaml or torchrun, or {instead}")

    def _prepare_model(self) -> None:
        """Apply task, masking, frozen backbone and LoRA to the model, and adapt the processor to it."""
        args, config, processor = self.args, self.model.config, self.processing_class
        if args.task:
            config.task = args.task
        config.masked_attention = args.masking != "never"
        given = [name for name in ROPE_AUGMENTATION if getattr(config, name, None) is not None]
        if given and not args.rope_augmentation:
            logger.info(f"{', '.join(given)} turned off, as in the authors' training; rope_augmentation keeps it")
            for name in given:
                setattr(config, name, None)
        if getattr(processor, "task", config.task) != config.task:
            logger.warning(f"the task of the processor is {processor.task}; using that of the model, {config.task}")
            processor.task = config.task
            processor.do_split_image = config.task == "semantic"
            processor.do_pad = not processor.do_split_image
        stuff = getattr(processor, "stuff_label_ids", None)
        if stuff is not None and sorted(stuff) != sorted(config.stuff_label_ids):
            logger.warning(f"stuff_label_ids of the processor are {stuff}; using those of the model")
            processor.stuff_label_ids = list(config.stuff_label_ids)
        if isinstance(config, PMTConfig) and (args.freeze_backbone or args.lora):
            raise ValueError("PMT's backbone is frozen; leave out freeze_backbone and lora")
        if args.freeze_backbone:
            for name, parameter in self.model.named_parameters():
                if is_pretrained(name):
                    parameter.requires_grad_(False)
        if args.lora:
            add_lora(self.model, args.lora)

    def _choose_metric(self) -> None:
        """Set the metric for the best checkpoint: the given one, else that of the task, else the loss."""
        args, dataset = self.args, self.eval_dataset
        if args.given["metric_for_best_model"] is not None or not args.keeps_best:
            return
        if isinstance(dataset, dict):
            names = ", ".join(dataset)
            raise ValueError(
                f"the best of several evaluation sets ({names}) is not defined; give metric_for_best_model"
            )
        scored = dataset is not None and len(dataset) and "reference" in dataset[0]
        args.metric_for_best_model = TASK_ROWS[self.model.config.task].metric_key if scored else "loss"
        args.greater_is_better = bool(scored)

    @property
    def annealing(self) -> MaskAnnealingCallback | None:
        """The callback for the mask probabilities: the user's, else one by `args`."""
        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, MaskAnnealingCallback)), None)

    def add_callback(self, callback) -> None:
        """Add a callback. Mask annealing replaces the previous one."""
        callback = callback() if isinstance(callback, type) else callback
        if isinstance(callback, MaskAnnealingCallback) and self.annealing is not None:
            self.remove_callback(self.annealing)
        super().add_callback(callback)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            args, model = self.args, self.model if model is None else model
            groups = layerwise_lr_groups(
                model, args.learning_rate, args.llrd, args.llrd_l2_enabled, args.backbone_learning_rate
            )
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = optimizer_class(groups, **{**options, "weight_decay": args.weight_decay})
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            optimizer, warmup = optimizer or self.optimizer, self.args.warmup(num_training_steps)
            if isinstance(self.accelerator.unwrap_model(self.model).config, PMTConfig):
                self.lr_scheduler = warmup_cosine_schedule(optimizer, warmup[0], num_training_steps)
            else:
                self.lr_scheduler = two_stage_warmup_poly_schedule(
                    optimizer, warmup_steps=warmup, total_steps=num_training_steps, power=self.args.poly_power
                )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self):
        dataset, args = self.train_dataset, self.args
        if dataset is None:
            return super().get_train_dataloader()
        if isinstance(dataset, IterableDataset):
            return self._stream_loader(dataset)
        if not len(dataset):
            raise ValueError("the training data set is empty; it needs at least one image")
        if args.dataloader_drop_last and len(dataset) < args.total_batch_size:
            raise ValueError(
                f"{len(dataset)} images are less than a batch of {args.total_batch_size}, and dataloader_drop_last "
                "drops incomplete batches; lower total_batch_size, or turn dataloader_drop_last off"
            )
        self._repeatable = self._repeatable_samples(dataset)
        return self._get_dataloader(
            dataset=self._repeatable,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _stream_loader(self, dataset: IterableDataset) -> StreamLoader:
        args = self.args
        args.ignore_data_skip = True  # a resumed stream starts at its place
        batches = StreamedBatches(
            dataset,
            self.data_collator,
            batch_size=self._train_batch_size,
            drop_last=args.dataloader_drop_last,
            seed=args.seed,
            process=args.process_index,
            processes=args.world_size,
        )
        self._train_stream = StreamLoader(
            batches,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        return self._train_stream

    def _repeatable_samples(self, dataset) -> RepeatableDataset:
        args = self.args
        if not args.cache_features:
            return RepeatableDataset(dataset, args.seed)
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PMTForUniversalSegmentation):
            raise ValueError("cache_features needs a frozen backbone; give architecture pmt, or leave it out")
        folder = Path(args.cache_features)  # a lock lets one process write it
        return cached_features(dataset, model, self.data_collator, folder, args.seed, args.cached_crops)

    def _get_train_sampler(self, train_dataset=None):
        """`dataloader_drop_last` drops the last incomplete step of an epoch, not only an incomplete batch."""
        sampler, args = super()._get_train_sampler(train_dataset), self.args
        if isinstance(sampler, RandomSampler) and args.dataloader_drop_last and args.gradient_accumulation_steps > 1:
            images = len(train_dataset) // args.total_batch_size * args.total_batch_size
            return RandomSampler(train_dataset, num_samples=images)
        return sampler

    # --- a run -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train. True resumes from the last complete checkpoint, or starts a run without any checkpoint.

        A finished run is loaded and not trained further.

        Raises:
            ValueError: for True, if all checkpoints are incomplete; for a checkpoint of a run of another length.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step is done and a checkpoint saved.
            NonFiniteLoss: with the step and the files of the batch.
        """
        self.model.config.masked_inference = self.args.masking == "always"
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoint_to_resume(self.args.output_dir)
        checkpoint = resume_from_checkpoint or None
        if checkpoint is not None:
            *_, steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
            check_length(checkpoint, steps)
            self.args.count_steps(steps)  # intervals in steps, as in the state of the checkpoint
            state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))
            stopped = self.early_stopping is not None and self.early_stopping.is_over(self.args, state)
            if stopped or state.global_step >= steps:
                return self._load_finished(checkpoint, state)
        with self.interruption.listening():
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _load_finished(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        """Restore the final model of a finished run from its last checkpoint."""
        self.state = state
        self._point_to_best(self.args.output_dir, existing=True)  # the folder may have been moved
        self._load_from_checkpoint(checkpoint)
        if self.averaging is not None:
            self.averaging.load(checkpoint, self.args.device)
            self.averaging.on_train_begin(self.args, state, self.control, model=self.model)
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        if self.averaging is not None:
            self.averaging.on_train_end(self.args, state, self.control)
        self.set_inference_masks()
        return TrainOutput(state.global_step, 0.0, {})

    def _finalize_training(self, *args) -> TrainOutput:
        """Keep the last checkpoint, to resume from. For a limit of 1, the stock Trainer keeps the best one only."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        output = super()._finalize_training(*args)
        self.args.save_total_limit = limit
        return output

    def set_inference_masks(self) -> None:
        """Turn masked attention off, unless the model is trained with masks to the end."""
        model = self.accelerator.unwrap_model(self.model)
        model.set_attn_mask_probs([float(model.config.masked_inference)] * model.config.num_blocks)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        config = self.accelerator.unwrap_model(self.model).config
        self._shares = iter(normalizer_shares(batches, config, self.accelerator)) if len(batches) > 1 else None
        return batches, items

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._file_names = inputs.pop("file_name", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.zeros_like(loss) if self._overflows else loss  # the stock Trainer averages it

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "file_name"}
        outputs = model(**inputs, output_auxiliary_logits=return_outputs)
        loss = outputs["loss"]
        if loss is None:
            raise ValueError("the batch has no mask_labels and class_labels; the loss needs both")
        if model.training:
            parts = outputs["loss_dict"]
            if self._shares is not None:
                mask_share, class_share = next(self._shares)
                parts = {
                    name: value * (class_share if "cross_entropy" in name else mask_share)
                    for name, value in parts.items()
                }
                loss = sum(parts.values())
            if self._finite_everywhere(loss, parts):
                self.losses.add(parts)
            if self._shares is not None:
                loss = loss * self.current_gradient_accumulation_steps  # the stock training_step divides by it
        return (loss, outputs) if return_outputs else loss

    def _finite_everywhere(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> bool:
        """Whether the losses of all processes are finite. Otherwise all raise, as none may wait for another.

        In fp16 the gradient scaler skips steps with an overflow, so only many in a row end the run.
        """
        finite = torch.isfinite(loss).float()
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite, reduction="mean")
        if finite == 1:
            self._overflows = 0
            return True
        found = gather(None if torch.isfinite(loss) else self._not_finite(loss.item(), parts))
        message = next(text for text in found if text)
        self._overflows += 1
        if self.accelerator.scaler is None or self._overflows >= MAX_CONSECUTIVE_OVERFLOWS:
            raise NonFiniteLoss(message)
        self.losses.skipped += 1
        logger.warning(f"an fp16 step is skipped: {message}")
        return False

    def _not_finite(self, loss: float, parts: dict[str, torch.Tensor]) -> str:
        wrong = [name for name, value in parts.items() if not math.isfinite(value.item())]
        files = ", ".join(str(name) for name in self._file_names or []) or "unknown (the data set has no file_name)"
        return (
            f"the loss is {loss} at step {self.state.global_step} ({', '.join(wrong)}); files of the batch: {files}; "
            "check them, lower learning_rate, or set precision to fp32"
        )

    # --- logs and checkpoints --------------------------------------------------------------------------------------

    def _get_learning_rate(self) -> float:
        """The rate of the heads. Also stores those of first and last block, before the next step of the schedule."""
        groups = self.optimizer.param_groups
        rates = {group["name"]: float(group["lr"]) for group in groups if "name" in group}  # a user's may have no names
        last = f"layers.{self.accelerator.unwrap_model(self.model).config.num_hidden_layers - 1}."
        for key, prefix in (("first", "layers.0."), ("last", last)):
            rate = next((value for name, value in rates.items() if name.startswith(prefix)), None)
            if rate is not None:  # a frozen backbone has none
                self._learning_rates[f"learning_rate_{key}_block"] = rate
        heads = (rate for name, rate in rates.items() if not is_pretrained(name))
        return next(heads, float(groups[0]["lr"]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.losses.parts:
            step = self.state.global_step
            steps = step - self.losses.start - self.losses.skipped / self.args.gradient_accumulation_steps
            means = {name: value / max(1, steps) for name, value in self.losses.sums(self.accelerator).items()}
            self.losses.clear(step)
            logs |= {"loss": sum(means.values())} | means | self._learning_rates
            logs |= {f"attn_mask_prob_{i}": p for i, p in enumerate(self.annealing.probabilities)}
        super().log(logs, start_time)

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Save to a staging folder, and rename it to `checkpoint-<step>` when all processes have written their part."""
        folder, name = super()._get_output_dir(trial), checkpoint_name(self.state.global_step)
        self.state.stateful_callbacks[UNLOGGED] = {"args": {}, "attributes": self.losses.state(self.accelerator)}
        if self.args.should_save:
            shutil.rmtree(Path(folder, STAGING), ignore_errors=True)  # left by a killed run
        self.accelerator.wait_for_everyone()
        self._point_to_best(folder, existing=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # old ones are deleted after the rename
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        self._point_to_best(folder, existing=False)
        if self.args.should_save:
            put_in_place(folder, name, self.state, limit)
        self.accelerator.wait_for_everyone()

    def _point_to_best(self, folder: str, existing: bool) -> None:
        """Set the path of the best checkpoint to its final folder; the stock Trainer sets the staging folder."""
        if self.state.best_global_step:
            best = os.path.join(folder, checkpoint_name(self.state.best_global_step))
            current = self.state.best_global_step == self.state.global_step
            if os.path.isdir(best) or (current and not existing):
                self.state.best_model_checkpoint = best

    def _save(self, output_dir=None, state_dict=None) -> None:
        if self.args.lora and not self._saving:
            state_dict = merged_state_dict(self.accelerator.unwrap_model(self.model))
        super()._save(output_dir, state_dict)
        if self._saving and self.averaging is not None:
            self.averaging.save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._train_stream is not None:
            os.makedirs(output_dir, exist_ok=True)  # another process may not have come so far
            torch.save(self._train_stream.state_dict(), self._stream_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._train_stream is not None and checkpoint is not None:
            self._train_stream.load_state_dict(torch.load(self._stream_file(checkpoint), weights_only=True))
        if self.averaging is not None and checkpoint is not None:
            self.averaging.load(checkpoint, self.args.device)

    def _stream_file(self, folder: str) -> Path:
        """This process's place in the stream."""
        return Path(folder, f"stream_{self.args.process_index}.pt")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.averaging is not None:  # the average was evaluated, and becomes the model at the end
            self.averaging.load(self.state.best_model_checkpoint, self.args.device)

    def create_model_card(self, language=None, license=None, tags=None, model_name=None, **kwargs) -> None:
        """Write README.md in the output folder: recipe, settings and results of the run."""
        if self.is_world_process_zero():
            card = run_card(
                self.model.config, self.args, self.state, model_name or Path(self.args.output_dir).name, license
            )
            write_text(Path(self.args.output_dir, "README.md"), card)

    # --- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Metric of the task at original image sizes: `eval_pq`, `eval_mean_iou` or `eval_ap` and their parts.

        No prediction is kept. The weights are the average, if there is one. Masked attention is off, unless the model
        is trained with masks to the end. For training samples, the result is `eval_loss`. That loss also falls during
        mask annealing: before, training is masked and evaluation is not.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if isinstance(dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # calls this for each
        if dataset is None or not len(dataset):
            raise ValueError("there is no evaluation data; give eval_dataset with at least one image")
        if self.averaging is None:
            return self._measure(dataset, ignore_keys, metric_key_prefix)
        with self.averaging.applied():
            return self._measure(dataset, ignore_keys, metric_key_prefix)

    def _measure(self, dataset, ignore_keys, prefix: str) -> dict[str, float]:
        model = self.accelerator.unwrap_model(self.model)
        if "reference" not in dataset[0]:
            with model.inference_masking():
                return super().evaluate(SignalSafeDataset(dataset), ignore_keys, prefix)
        if self.processing_class is None:
            raise ValueError("evaluation needs the image processor; give EoMTTrainer a processing_class")
        args, started = self.args, time.time()
        with model.inference_masking():
            self.evaluation_details = self._stream(dataset, intermediate=False)
        if args.evaluate_blocks and model.attn_mask_probs.any():
            masked = self._stream(dataset, intermediate=True)  # with the current masks of training
            self.evaluation_details |= {name: value for name, value in masked.items() if "_block_" in name}
        metrics = {
            f"{prefix}_{name}": value
            for name, value in self.evaluation_details.items()
            if isinstance(value, (int, float))
        }
        if metrics.get(f"{prefix}_ap") == -1:  # no ground truth; −1 would make the first checkpoint the best
            metrics[f"{prefix}_ap"] = math.nan
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
        return super().prediction_step(model, inputs, True, ignore_keys)  # loss only: masks would not fit in memory


class _RunCallback(TrainerCallback):
    """Restores the sums of the log, sets the epoch of the data, and sets the masks for inference at the end."""

    def __init__(self, trainer: EoMTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.losses.clear(state.global_step)
        unlogged = state.stateful_callbacks.get(UNLOGGED)
        if unlogged is not None:
            self.trainer.losses.load(unlogged["attributes"], args.device)

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer._repeatable is not None:
            self.trainer._repeatable.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer._train_stream is not None:  # the stock Trainer counts from the resumed step
            state.epoch = state.global_step / state.max_steps

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.set_inference_masks()
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        if losses and losses[-1] > DIVERGED * min(losses):
            logger.warning(
                f"the run diverged: the loss rose from {min(losses):.3g} to {losses[-1]:.3g}; lower learning_rate"
            )


def _refuse(args, given: dict) -> None:
    """Raise `ValueError` for arguments of the stock Trainer that would have no effect here."""
    if not isinstance(args, EoMTTrainingArguments):
        raise ValueError(f"args are {type(args).__name__}; EoMTTrainer needs EoMTTrainingArguments")
    if args.remove_unused_columns:
        raise ValueError("remove_unused_columns is True; EoMT's samples need it to be False")
    if given.get("model_init") is not None:
        raise ValueError("model_init is given, but masking and LoRA are set up for one model only; give model instead")
    if given.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func is given; change model.criterion or compute_loss instead")
    if given.get("compute_metrics") is not None:
        raise ValueError("compute_metrics is given, but no predictions are kept; override evaluate instead")
    dataset = given.get("train_dataset")
    if isinstance(dataset, torch.utils.data.IterableDataset) and not isinstance(dataset, IterableDataset):
        raise ValueError(f"train_dataset is {type(dataset).__name__}; streams are IterableDatasets of `datasets` only")
    if isinstance(dataset, IterableDataset) and args.cache_features:
        raise ValueError("cache_features needs a data set with length and index; train_dataset is an IterableDataset")
