#!/usr/bin/env bash
# Train under Slurm.
#
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
#
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
set -eu
source "$(dirname "$0")/distributed.sh"
on_slurm "$1" "$2" train.py "$3" --work-dir "$4" "${@:5}"
