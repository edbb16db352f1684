#!/usr/bin/env bash
# The paper's networks on one GPU, trained briefly: train, be preempted and resume, score, time.
# docs/performance.md says how far it got on an H100 in a quarter of an hour.
#
#   launch/one_gpu.sh OUT [--config.data.source=DIR ...]
#   CONFIG=acdc:one_gpu launch/one_gpu.sh OUT --config.data.source=DIR
#
# Further arguments are flags of `train`. What is worth keeping is in OUT (below 60 MB): logs,
# curves, scores of the test pairs, times. The run, with its checkpoints, is in RUN (OUT.run). The
# same command goes on after any interruption. PARTS chooses among "train score time".
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: [CONFIG=NAME:VARIANT] [RUN=DIR] [PARTS='train score time'] $0 OUT [FLAG...]" >&2
    exit 2
fi
out=$1
shift
config=${CONFIG:-camus_4ch:one_gpu}
run=${RUN:-$out.run}
parts=${PARTS:-train score time}
python=${PYTHON:-python3}
mkdir -p "$out" "$run"
seconds() { echo "$(date +%T) $1: $SECONDS s" | tee -a "$out/seconds.txt"; }
training=("$python" -m ldm_morph_jax.train --config "$config" --workdir "$run" "$@")

if [[ $parts == *train* ]]; then
    # Preempted once, after the first checkpoint of the registration: it has to exit with 75, and the
    # same command has to go on.
    if [ ! -e "$run/registration/complete.json" ]; then
        "${training[@]}" >>"$out/train.log" 2>&1 &
        trainer=$!
        trap 'kill -TERM $trainer 2>/dev/null || true' EXIT TERM INT
        until ls -d "$run"/registration/checkpoints/[0-9]* >/dev/null 2>&1; do
            kill -0 $trainer 2>/dev/null || break
            sleep 1
        done
        kill -TERM $trainer 2>/dev/null || true
        status=0
        wait $trainer || status=$?
        trap - EXIT TERM INT
        if ((status != 75 && status != 0)); then
            tail -n 20 "$out/train.log" >&2
            exit $status
        fi
        seconds "first part, ended with status $status (75: preempted)"
    fi
    "${training[@]}" >>"$out/train.log" 2>&1 || { tail -n 20 "$out/train.log" >&2; exit 1; }
    grep -h "resumed at" "$out/train.log" | tee -a "$out/seconds.txt" || true
    seconds "training"
    cp "$run/environment.json" "$out/"
    for stage in autoencoder diffusion registration; do
        mkdir -p "$out/$stage"
        cp "$run/$stage"/{metrics.jsonl,complete.json} "$out/$stage/"
    done
fi
if [[ $parts == *score* ]]; then
    for steps in 0 82; do
        "$python" -m ldm_morph_jax.evaluate --workdir "$run" --split test --refine $steps \
            --out "$out/test-refine$steps" 2>&1 | tee -a "$out/score.log"
    done
    seconds "scoring"
fi
if [[ $parts == *time* ]]; then
    "$python" -m ldm_morph_jax.speed --config "$config" --repeats 10 --seconds 5 --batches 1,16 \
        --json "$out/speed.json" "$@" 2>&1 | tee -a "$out/speed.log"
    seconds "timing"
fi
du -sm "$out"
