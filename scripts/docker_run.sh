#!/usr/bin/env bash
# `make` in the image, with the data, runs and weights of the current folder; what follows are make's own words.
#   scripts/docker_run.sh data train eval
#   scripts/docker_run.sh train GPUS=4 CONFIG=configs/strong.yaml ARGS="run.name=strong optim.lr=0.01"
# From the environment:
#   IMAGE=plumage                 DEVICES=all: `none`, or docker's own words, such as '"device=0,1"'
#   DATA=data  RUNS=runs  WEIGHTS=weights     folders of this machine, made if they are not there
#   SHM=8g                        shared memory, through which batches travel; `host` for the machine's own
# WANDB_API_KEY is passed on by its name alone. What is written belongs to who calls. `docker stop` lets a run save.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: scripts/docker_run.sh TARGET... [CONFIG=FILE] [GPUS=n] [ARGS=...]; TARGET: data, train, eval, ..." >&2
  exit 2
fi

options=(--rm --user "$(id -u):$(id -g)" --stop-timeout 300 --env WANDB_API_KEY)
[[ ! -t 0 || ! -t 1 ]] || options+=(--interactive --tty)
[[ ${DEVICES:=all} == none ]] || options+=(--gpus "$DEVICES")
if [[ ${SHM:=8g} == host ]]; then
  options+=(--ipc host)
else
  options+=(--shm-size "$SHM")
fi
for pair in "${DATA:-data}:data" "${RUNS:-runs}:runs" "${WEIGHTS:-weights}:weights"; do
  folder=${pair%:*}
  mkdir -p "$folder"
  options+=(--volume "$(cd "$folder" && pwd):/plumage/${pair##*:}")
done
exec docker run "${options[@]}" "${IMAGE:-plumage}" make "$@"
