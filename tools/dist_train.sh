#!/usr/bin/env bash
# Train on GPUS processes of this machine, or of NNODES machines; without a GPU, on the CPU.
#
#     tools/dist_train.sh CONFIG GPUS [arguments of train.py]
#
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON.
set -eu
source "$(dirname "$0")/distributed.sh"
on_machine "$2" train.py "$1" "${@:3}"
