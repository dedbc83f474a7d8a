#!/usr/bin/env bash
# Test on GPUS processes of this machine, or of NNODES machines; without a GPU, on the CPU.
#
#     tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
#
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON.
set -eu
config=$1
checkpoint=$2
gpus=$3
shift 3
tools=$(cd "$(dirname "$0")" && pwd)

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
