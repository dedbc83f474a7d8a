#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]; see distributed.sh.
set -eu
source "$(dirname "$0")/distributed.sh"
on_slurm "$1" "$2" train.py "$3" --work-dir "$4" "${@:5}"
