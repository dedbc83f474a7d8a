# Starts tools/train.py and tools/test.py in several processes; sourced by
#   dist_*.sh:  GPUS processes of this machine, or of NNODES machines; without a GPU, on the CPU.
#               Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON.
#   slurm_*.sh: under Slurm. Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS,
#               PYTHON.
tools=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"

# on_machine GPUS TOOL ARGUMENTS
on_machine() {
    gpus=$1 tool=$2
    shift 2
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
        --nproc_per_node="$gpus" "$tools/$tool" --launcher pytorch "$@"
}

# on_slurm PARTITION JOB_NAME TOOL ARGUMENTS
on_slurm() {
    partition=$1 job_name=$2 tool=$3 gpus_per_node=${GPUS_PER_NODE:-8}
    shift 3
    set -x
    exec srun -p "$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" \
        --ntasks="${GPUS:-8}" --ntasks-per-node="$gpus_per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$tools/$tool" --launcher slurm "$@"
}
