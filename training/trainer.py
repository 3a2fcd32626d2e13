"""`EoMTTrainer`: transformers' Trainer with the paper's training (§4.1) and evaluation.

trainer = EoMTTrainer(model, EoMTTrainingArguments("runs/mine"), train_dataset=…, eval_dataset=…,
                      processing_class=processor)
trainer.train(); trainer.evaluate(); trainer.save_model()
"""

from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .arguments import EoMTTrainingArguments
from .callbacks.annealing import ConstantMasking, MaskAnnealingCallback, PlannedAnnealing
from .callbacks.averaging import AveragingCallback
from .callbacks.best import BestWeightsCallback
from .callbacks.curves import CurvesCallback
from .callbacks.estimate import EstimateCallback
from .callbacks.interruption import InterruptionCallback
from .collator import EoMTDataCollator
from .data.wrappers import RepeatableDataset
from .evaluation_mixin import EvaluationMixin
from .files import write_text
from .lora import add_lora
from .losses_mixin import LossesMixin
from .optimization.accumulation import normalizer_shares
from .optimization.optimizer import BACKBONE, layerwise_lr_groups
from .optimization.schedule import two_stage_warmup_poly_schedule
from .resumption import check_length, planned_steps
from .run_checkpoints import AtomicCheckpointsMixin, checkpoint_to_resume
from .time_budget import steps_that_fit
from .weights_mixin import WeightsMixin

logger = logging.get_logger(__name__)

ROPE_AUGMENTATION = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


class EoMTTrainer(LossesMixin, WeightsMixin, AtomicCheckpointsMixin, EvaluationMixin, Trainer):
    """Trains and evaluates EoMT; nothing has to be set by hand.

    On top of the stock Trainer: layer-wise learning rates, two-stage warm-up and polynomial decay; mask annealing;
    every loss part, the learning rates of heads, first and last block and the mask probabilities in the logs; an
    accumulated batch's loss and gradient equal to those of the same batch at once; repeatable augmentation, so that
    `train(resume_from_checkpoint=True)` continues as if never interrupted; atomic checkpoints.

    Args:
        model: `EoMTForUniversalSegmentation`.
        args: `EoMTTrainingArguments`.
        data_collator: default `EoMTDataCollator` with the processor's mean and std.
        train_dataset: samples {"pixel_values", "mask_labels", "class_labels", "file_name"?} (`TrainTransform`).
        eval_dataset: samples {"image", "reference", …} (`EvaluationTransform`): PQ, mIoU or AP at the images' own
            sizes; or samples as for training: the loss.
        processing_class: the model's `EoMTImageProcessor`; evaluation needs it, and it is saved with the model.
    """

    def __init__(self, model=None, args: EoMTTrainingArguments | None = None, data_collator=None, **kwargs):
        args = EoMTTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, EoMTTrainingArguments):
            raise ValueError(f"args are {type(args).__name__}; EoMTTrainer needs EoMTTrainingArguments")
        if args.remove_unused_columns:
            raise ValueError("remove_unused_columns is True; EoMT's samples need it to be False")
        processor = kwargs.get("processing_class")
        if data_collator is None and processor is not None:
            data_collator = EoMTDataCollator.from_processor(processor, keep_file_names=True)
        elif data_collator is None:
            data_collator = EoMTDataCollator(keep_file_names=True)
        super().__init__(model, args, data_collator, **kwargs)
        self._refuse_shards()
        self._shares = None  # of each accumulated batch in the step's normalizers
        self._resumed: str | None = None
        self._repeatable: RepeatableDataset | None = None
        self._prepare_model()
        self.interruption = InterruptionCallback(self.accelerator)
        self.annealing = self._annealing_callback()
        self.averaging = AveragingCallback(self.args.ema) if self.args.ema else None
        callbacks = [_EpochCallback(self), self.annealing, self.averaging, self.interruption, CurvesCallback()]
        if self.args.save_best or self.args.early_stopping:
            callbacks.append(BestWeightsCallback(self, self.args.save_best, self.args.early_stopping))
        if not self.args.disable_tqdm:
            callbacks.append(EstimateCallback())
        for callback in callbacks:
            if callback is not None and callback not in self.callback_handler.callbacks:
                self.add_callback(callback)

    # --- set-up ----------------------------------------------------------------------------------------------------

    def _refuse_shards(self) -> None:
        """The average, and LoRA's merged matrices, would be saved from one process's part of the weights."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return
        by = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
        for name, instead in (("ema", "leave ema out"), ("lora", "give freeze_backbone")):
            if getattr(self.args, name):
                raise ValueError(f"{name} does not work with {by}; use ddp.yaml or torchrun, or {instead}")

    def _prepare_model(self) -> None:
        """Apply task, masking, class head and frozen backbone to the model, and its stuff classes to the processor."""
        args, config, processor = self.args, self.model.config, self.processing_class
        if args.task:
            config.task = args.task
        config.masked_attention = args.masking != "never"
        given = [name for name in ROPE_AUGMENTATION if getattr(config, name, None) is not None]
        if given and not args.rope_augmentation:
            logger.info(f"{', '.join(given)} turned off, as the authors train; rope_augmentation keeps it")
            for name in given:
                setattr(config, name, None)
        stuff = getattr(processor, "stuff_label_ids", None)
        if stuff is not None and sorted(stuff) != sorted(config.stuff_label_ids):
            logger.warning(f"the processor's stuff_label_ids {stuff} are not the model's; the model's are used")
            processor.stuff_label_ids = list(config.stuff_label_ids)
        if args.class_head == "new":
            self.model.class_predictor.reset_parameters()  # PyTorch's default, as the authors'
        if args.freeze_backbone:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(not name.startswith(BACKBONE))
        if args.lora:
            add_lora(self.model, args.lora)

    def _annealing_callback(self) -> MaskAnnealingCallback:
        args = self.args
        own = [cb for cb in self.callback_handler.callbacks if isinstance(cb, MaskAnnealingCallback)]
        if own:
            return own[0]  # the user's takes the place of ours
        if args.masking == "annealed":
            return PlannedAnnealing(args.annealing, args.annealing_power)
        return ConstantMasking(float(args.masking != "never"), at_inference=float(args.masking == "always"))

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
            self.lr_scheduler = two_stage_warmup_poly_schedule(
                optimizer or self.optimizer,
                warmup_steps=self.args.warmup(num_training_steps),
                total_steps=num_training_steps,
                power=self.args.poly_power,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self):
        dataset = self.train_dataset
        if dataset is None or not hasattr(dataset, "__getitem__"):
            return super().get_train_dataloader()
        if not len(dataset):
            raise ValueError("the training data set is empty; it needs at least one image")
        self._repeatable = RepeatableDataset(dataset, self.args.seed)
        self.train_dataset = self._repeatable
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = dataset

    # --- steps -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the stock Trainer's; True resumes the last complete checkpoint, or starts where there is no checkpoint.

        Raises:
            ValueError: for True, where there are checkpoints and none is complete; where the run had another length.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is done and a checkpoint saved.
            NonFiniteLoss: with the step and the batch's files.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoint_to_resume(self.args.output_dir)
        self._resumed = resume_from_checkpoint or None
        if self.args.time_budget:
            self.args.max_steps = self._budgeted_steps()
        with self.interruption.listening():
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _budgeted_steps(self) -> int:
        """What fits into the time budget; of a resumed run what it was laid out for."""
        if self._resumed:
            return planned_steps(self._resumed)
        steps = steps_that_fit(self, self.args.time_budget)
        if self.is_world_process_zero():
            print(f"time       {steps} steps fit into {self.args.time_budget:g} minutes", flush=True)
        return steps

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        config = self.accelerator.unwrap_model(self.model).config
        self._shares = iter(normalizer_shares(batches, config, self.accelerator)) if len(batches) > 1 else None
        return batches, items

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._file_names = inputs.pop("file_name", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.zeros_like(loss) if self._lost_in_a_row else loss  # what is logged and averaged

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
            self._add_losses(loss, parts)
            if self._shares is not None:
                loss = loss * self.current_gradient_accumulation_steps  # the stock training_step divides by it
        return (loss, outputs) if return_outputs else loss

    # --- what is left of a run -------------------------------------------------------------------------------------

    def create_model_card(self, language=None, license=None, tags=None, model_name=None, **kwargs) -> None:
        """Write README.md in the output folder: recipe, settings and this run's own figures."""
        from .run_card import run_card

        if self.is_world_process_zero():
            card = run_card(
                self.model.config, self.args, self.state, model_name or Path(self.args.output_dir).name, license
            )
            write_text(Path(self.args.output_dir, "README.md"), card)


class _EpochCallback(TrainerCallback):
    """Sets the training data's epoch; of a resumed run checks the length and restores the trainer's sums."""

    def __init__(self, trainer: EoMTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer._resumed is not None:
            check_length(self.trainer._resumed, state.max_steps)
        self.trainer._resume_losses(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer._repeatable is not None:
            self.trainer._repeatable.set_epoch(int(state.epoch or 0))
