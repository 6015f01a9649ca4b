#!/usr/bin/env bash
# A training run under Slurm: Ray on the nodes of one allocation, ended with it (docs/clusters/slurm.md).
#
#   sbatch deploy/slurm.sh jobs/train.py --config jobs/configs/coco_vit_b32/degla.yaml --num_workers 2 …
#
# The home, this repository and its .venv, and the output must be on disks that all nodes see.
#SBATCH --job-name=degla-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=12:00:00
set -euo pipefail
umask 077
cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate

# Nobody else on these nodes may use this Ray: a token of this job's own. Ports differ between jobs of one node.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head:$port"

# Ray's own command: the head on the first node, workers on the others, the job on the head, and all ended after it.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
srun --kill-on-bad-exit=1 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" -- python "$@"
