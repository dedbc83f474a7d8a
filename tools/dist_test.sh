#!/usr/bin/env bash
# Test on GPUS processes of this machine, or of NNODES machines; without a GPU, on the CPU.
#
#     tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
#
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON.
set -eu
source "$(dirname "$0")/distributed.sh"
on_machine "$3" test.py "$1" "$2" "${@:4}"
