#!/usr/bin/env bash
# Trains on every host of a TPU slice: NAME=my-slice ZONE=us-east5-a BUCKET=my-bucket HOSTS=16 bash tpu_vm.sh
set -euo pipefail
: "${NAME:?the TPU's name}" "${ZONE:?its zone}" "${BUCKET:?a bucket that its hosts can write}" "${HOSTS:?how many hosts}"
everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"; }

everywhere "git clone https://github.com/OWNER/jhsae && pip install './jhsae[tpu]' gcsfs"
everywhere "jhsae train scale.yaml data.store=gs://$BUCKET/stores/gemma-2-2b-l20 data.streams=$HOSTS \
  out=gs://$BUCKET/runs/scale"
