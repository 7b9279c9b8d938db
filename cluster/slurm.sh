#!/usr/bin/env bash
# A run or sweep on a Slurm cluster: one Ray node on each allocated node, then distmeta on the first.
#   sbatch cluster/slurm.sh train configs/tiered_imagenet_small.yaml --resume --set run_folder=/shared/runs/tiered --set train.workers=8
# As a job array, for a sweep: every task is a separate allocation, all join one Ray cluster, and the first task runs the sweep. Tasks start
# as Slurm finds room for them; one that is preempted is requeued and joins again.
#   sbatch --array=0-7 --nodes=1 cluster/slurm.sh sweep configs/quickstart_sweep.yaml --resume --set run_folder=/shared/runs/sweep …
# Run folder, shards and the folder of submission lie on storage that all nodes share. Slurm sends SIGTERM five minutes before the time is up
# or the job is preempted: training then stops after a checkpoint, the job is requeued, and --resume continues from there.
#SBATCH --job-name=distmeta
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
#SBATCH --output=distmeta-%A-%a.log
set -euo pipefail

# Plain settings; credentials come from each node's own environment.
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://mlflow.internal:5000}
export AWS_ENDPOINT_URL=${AWS_ENDPOINT_URL:-}
export RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not read the job's own setting since Slurm 22.05
BIN=${BIN:-.venv/bin}

JOB=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
SHARED=${SLURM_SUBMIT_DIR:-.}/.distmeta-$JOB # the head's address, and a token that keeps other users of the nodes out of its Ray
first=false
[[ ${SLURM_ARRAY_TASK_ID:-} == "${SLURM_ARRAY_TASK_MIN:-}" ]] && first=true
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
umask 077
mkdir -p "$SHARED"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SHARED/token"

steps=()
ended() {
  kill "${steps[@]}" 2>/dev/null || true # srun ends its step's processes
  if $first; then rm -f "$SHARED/address"; fi
}
trap ended EXIT

on_first=(srun --nodes=1 --ntasks=1 --overlap --nodelist="${nodes[0]}") # what follows runs on the first node, beside what runs there

node() { # NODE ARGUMENTS…: Ray on one node, in a separate step
  local on=$1
  shift
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$on" "$BIN/ray" start --block --num-cpus="$SLURM_CPUS_PER_TASK" "$@" &
  steps+=($!)
}

join() { # ADDRESS NODE…: these nodes, to the head at that address
  local address=$1 other
  for other in "${@:2}"; do
    node "$other" --address="$address"
  done
}

head_address() { # an address of the first node that other nodes reach: its name's, unless that is loopback or link-local, else its first other one
  # shellcheck disable=SC2016 # expanded on that node
  "${on_first[@]}" sh -c 'getent ahosts "$(hostname)" | cut -d " " -f 1; hostname --all-ip-addresses' |
    tr ' ' '\n' | awk '/./ && !/^127\./ && !/^::1$/ && !/^169\.254\./ && !/^fe80:/ {print; exit}'
}

answers() { # ADDRESS: whether Ray's head is there
  "${on_first[@]}" "$BIN/ray" health-check --address "$1" >/dev/null 2>&1
}

lead() { # ARGUMENTS…: the head and the other nodes of this allocation, then distmeta
  local ip port address run code=0
  trap 'again; exit 1' TERM # while Ray starts
  python3 -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH"
  ip=$(head_address)
  [[ -n $ip ]] || { echo "${nodes[0]} has no address that other nodes could reach; ask hostname --all-ip-addresses there" >&2; exit 1; }
  port=$((20000 + JOB % 20000)) # another job of this user may share a node
  [[ $ip == *:* ]] && address="[$ip]:$port" || address="$ip:$port"
  node "${nodes[0]}" --head --node-ip-address="$ip" --port="$port" --include-dashboard=true
  for _ in $(seq 60); do
    answers "$address" && break
    sleep 2
  done
  answers "$address" || { echo "Ray's head did not start at $address" >&2; exit 1; }
  echo "$address" >"$SHARED/address.new"
  mv "$SHARED/address.new" "$SHARED/address"
  join "$address" "${nodes[@]:1}"
  # In the background, so that this shell hears Slurm's SIGTERM and hands it on.
  "${on_first[@]}" "$BIN/distmeta" "$@" --address "$address" &
  run=$!
  steps+=("$run")
  trap 'stopping=true; kill -TERM "$run"' TERM
  while # first `wait`, which knows the code of a run that has ended already; a signal ends it before the run has ended
    code=0
    wait "$run" || code=$?
    kill -0 "$run" 2>/dev/null
  do :; done
  if ${stopping:-false}; then
    again
  elif [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    touch "$SHARED/done"
    rm -f "$SHARED/token"
  else
    rm -r "$SHARED"
  fi
  exit "$code"
}

again() { # back into the queue; Slurm itself requeues neither at the end of --time nor a job that ends while it is being preempted
  if [[ $(squeue --noheader --format=%T --job="$SLURM_JOB_ID") == RUNNING ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
}

follow() { # the nodes of this allocation, for as long as there is a sweep; a head that is requeued comes back at another address
  local address
  trap 'again; exit 0' TERM
  until [[ -e $SHARED/done ]]; do
    if address=$(cat "$SHARED/address" 2>/dev/null) && answers "$address"; then
      join "$address" "${nodes[@]}"
      wait "${steps[@]}" || true # Ray's nodes end when their head is gone
      steps=()
    fi
    sleep 10 &
    wait $! # so that this shell hears SIGTERM
  done
}

if [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || $first; then lead "$@"; else follow; fi
