#!/usr/bin/env bash
# A training run on a Google Cloud TPU VM or pod slice.
#
#   launch/tpu_pod.sh create | install | run | follow | resume | delete
#
# Fill in the names below. All workers need WORKDIR and DATA on one shared disk (Filestore, NFS):
# checkpoints are written together. The code is copied from this checkout.
set -euo pipefail

PROJECT=my-project
ZONE=us-west4-a
NAME=ldm-morph
TYPE=v5litepod-64                 # v5litepod-8 is one machine, v5litepod-64 sixteen
VERSION=v2-alpha-tpuv5-lite       # the runtime image that belongs to the type
SHARE=10.0.0.2:/share             # NFS export that every worker mounts at /share
CONFIG=configs/sunnybrook.py
SOURCE=/share/sunnybrook          # the dataset's original files
WORKDIR=/share/runs/sunnybrook
# 64 devices: the batch of every stage must be a multiple (train names the legal ones)
OPTIONS="--config.autoencoder.train.batch_size=64 --config.diffusion.train.batch_size=64
    --config.registration.train.batch_size=64 --config.compute.dtype=bfloat16"

tpu() { gcloud compute tpus tpu-vm "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

case "${1:-}" in
create)
    # --spot is cheap and preemptible: see resume
    tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" --spot
    ;;
install)
    git archive --prefix=ldm_morph_jax/ -o /tmp/ldm_morph_jax.tar.gz HEAD
    tpu scp /tmp/ldm_morph_jax.tar.gz "$NAME:" --worker=all
    # Python 3.11 or newer; the TPU wheels of jax come with the extra
    on_all "sudo apt-get install -y nfs-common python3-venv &&
        sudo mkdir -p /share && (mountpoint -q /share || sudo mount -t nfs $SHARE /share) &&
        tar xzf ldm_morph_jax.tar.gz && cd ldm_morph_jax && python3 -m venv .venv &&
        .venv/bin/pip install --quiet '.[tpu]'"
    ;;
run)
    # In the background, so that a lost connection does not end it. --distributed: the workers find
    # each other through the TPU's metadata. Every worker must be started, or the others wait.
    on_all "cd ldm_morph_jax && nohup .venv/bin/python -m ldm_morph_jax.train --distributed \
        --config $CONFIG --config.data.source=$SOURCE --config.data.directory=/share/data \
        --workdir $WORKDIR $(echo $OPTIONS) > train.log 2>&1 &"
    ;;
follow)
    # worker 0 speaks for all
    tpu ssh "$NAME" --worker=0 --command="tail -n 50 -F ldm_morph_jax/train.log"
    ;;
resume)
    # After a preemption the slice is gone; what is on /share is not. The same command goes on from
    # the newest checkpoint. Loop over it until training is done:
    #   until launch/tpu_pod.sh resume; do sleep 600; done
    state=$(tpu describe "$NAME" --format="value(state)" || true)
    if [ "$state" != READY ]; then
        [ -z "$state" ] || tpu delete "$NAME" --quiet
        "$0" create && "$0" install
    fi
    "$0" run
    ;;
delete)
    tpu delete "$NAME" # the disk keeps the run
    ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
