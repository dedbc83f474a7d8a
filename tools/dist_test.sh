#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]; see distributed.sh.
set -eu
source "$(dirname "$0")/distributed.sh"
on_machine "$3" test.py "$1" "$2" "${@:4}"
