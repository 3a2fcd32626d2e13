"""Tiny runs in separate processes: `python -m tests.training.runs kill FOLDER`, `… ddp FOLDER`, …"""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import TrainerCallback

from eomt import EoMTImageProcessor
from eomt.image_processing.inference import infer
from eomt.training import EoMTDataCollator, EoMTTrainer, layerwise_lr_groups
from eomt.training.callbacks import CurvesCallback
from tests.training.tiny import SIZE, TINY_RUN, Broken, Samples, streamed, tiny_arguments, tiny_model, tiny_pmt

KILLS = ("in a step", "before a save", "half an optimizer", "before the rename", "while the old one goes")


def fixed_points(*size, device=None, **kwargs):
    """Instead of `torch.rand`: the same points for each mask, whatever its batch."""
    last = size[-2:] if len(size) > 1 else size
    steps = torch.arange(math.prod(last), dtype=torch.float32)
    return (steps * 0.6180339887).frac().reshape(last).expand(size).clone()


LONG = {"images": 60, "max_steps": 10, "save_strategy": "no"}  # too many batches for workers to read all ahead


def resumable(folder, images=7, **overrides) -> EoMTTrainer:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = EoMTTrainer(tiny_model(), tiny_arguments(folder, **(options | overrides)), train_dataset=Samples(images))
    trainer.remove_callback(CurvesCallback)  # drawing takes most of a tiny run
    return trainer


def losses(trainer) -> dict[int, tuple]:
    """{step: (loss, gradient norm, epoch)} from the log."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return {row["step"]: (row["loss"], row["grad_norm"], row["epoch"]) for row in rows}


class RecordingTrainer(EoMTTrainer):
    """Records the file names of each step in `seen`."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), inputs["file_name"]]
        return super().training_step(model, inputs, num_items_in_batch)


def streaming(folder, dataset=None, **overrides) -> RecordingTrainer:
    """A trainer of four steps on a stream with two workers."""
    args = tiny_arguments(folder, **({"max_steps": 4, "dataloader_num_workers": 2} | overrides))
    trainer = RecordingTrainer(tiny_model(), args, train_dataset=streamed() if dataset is None else dataset)
    trainer.remove_callback(CurvesCallback)
    return trainer


def stream(folder: Path) -> None:
    """One pass of a stream in two processes with two workers each, and its second half from a checkpoint. Each process
    writes the file names of both."""
    trainer = streaming(folder, save_strategy="steps", save_steps=2)
    trainer.train()
    resumed = streaming(folder, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    (folder / f"{trainer.args.process_index}.json").write_text(json.dumps([trainer.seen, resumed.seen]))


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str, trainer: EoMTTrainer) -> None:
    """Make this process kill itself at its second checkpoint, or in a step after it."""
    if when == "in a step":
        trainer.add_callback(InStep(5, die))
    elif when == "before a save":
        trainer.save_model = at_step(4, trainer, trainer.save_model)
    elif when == "half an optimizer":
        real = torch.save

        def half(value, path, *args):
            real(value, path, *args)
            if trainer.state.global_step == 4 and Path(path).name == "optimizer.pt":
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        torch.save = half
    elif when == "before the rename":
        Path.rename = at_step(4, trainer, Path.rename)
    else:
        import eomt.training.checkpoints as checkpoints

        def half_gone(*args, **kwargs):
            Path(trainer.args.output_dir, "checkpoint-2", "optimizer.pt").unlink()
            die()

        checkpoints.rotate_checkpoints = at_step(4, trainer, checkpoints.rotate_checkpoints, half_gone)


def at_step(step, trainer, real, act=die):
    """`real`, but `act` at this step."""

    def either(*args, **kwargs):
        return act() if trainer.state.global_step == step else real(*args, **kwargs)

    return either


class InStep(TrainerCallback):
    """Calls `act` in the step after this one."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def kill(folder: Path) -> None:
    """A child for each kill, forked before torch has computed anything, trains until it kills itself. Then `group`."""
    for index, when in enumerate(KILLS):
        child = os.fork()
        if not child:
            trainer = resumable(folder / str(index))
            arm(when, trainer)
            trainer.train()
            os._exit(0)  # not reached
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{when}: the child was not killed"
    child = os.fork()
    if not child:
        os.setsid()
        try:
            group(folder / "group")
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)  # not reached
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130, "the run was not interrupted"


def train_on_full_batches(folder, device_batch: int) -> EoMTTrainer:
    """Two steps on 4 images in any number of processes. `gradients` are those of the first step."""
    torch.rand = fixed_points
    options = {"max_steps": 2, "per_device_train_batch_size": device_batch, "masking": "always"}
    options |= {"head_warmup_steps": 0, "backbone_warmup_steps": 0, "save_strategy": "steps", "save_steps": 2}
    args = tiny_arguments(folder, **options)
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(noise=0))

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0:
                trainer.gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    trainer.add_callback(Gradients())
    trainer.train()
    return trainer


def ddp(folder: Path) -> None:
    trainer = train_on_full_batches(folder, 2)
    assert trainer.args.world_size == 2
    if trainer.is_world_process_zero():
        torch.save(trainer.gradients, folder / "gradients.pt")
        (folder / "logs.json").write_text(json.dumps(trainer.state.log_history))


def nan(folder: Path) -> None:
    """The images of one rank are NaN. Each rank writes its error."""
    args = tiny_arguments(folder, per_device_train_batch_size=1, max_steps=1)
    try:
        EoMTTrainer(tiny_model(), args, train_dataset=Broken(2, broken=[0])).train()
    except ValueError as error:
        (folder / f"{args.process_index}.txt").write_text(str(error))


def cli(folder: Path) -> None:
    """`eomt train` on two processes, in bf16 and without --use-cpu: EoMT, then PMT with cached features."""
    from eomt.cli import main
    from eomt.training.data.shapes import make_shapes

    if int(os.environ["RANK"]) == 0:
        tiny_pmt().save_pretrained(folder / "backbone")
        make_shapes(folder / "partial", train=2, val=1)
        (folder / "partial").rename(folder / "data")
    while not (folder / "data").is_dir():
        time.sleep(0.1)
    command = f"train --data {folder / 'data'} --task panoptic --backbone vit_small_patch14_reg4_dinov2 {TINY_RUN} "
    command += "--image-size 32 --total-batch-size 2 --max-steps 1 --bf16 --eval-strategy no"
    plain = f"--backbone-weights scratch --output-dir {folder / 'run'}"
    assert main([*command.split(), *plain.split()]) == 0
    cached = f"--architecture pmt --backbone-weights {folder / 'backbone'} --cache-features {folder / 'cache'}"
    assert main([*command.split(), *cached.split(), "--output-dir", str(folder / "pmt")]) == 0


def fsdp(folder: Path) -> None:
    """One sharded step, without the Trainer, which ignores FSDP on a CPU."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.rand = fixed_points
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    model = tiny_model().train()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 1e-3), weight_decay=0.05)
    processor = EoMTImageProcessor(task="panoptic", size=SIZE, stuff_label_ids=[1])
    (found,) = infer(model.eval(), processor, [Image.new("RGB", (SIZE, SIZE))], threshold=0.0)  # before any step
    assert found.prediction["segmentation"].shape == (SIZE, SIZE)
    model.train()
    model.set_attn_mask_probs([1.0, 1.0])
    loss = one_step(model, optimizer, samples=range(2 * rank, 2 * rank + 2))
    dist.all_reduce(loss, op=dist.ReduceOp.SUM)
    weights = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save({"loss": loss / 2, "weights": weights}, folder / "step.pt")
    dist.destroy_process_group()


def pmt(folder: Path) -> None:
    """One step of PMT in DDP. The batch norm has the statistics of both processes."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.rand = fixed_points
    dist.init_process_group("gloo")
    rank, model = dist.get_rank(), tiny_pmt().train()
    model.set_attn_mask_probs([1.0, 1.0])
    optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 1e-3))
    loss = one_step(DistributedDataParallel(model, broadcast_buffers=False), optimizer, range(2 * rank, 2 * rank + 2))
    dist.all_reduce(loss, op=dist.ReduceOp.SUM)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    torch.save({"loss": loss / 2, "gradients": gradients, "state": model.state_dict()}, folder / f"step{rank}.pt")
    dist.destroy_process_group()


def one_step(model, optimizer, samples) -> torch.Tensor:
    batch = EoMTDataCollator()([Samples(noise=0)[index] for index in samples])
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def group(folder: Path) -> None:
    """A run with workers. In its third step its process group and the workers get a signal, as from Slurm."""
    trainer = resumable(folder, **LONG, dataloader_num_workers=2)
    trainer.add_callback(InStep(2, signal_group))
    trainer.train()


def signal_group() -> None:
    """Signal this group, which `kill` made, and the workers from another process, as a job's manager does."""
    assert os.getpgrp() == os.getpid()
    workers = [process.pid for process in multiprocessing.active_children()]
    assert workers
    sender = f"import os, signal; [os.kill(pid, signal.SIGTERM) for pid in {workers}]"
    sender += f"; os.killpg({os.getpgrp()}, signal.SIGTERM)"
    subprocess.run([sys.executable, "-c", sender], start_new_session=True, check=True)
    time.sleep(1)  # for the workers to get it in this step


if __name__ == "__main__":
    jobs = {"nan": nan, "cli": cli, "kill": kill, "ddp": ddp, "fsdp": fsdp, "pmt": pmt, "stream": stream}
    jobs[sys.argv[1]](Path(sys.argv[2]))
