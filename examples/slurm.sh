#!/bin/bash
#SBATCH --job-name=uhkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# A training on one or more nodes that saves itself before its time is over, goes back into the queue and goes on from there:
#
#     sbatch slurm.sh OUT distill --teacher runs/teacher --student timm/deit_tiny_patch16_224 --data path/to/images
#
# OUT is the run folder; all other words are uhkd's, but for --out and --resume, which are added here. docs/clusters.md says more.

set -u
if [ $# -lt 2 ]; then
    echo "usage: sbatch $0 OUT VERB [OPTIONS]" >&2
    exit 2
fi
out=$1
shift

# The notice comes to this shell alone. torchrun knows SIGTERM, and hands it on: each process ends its step, and the first saves it.
# `scancel --signal` reaches the step and not this shell; srun, where it gets SIGTERM itself, would kill the step at once.
noticed=
trap 'noticed=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM
# How long torchrun lets the processes save; the notice above comes this many seconds ahead, and some.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100

# A run that never began cannot be resumed, and one that began is not begun again.
resume=()
if [ -e "$out/recipe.yaml" ]; then
    resume=(--resume)
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id "$SLURM_JOB_ID" \
    -m uhkd "$@" --out "$out" ${resume[@]+"${resume[@]}"} &
training=$!

# A notice interrupts the waiting, not the training.
while true; do
    wait "$training"
    code=$?
    kill -0 "$training" 2>/dev/null || break
done

# 138 and 143 are uhkd's own codes for "stopped by SIGUSR1, SIGTERM; saved before". torchrun ends with 1 in their place.
if [ "$code" -ne 0 ] && { [ -n "$noticed" ] || [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; }; then
    echo "saved in $out (exit code $code): back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
