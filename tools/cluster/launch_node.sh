#!/usr/bin/env bash
# Pretraining on machines without a scheduler: run this on every one of them, with the same two edits.
#
# A process that dies is started again with all others, from the newest checkpoint (up to MAX_RESTARTS times); to stop and
# save, send SIGTERM to torchrun on every node: without it, torchrun waits ten minutes for a node that is gone. The folder of
# the run must be one that all nodes see.
set -euo pipefail
cd "$(dirname "$0")/../.."

# ---- edit 1: the machines ---------------------------------------------------------------------------------------------
nodes="${NODES:-1}"                      # how many machines
head="${HEAD_NODE:-localhost}:${PORT:-29500}"  # the first of them, as the others reach it, and a free port
gpus="${GPUS:-8}"                        # GPUs (processes) per machine

# ---- edit 2: which Python, and what to train --------------------------------------------------------------------------
python="${PYTHON:-.venv/bin/python}"
command=(pretrain ntu60-xsub --data.shards data/ntu60 --run.out runs/pretrain-ntu60-xsub)
# -----------------------------------------------------------------------------------------------------------------------

# Otherwise restarted processes may find the addresses of the dead ones in torchrun's store instead of each other's.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" -m torch.distributed.run \
    --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "${MAX_RESTARTS:-3}" --shutdown-timeout 100 \
    --rdzv-backend c10d --rdzv-id svdata2vec --rdzv-endpoint "$head" \
    -m svdata2vec "${command[@]}"
