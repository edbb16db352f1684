#!/usr/bin/env bash
# A training run on a Google Cloud TPU VM or pod slice.
#
#   launch/tpu_pod.sh create | install | run | follow | resume | delete
#
# Fill in the names below. All workers write checkpoints together, so WORKDIR must be on a shared
# disk (Filestore, NFS); so should the data. The code is copied from this checkout.
set -euo pipefail

PROJECT=my-project
ZONE=us-west4-a
NAME=ldm-morph
TYPE=v5litepod-64                 # v5litepod-8 is one machine, v5litepod-64 sixteen
VERSION=v2-alpha-tpuv5-lite       # the runtime image for this type
SHARE=10.0.0.2:/share             # NFS export that every worker mounts at /share
CONFIG=sunnybrook
SOURCE=/share/sunnybrook          # the dataset's original files
WORKDIR=/share/runs/sunnybrook
# 64 devices: the batch of every stage must be a multiple of 64 (train names valid sizes)
OPTIONS="--config.autoencoder.train.batch_size=64 --config.diffusion.train.batch_size=64
    --config.registration.train.batch_size=64 --config.compute.dtype=bfloat16"

tpu() { gcloud compute tpus tpu-vm "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

case "${1:-}" in
create)
    # --spot is cheaper, but the slice can be preempted: see resume
    tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" --spot
    ;;
install)
    git archive --prefix=ldm_morph_jax/ -o /tmp/ldm_morph_jax.tar.gz HEAD
    tpu scp /tmp/ldm_morph_jax.tar.gz "$NAME:" --worker=all
    # Python 3.11 or newer; the extra installs jax's TPU wheels
    on_all "sudo apt-get install -y nfs-common python3-venv &&
        sudo mkdir -p /share && (mountpoint -q /share || sudo mount -t nfs $SHARE /share) &&
        tar xzf ldm_morph_jax.tar.gz && cd ldm_morph_jax && python3 -m venv .venv &&
        .venv/bin/pip install --quiet '.[tpu]'"
    ;;
run)
    # Run in the background, so that a lost connection does not end it. With --distributed the
    # workers find each other through the TPU's metadata. All of them must be started, or the rest
    # would wait.
    on_all "cd ldm_morph_jax && nohup .venv/bin/ldm-morph train --distributed \
        --config $CONFIG --config.data.source=$SOURCE --config.data.directory=/share/data \
        --workdir $WORKDIR $(echo $OPTIONS) > train.log 2>&1 &"
    ;;
follow)
    # only worker 0 writes the log
    tpu ssh "$NAME" --worker=0 --command="tail -n 50 -F ldm_morph_jax/train.log"
    ;;
resume)
    # A preemption removes the slice, but not the files on /share. Training resumes from the newest
    # checkpoint. Repeat this until it is done:
    #   until launch/tpu_pod.sh resume; do sleep 600; done
    state=$(tpu describe "$NAME" --format="value(state)" || true)
    if [ "$state" != READY ]; then
        [ -z "$state" ] || tpu delete "$NAME" --quiet
        "$0" create && "$0" install
    fi
    "$0" run
    ;;
delete)
    tpu delete "$NAME" # the run stays on the disk
    ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
