#!/usr/bin/env bash
# A run on a Slurm cluster: one Ray node on each allocated node, then distmeta on the first.
#   sbatch cluster/slurm.sh train configs/tiered_imagenet_small.yaml --resume --set run_folder=/shared/runs/tiered --set train.workers=8
# Run folder and shards lie on storage that all nodes share. Slurm sends SIGTERM five minutes before the time is up: training then stops
# after a checkpoint, and the same command continues from there.
#SBATCH --job-name=distmeta
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --output=distmeta-%j.log
set -euo pipefail

# Plain settings; credentials come from each node's own environment.
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://mlflow.internal:5000}
export AWS_ENDPOINT_URL=${AWS_ENDPOINT_URL:-}
export RAY_USAGE_STATS_ENABLED=0
BIN=${BIN:-.venv/bin}

# A token of this job's own keeps other users of the nodes out of its Ray.
umask 077
RAY_AUTH_TOKEN_PATH=$(mktemp "${SLURM_SUBMIT_DIR:-.}/.distmeta-token.XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
python3 -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The address of its name, unless that is a loopback address, as it is on many hosts; else the first of its interfaces.
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" sh -c 'hostname --ip-address; hostname --all-ip-addresses' |
  tr ' ' '\n' | awk '/./ && !/^127\./ && !/^::1$/ && !/^fe80:/ {print; exit}')
port=$((20000 + SLURM_JOB_ID % 20000)) # another job of ours may share a node

ended() {
  kill "${steps[@]}" 2>/dev/null || true # srun ends its step's processes
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
steps=()
trap ended EXIT

node() { # NODE ARGUMENTS…: Ray on one node, in a step of its own
  local on=$1
  shift
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$on" "$BIN/ray" start --block --num-cpus="$SLURM_CPUS_PER_TASK" "$@" &
  steps+=($!)
}

node "${nodes[0]}" --head --node-ip-address="$head" --port="$port" --include-dashboard=true
sleep 20
for other in "${nodes[@]:1}"; do
  node "$other" --address="$head:$port"
done
sleep 20

# In the background, so that this shell hears Slurm's SIGTERM and hands it on.
srun --nodes=1 --ntasks=1 --overlap --nodelist="${nodes[0]}" "$BIN/distmeta" "$@" --address "$head:$port" &
run=$!
trap 'kill -TERM "$run"; wait "$run"' TERM
wait "$run"
