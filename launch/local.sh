#!/usr/bin/env bash
# Rehearse a pod on this machine: N processes with M simulated CPU devices each.
#
#   launch/local.sh 2 4 ldm-morph train --config quickstart --workdir runs/x
#
# The command must accept --coordinator, --num-processes and --process-id. If one process fails, the
# others are stopped and its exit status is returned. SIGTERM is passed on to all processes.
set -uo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 PROCESSES DEVICES_PER_PROCESS COMMAND..." >&2
    exit 2
fi
processes=$1 devices=$2
shift 2

port=${PORT:-$((20000 + RANDOM % 20000))}
export JAX_PLATFORMS=cpu
export JAX_NUM_CPU_DEVICES=$devices
# process 0 listens only on loopback; the default is every interface
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port

pids=()
for ((i = 0; i < processes; i++)); do
    "$@" --coordinator=127.0.0.1:$port --num-processes="$processes" --process-id=$i &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

status=0
while [ -n "$(jobs -rp)" ]; do
    wait -n
    code=$?
    # 75: preempted, every process saves and exits by itself; above 128: killed by a signal
    if ((code != 0 && code != 75 && code <= 128)); then
        kill -KILL "${pids[@]}" 2>/dev/null # they would wait for the failed one
    fi
done
for pid in "${pids[@]}"; do
    wait "$pid" || { code=$?; ((status == 0 || status > 128)) && status=$code; }
done
exit $status
