#!/usr/bin/env bash
# Test under Slurm.
#
#     tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]
#
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
set -eu
source "$(dirname "$0")/distributed.sh"
on_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
