"""`--time-budget`: how many steps fit into a time, so that rates and masks can be laid out for them."""

import math
import time
from itertools import islice

import torch

from .processes import gather

MEASURED, MARGIN = 4, 1.05  # steps after the first; the optimizer's own work and noise
EVALUATED = 2  # images, by each process


def steps_that_fit(trainer, minutes: float) -> int:
    """Run the first batches forward and backward, without learning from them → optimizer steps for the time.

    Evaluations are taken off, as many as `eval_steps` asks for: one's time is from that of two images a process.

    Raises:
        ValueError: where not even ten steps fit.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        step = MARGIN * _seconds_a_step(trainer)
        evaluation = _seconds_an_evaluation(trainer)
    step, evaluation = (max(values) for values in zip(*gather((step, evaluation))))
    evaluations = 0.0
    if evaluation and trainer.args.eval_steps < 1:
        evaluations = evaluation / trainer.args.eval_steps
    elif evaluation:
        step += evaluation / trainer.args.eval_steps
    steps = math.floor((60 * minutes - evaluations) / step)
    if steps < 10:
        least = (evaluations + 10 * step) / 60
        raise ValueError(f"time_budget is {minutes:g} minutes; ten steps and the evaluations take {least:.1f}")
    return steps


def _seconds_a_step(trainer) -> float:
    model, args = trainer.model.to(trainer.args.device).train(), trainer.args
    model.set_attn_mask_probs([float(args.masking != "never")] * model.config.num_blocks)
    batches = iter(trainer.get_train_dataloader())
    per_step = args.gradient_accumulation_steps
    times = []
    for _ in range(1 + MEASURED):
        started, batch = time.perf_counter(), None
        for batch in islice(batches, per_step):
            inputs = {name: value for name, value in batch.items() if name != "file_name"}
            with trainer.compute_loss_context_manager():
                loss = model(**trainer._prepare_inputs(inputs), output_auxiliary_logits=False).loss
            loss.backward()
        if batch is None:  # less data than that
            break
        model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:] or times)


def _seconds_an_evaluation(trainer) -> float:
    args, dataset = trainer.args, trainer.eval_dataset
    if dataset is None or args.eval_strategy == "no" or not hasattr(dataset, "select"):
        return 0.0
    some = dataset.select(range(min(EVALUATED * args.world_size, len(dataset))))
    started = time.perf_counter()
    trainer._stream(some, intermediate=False)
    elapsed = time.perf_counter() - started
    return elapsed / math.ceil(len(some) / args.world_size) * math.ceil(len(dataset) / args.world_size)
