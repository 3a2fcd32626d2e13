#!/bin/bash
# Two nodes with eight GPUs each, one process per GPU; submit with `sbatch training/configs/slurm.sh`.
# A step stays 16 images: sixteen processes take one each. Preemption (SIGTERM) saves a checkpoint; --requeue goes on.
#SBATCH --job-name=eomt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
RECIPE=${RECIPE:-coco_panoptic_eomt_large_640}
DATA=${DATA:?set DATA to the folder with the data set}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
  --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$HEAD:29500" \
  --no-python eomt train --recipe "$RECIPE" --data "$DATA" --output-dir "runs/$RECIPE" --resume
