"""Tiny runs in processes of their own: `python -m tests.training.runs kill FOLDER`, `… ddp FOLDER`, …"""

import json
import math
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
from tests.training.tiny import SIZE, Broken, Samples, streamed, tiny_arguments, tiny_model, tiny_pmt

KILLS = ("in a step", "before a save", "half an optimizer", "before the rename", "while the old one goes")


def fixed_points(*size, device=None, **kwargs):
    """In place of `torch.rand`: the same points for each mask, so that which batch a mask is in cannot matter."""
    last = size[-2:] if len(size) > 1 else size
    steps = torch.arange(math.prod(last), dtype=torch.float32)
    return (steps * 0.6180339887).frac().reshape(last).expand(size).clone()


LONG = {"images": 60, "max_steps": 10, "save_strategy": "no"}  # not all of its batches are read ahead


def resumable(folder, images=7, **overrides) -> EoMTTrainer:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = EoMTTrainer(tiny_model(), tiny_arguments(folder, **(options | overrides)), train_dataset=Samples(images))
    trainer.remove_callback(CurvesCallback)  # they take most of a tiny run
    return trainer


def losses(trainer) -> dict[int, tuple]:
    return {
        row["step"]: (row["loss"], row["grad_norm"], row["epoch"]) for row in trainer.state.log_history if "loss" in row
    }


class Noting(EoMTTrainer):
    """Notes the file names of each step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), inputs["file_name"]]
        return super().training_step(model, inputs, num_items_in_batch)


def streaming(folder, dataset=None, **overrides) -> Noting:
    """Four steps on a stream read by two workers."""
    args = tiny_arguments(folder, **({"max_steps": 4, "dataloader_num_workers": 2} | overrides))
    trainer = Noting(tiny_model(), args, train_dataset=streamed() if dataset is None else dataset)
    trainer.remove_callback(CurvesCallback)
    return trainer


def stream(folder: Path) -> None:
    """One pass of a stream in two processes of two workers each, and its end again from a checkpoint; each notes what
    it saw."""
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
        trainer.add_callback(type("InStep", (TrainerCallback,), {"on_pre_optimizer_step": staticmethod(at_step(5))})())
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


def at_step(step, trainer=None, real=None, act=die):
    def maybe(*args, **kwargs):
        state = trainer.state if trainer else args[1]
        return act() if state.global_step == step else real(*args, **kwargs) if real else None

    return maybe


def kill(folder: Path) -> None:
    """A child per kill, forked before torch has computed anything; each trains until it kills itself. Then `group`."""
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
    """Two steps on 4 images, whatever the number of processes; notes the first step's gradients."""
    torch.rand = fixed_points
    args = tiny_arguments(
        folder,
        max_steps=2,
        per_device_train_batch_size=device_batch,
        masking="always",
        head_warmup_steps=0,
        backbone_warmup_steps=0,
        save_strategy="steps",
        save_steps=2,
    )
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
    """One rank's images are NaN; each notes the error it ends with."""

    args = tiny_arguments(folder, per_device_train_batch_size=1, max_steps=1)
    try:
        EoMTTrainer(tiny_model(), args, train_dataset=Broken(2, broken=[0])).train()
    except ValueError as error:
        (folder / f"{args.process_index}.txt").write_text(str(error))


def cli(folder: Path) -> None:
    """`eomt train` as a user starts it on two processes, in bf16 and without a word about the CPU."""
    from eomt.cli import main
    from eomt.training.data.shapes import make_shapes

    if int(os.environ["RANK"]) == 0:
        make_shapes(folder / "partial", train=2, val=1)
        (folder / "partial").rename(folder / "data")
    while not (folder / "data").is_dir():
        time.sleep(0.1)
    options = "--task panoptic --backbone vit_small_patch14_reg4_dinov2 --backbone-weights scratch --hidden-size 32 "
    options += "--num-hidden-layers 3 --num-attention-heads 2 --num-blocks 2 --num-queries 8 --patch-size 8 --bf16 "
    options += "--train-num-points 64 --image-size 32 --total-batch-size 2 --max-steps 1 --dataloader-num-workers 0 "
    command = f"train --data {folder / 'data'} --output-dir {folder / 'run'} --eval-strategy no {options}"
    assert main(command.split()) == 0


def fsdp(folder: Path) -> None:
    """One sharded step: the Trainer ignores FSDP on a CPU, so what the model and the optimizer need is called here."""
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
    """One step of PMT in DDP: the batch norm's statistics are those of both processes."""
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
    """A run with workers whose whole process group is signalled in its third step, as by Ctrl-C in a terminal."""
    trainer = resumable(folder, **LONG, dataloader_num_workers=2)
    trainer.add_callback(
        type("Signal", (TrainerCallback,), {"on_pre_optimizer_step": staticmethod(at_step(2, act=signal_group))})()
    )
    trainer.train()


def signal_group() -> None:
    """From another process, since workers spare their parent's signals. Only ever the group this test created."""
    assert os.getpgrp() == os.getpid()
    sender = f"import os, signal; os.killpg({os.getpgrp()}, signal.SIGTERM)"
    subprocess.run([sys.executable, "-c", sender], start_new_session=True, check=True)
    time.sleep(1)  # what the signal does to workers shows in this step


if __name__ == "__main__":
    jobs = {"nan": nan, "cli": cli, "kill": kill, "ddp": ddp, "fsdp": fsdp, "pmt": pmt, "stream": stream}
    jobs[sys.argv[1]](Path(sys.argv[2]))
