#!/usr/bin/env bash
# tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]; see distributed.sh.
set -eu
source "$(dirname "$0")/distributed.sh"
on_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
