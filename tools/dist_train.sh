#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [arguments of train.py]; see distributed.sh.
set -eu
source "$(dirname "$0")/distributed.sh"
on_machine "$2" train.py "$1" "${@:3}"
