#!/usr/bin/env bash
# Train under Slurm.
#
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
#
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
set -eux
partition=$1
job_name=$2
config=$3
work_dir=$4
shift 4
tools=$(cd "$(dirname "$0")" && pwd)
gpus_per_node=${GPUS_PER_NODE:-8}

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
srun -p "$partition" \
    --job-name="$job_name" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
