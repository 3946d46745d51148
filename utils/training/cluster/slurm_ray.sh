#!/bin/bash
# All missing runs on one SLURM allocation: Ray on every node, the driver on the first.
#   sbatch utils/training/cluster/slurm_ray.sh
#SBATCH --job-name=lora-course
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --requeue
# With GPUs, a run on each: #SBATCH --gpus-per-node=4
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
. .venv/bin/activate
export LORA_COURSE_CACHE=${LORA_COURSE_CACHE:-$PWD/data/cache}
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false -- \
    python -m utils train --profile "${PROFILE:-laptop}" --engine ray --address auto
