#!/bin/bash
# An experiment over the accelerators of several machines, as one program:
#
#     sbatch clusters/slurm.sh char_lm --devices fsdp --fetch
#
# Told to end (the time limit is near, the machines are wanted back) it saves, and the job is queued again; it then goes
# on with its run, which is named after the job.
#SBATCH --job-name=jdl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

cd "$SLURM_SUBMIT_DIR" || exit
srun --kill-on-bad-exit=1 "${VENV:-.venv}/bin/jdl" launch run "$@" --run-dir "runs/$1/$SLURM_JOB_ID"
status=$?
if [ "$status" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
