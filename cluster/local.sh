#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, for trying out what runs on many: the head and N worker nodes.
# It is addressed by loopback. Ray binds some of its ports on every interface all the same, so a token, drawn at random, guards them.
#
#   cluster/local.sh up N     start it; then set what the command line reads: . .cluster/env
#   cluster/local.sh down     end it: the processes started by `up`, by their recorded ids, and no others
#
# Plain settings, from the environment:
#   CPUS          CPUs of each worker node (1); the head has none
#   DASHBOARD     port of the dashboard (8265, or a free one if that is taken)
#   STATE         folder for process ids and logs (.cluster)
#   RAY           the program (.venv/bin/ray if it is there, else ray)
#   MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL, …  are inherited by the nodes, and by what runs on them
set -euo pipefail

CPUS=${CPUS:-1}
DASHBOARD=${DASHBOARD:-8265}
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

say() { echo "cluster/local.sh: $*" >&2; }

free_ports() { # WANTED COUNT: that many ports that nothing listens on, distinct; the first is WANTED unless something does
  python3 - "$@" <<'PY'
import socket, sys
wanted, count = map(int, sys.argv[1:])
sockets = [socket.socket() for _ in range(count)]
for s in sockets:
    try:
        s.bind(("", wanted))
    except OSError:
        s.bind(("", 0))
    wanted = 0
print(*(s.getsockname()[1] for s in sockets))
PY
}

start() { # NAME ARGUMENTS…: a node in a separate process group, whose id is recorded before anything else can fail
  local name=$1
  shift
  setsid "$RAY" start --block --node-ip-address="$NODE_IP" --object-store-memory=100000000 --disable-usage-stats "$@" \
    >"$STATE/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}

started() { # NAME: wait until its log reports it, two minutes at most
  for _ in $(seq 240); do
    grep -q "Ray runtime started" "$STATE/$1.log" && return
    kill -0 "$(cat "$STATE/$1.pid")" 2>/dev/null || return 1
    sleep 0.5
  done
  return 1
}

node() { # NAME COMMAND: a node that COMMAND starts, seen to run; tried three times, because Ray gives a node only half a minute on busy cores
  local attempt began=$SECONDS
  for attempt in 1 2 3; do
    say "starting $1$([[ $attempt == 1 ]] || echo ", attempt $attempt of 3")"
    FOLDER=$(folder "$1")
    "$2" "$1"
    if started "$1"; then
      say "$1 is up after $((SECONDS - began)) s"
      return
    fi
    end "$STATE/$1.pid"
    rm -rf "$FOLDER"
  done
  tail -n 5 "$STATE/$1.log" >&2
  down
  say "$1 did not start; the lines above are the end of its log"
  exit 1
}

folder() { # NAME: a new folder for this node's files
  # Every node has its own: a node unpacks a job's files again, which would disturb the others. The head also notes its address there, where
  # Ray looks for "the" cluster of the machine. The path is short because sockets are made in it.
  mktemp -d /tmp/ray-XXXXXX | tee "$STATE/$1.folder"
}

head_node() { # NAME: on ports that are free now, so that another attempt takes others
  local client agent
  read -r port dashboard client agent < <(free_ports "$DASHBOARD" 4 | awk '{print $2, $1, $3, $4}')
  [[ $dashboard == "$DASHBOARD" ]] || say "port $DASHBOARD is taken; the dashboard gets port $dashboard"
  start "$1" --head --port="$port" --num-cpus=0 --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
    --ray-client-server-port="$client" --dashboard-agent-listen-port="$agent" --temp-dir="$FOLDER"
}

worker_node() { # NAME
  start "$1" --address="$NODE_IP:$port" --num-cpus="$CPUS" --dashboard-agent-listen-port="$(free_ports 0 1)" --temp-dir="$FOLDER"
}

up() {
  if compgen -G "$STATE/*.pid" >/dev/null; then
    say "a cluster is recorded in $STATE already; end it first: cluster/local.sh down"
    exit 1
  fi
  mkdir -p "$STATE"
  STATE=$(cd "$STATE" && pwd)
  say "a head and $1 nodes of $CPUS CPUs; each takes 5 to 20 seconds; logs are in $STATE"
  python3 -c 'import secrets; print(secrets.token_hex(32))' >"$STATE/token"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$STATE/token"
  node head head_node
  for ((i = 1; i <= $1; i++)); do
    node "node-$i" worker_node
  done
  cat >"$STATE/env" <<ENV
export RAY_ADDRESS=$NODE_IP:$port
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH='$STATE/token'
ENV
  cat "$STATE/env"
  say "ready. Dashboard: http://127.0.0.1:$dashboard (it asks for the token in $STATE/token)"
  say "now: . $STATE/env"
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
    if [[ -e $file ]]; then
      say "ending $(basename "$file" .pid)"
      end "$file"
    fi
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
