#!/bin/bash
# All missing runs as an array job, without Ray: each task trains its share on a node of its own.
#   sbatch utils/training/cluster/slurm_array.sh
#SBATCH --job-name=lora-course
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --requeue
# With a GPU for each task: #SBATCH --gpus=1
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
. .venv/bin/activate
export LORA_COURSE_CACHE=${LORA_COURSE_CACHE:-$PWD/data/cache}
shards=8  # as --array says above, also where only some of them are submitted again

srun python -m utils train --profile "${PROFILE:-laptop}" --shard "$SLURM_ARRAY_TASK_ID/$shards"
