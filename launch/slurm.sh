#!/usr/bin/env bash
# A training run on several nodes with GPUs under SLURM:  sbatch launch/slurm.sh
#
# One process per GPU. JAX gets their addresses from SLURM. The checkout, its environment
# (pip install -e ".[cuda]") and WORKDIR must be on the cluster's shared file system.
#
# Many cines need no such job but an array of small ones, each doing its part of the table; what is
# finished is kept when one is started again:
#   sbatch --array=1-8 --cpus-per-task=8 --requeue --wrap '.venv/bin/ldm-morph track \
#       --batch cines.csv --out "$HOME/tracked" --shard "$SLURM_ARRAY_TASK_ID/8"'
#SBATCH --job-name=ldm-morph
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# send SIGTERM two minutes before the time limit: the tasks save a checkpoint and exit (75)
#SBATCH --signal=TERM@120
# run the job again after a preemption: it resumes from its newest checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

REPOSITORY=$SLURM_SUBMIT_DIR
CONFIG=sunnybrook
SOURCE=$HOME/data/sunnybrook
WORKDIR=$HOME/runs/sunnybrook

cd "$REPOSITORY"
status=0
# --kill-on-bad-exit: a failed task must not leave the others waiting for it
srun --kill-on-bad-exit=1 .venv/bin/ldm-morph train --distributed \
    --config "$CONFIG" --config.data.source="$SOURCE" --workdir "$WORKDIR" \
    --config.registration.train.batch_size=8 --config.compute.dtype=bfloat16 || status=$?
if [ "$status" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
