#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, for trying out what runs on many: the head and N worker nodes.
# It is addressed by loopback. Ray binds some of its ports on every interface all the same, so a token, drawn at random, guards them.
#
#   cluster/local.sh up N     start it; writes what to set to .cluster/env: . .cluster/env
#   cluster/local.sh down     end it: the processes started by `up`, by their recorded ids, and no others
#
# Plain settings, from the environment:
#   CPUS          CPUs of each worker node (1); the head has none
#   STATE         folder for process ids and logs (.cluster)
#   RAY           the program (.venv/bin/ray if it is there, else ray)
#   MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL, …  are inherited by the nodes, and by what runs on them
set -euo pipefail

CPUS=${CPUS:-1}
STATE=${STATE:-.cluster}
RAY=${RAY:-$([[ -x .venv/bin/ray ]] && echo .venv/bin/ray || echo ray)}
NODE_IP=127.0.0.2 # loopback; 127.0.0.1 itself Ray would replace by the machine's address
PATH=$(cd "$(dirname "$(command -v "$RAY")")" && pwd):$PATH # a job's `python` is the one beside ray
export PATH RAY_USAGE_STATS_ENABLED=0
umask 077

usage() {
  echo "usage: cluster/local.sh up N | down" >&2
  exit 2
}

free_ports() { # COUNT: that many ports that nothing listens on, distinct
  python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

start() { # NAME ARGUMENTS…: a node in a process group of its own, its id recorded before anything else can fail
  local name=$1
  shift
  setsid "$RAY" start --block --node-ip-address="$NODE_IP" --object-store-memory=100000000 --disable-usage-stats "$@" \
    >"$STATE/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}

started() { # NAME: wait until its log says so, two minutes at most
  for _ in $(seq 240); do
    grep -q "Ray runtime started" "$STATE/$1.log" && return
    kill -0 "$(cat "$STATE/$1.pid")" 2>/dev/null || return 1
    sleep 0.5
  done
  return 1
}

node() { # NAME ARGUMENTS…: started and seen to run; tried three times, for Ray gives a node only half a minute on busy cores
  for _ in 1 2 3; do
    start "$@"
    started "$1" && return
    end "$STATE/$1.pid"
  done
  tail -n 5 "$STATE/$1.log" >&2
  down
  echo "$1 did not start; the lines above are the end of its log" >&2
  exit 1
}

folder() { # NAME: makes a folder for this node's files, and sets FOLDER to it
  # Every node has its own: a node unpacks a job's files again, which would disturb the others. The head also notes its address there, where
  # Ray looks for "the" cluster of the machine. The path is short because sockets are made in it.
  FOLDER=$(mktemp -d /tmp/ray-XXXXXX)
  echo "$FOLDER" >"$STATE/$1.folder"
}

up() {
  local port dashboard client agent
  if compgen -G "$STATE/*.pid" >/dev/null; then
    echo "a cluster is recorded in $STATE already; end it first: cluster/local.sh down" >&2
    exit 1
  fi
  mkdir -p "$STATE"
  STATE=$(cd "$STATE" && pwd)
  python3 -c 'import secrets; print(secrets.token_hex(32))' >"$STATE/token"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$STATE/token"
  read -r port dashboard client agent < <(free_ports 4)
  folder head
  node head --head --port="$port" --num-cpus=0 --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
    --ray-client-server-port="$client" --dashboard-agent-listen-port="$agent" --temp-dir="$FOLDER"
  for ((i = 1; i <= $1; i++)); do
    folder "node-$i"
    node "node-$i" --address="$NODE_IP:$port" --num-cpus="$CPUS" --dashboard-agent-listen-port="$(free_ports 1)" --temp-dir="$FOLDER"
  done
  cat >"$STATE/env" <<ENV
export RAY_ADDRESS=$NODE_IP:$port
export DASHBOARD=http://127.0.0.1:$dashboard
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH='$STATE/token'
ENV
  cat "$STATE/env"
}

end() { # FILE with a process id: that process and its group
  local pid
  pid=$(cat "$1")
  # Ids are used again by the system: only a group in which Ray still runs is ours.
  if pgrep -g "$pid" -f ray >/dev/null; then
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in $(seq 20); do
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 0.25
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  rm -f "$1"
}

down() {
  local file
  for file in "$STATE"/node-*.pid "$STATE"/head.pid; do
    if [[ -e $file ]]; then end "$file"; fi
  done
  for file in "$STATE"/*.folder; do
    if [[ -e $file ]]; then rm -rf "$(cat "$file")" "$file"; fi
  done
  rm -f "$STATE/token" "$STATE/env"
}

case ${1:-} in
  up) [[ ${2:-} =~ ^[1-9][0-9]?$ ]] || usage; up "$2" ;;
  down) down ;;
  *) usage ;;
esac
