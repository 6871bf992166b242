#!/usr/bin/env bash
# Cloud TPU VMs by gcloud: one function a target of tpu.mk. `make help` lists them, README.md beside
# this file has the whole way.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
COMMAND=${1:-}
TARGET="tpu-$COMMAND"

TPU_NAME=${TPU_NAME:-} ZONE=${ZONE:-} PROJECT=${PROJECT:-} ACCEL=${ACCEL:-} RUNTIME=${RUNTIME:-}
SPOT=${SPOT:-1} BUCKET=${BUCKET:-} RUN_ID=${RUN_ID:-} WORKER=${WORKER:-} CMD=${CMD:-}
EXP=${EXP:-sentiment} SEED=${SEED:-0} ARGS=${ARGS:-} RUN_DIR=${RUN_DIR:-runs}
DRY_RUN=${DRY_RUN:-} POLL=${POLL:-60}

# shellcheck source=experiments/launch/lib.sh
source "$HERE/lib.sh"
# shellcheck source=experiments/launch/babysit.sh
source "$HERE/babysit.sh"

queued() { # run|ask VERB FLAG...: the queued resource, which has the name of its VM
  local how=$1 verb=$2
  shift 2
  "$how" gcloud compute tpus queued-resources "$verb" "$TPU_NAME" \
    "--zone=$ZONE" "--project=$PROJECT" "$@"
}

vm() { # run|ask VERB WORD...
  local how=$1 verb=$2
  shift 2
  "$how" gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$ZONE" "--project=$PROJECT"
}

on_workers() { # run|ask all|NUMBER COMMAND
  vm "$1" ssh "$TPU_NAME" "--worker=$2" "--command=$3"
}

state_of() { # queued|vm: one word; NONE where it does not exist, UNKNOWN where gcloud has failed
  local out errors
  errors=$(mktemp)
  if [[ $1 == queued ]]; then
    set -- queued ask describe '--format=value(state.state)'
  else
    set -- vm ask describe "$TPU_NAME" '--format=value(state)'
  fi
  if out=$("$@" 2>"$errors"); then
    out=${out:-UNKNOWN}
  elif grep -q NOT_FOUND "$errors"; then
    out=NONE
  else
    say "$(grep . "$errors" | tail -n 1)"
    out=UNKNOWN
  fi
  rm -f "$errors"
  echo "$out"
}

create_vm() {
  set --
  [[ $SPOT == 0 ]] || set -- --spot
  queued run create "--node-id=$TPU_NAME" "--accelerator-type=$ACCEL" \
    "--runtime-version=$(runtime_version)" "$@"
}

delete_vm() { # --force: with its VM; a dead resource keeps quota and name
  queued run delete --force --quiet
}

wait_active() {
  local state="" before="" unknown=0
  while :; do
    state=$(state_of queued)
    dry && return
    [[ $state == "$before" ]] || say "$TPU_NAME is $state"
    before=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NONE)
        die 1 "$TPU_NAME will not become active; make tpu-delete, then make tpu-create again"
        ;;
      UNKNOWN)
        ((unknown += 1))
        ((unknown < PATIENCE)) || die 1 "gcloud gives no state of $TPU_NAME"
        ;;
      *) unknown=0 ;;
    esac
    sleep "$POLL"
  done
}

pack() { # FILE: the files that git tracks, as they are now
  local others file
  git rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    die 2 "what git tracks is sent, and $PWD is no git checkout"
  others=$(git ls-files --others --exclude-standard | wc -l)
  ((others == 0)) || say "untracked files stay here: $((others)) (git add sends them)"
  printf '+ %s\n' "git ls-files -z | tar --null -T - -czf $(quoted "$1")" >&3
  dry && return
  mkdir -p "$(dirname "$1")"
  git ls-files -z | while IFS= read -r -d '' file; do
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi # else deleted, and not yet in git
  done | COPYFILE_DISABLE=1 tar --null -T - -czf "$1"
}

push() {
  local archive="build/$TPU_NAME.tgz" commit
  pack "$archive"
  commit=$(git rev-parse HEAD 2>/dev/null || echo none)
  git diff --quiet HEAD 2>/dev/null || commit="$commit+changes"
  vm run scp "$archive" "$TPU_NAME:ppo_jax.tgz" --worker=all &&
    on_workers run all "rm -rf $CODE.new && mkdir $CODE.new && tar -xzf ppo_jax.tgz -C $CODE.new \
&& echo $commit >$CODE.new/COMMIT && bash ${WORKER_SH/$CODE/$CODE.new} place"
}

set_up() {
  push || return
  if [[ -n $BUCKET && -n $RUN_ID ]]; then
    on_workers run all "bash $WORKER_SH setup $(quoted "$(launch_folder)")"
  else
    on_workers run all "bash $WORKER_SH setup"
  fi
}

run_name() { # experiment/cell/seed<k>, the run's folder below gs://BUCKET/runs
  local stem=${EXP##*/}
  echo "${stem%.py}/$RUN_ID/seed$SEED"
}

run_folder() { echo "gs://$BUCKET/runs/$(run_name)"; }

launch_folder() { echo "gs://$BUCKET/launch/$(run_name)"; } # versions and logs of the VMs

check_training() { # what would fail on the VM, an hour later
  local file=$EXP word
  [[ $EXP == *.py ]] || file="experiments/$EXP.py"
  [[ -f $file ]] || die 2 "EXP=$EXP: no file $file"
  git ls-files --error-unmatch -- "$file" >/dev/null 2>&1 ||
    die 2 "EXP=$EXP: git does not track $file, and only what it tracks is sent: git add $file"
  [[ $ARGS != *[\'\"\\]* ]] ||
    die 2 "ARGS=$(quoted "$ARGS"): split at spaces alone; quotes and backslashes have no meaning in it"
  set -f
  for word in $ARGS; do
    ! [[ $word =~ ^--run\.(dir|cell|seed)(=|$) ]] ||
      die 2 "ARGS has $word: set BUCKET, RUN_ID and SEED, of which run.dir, run.cell and run.seed are made"
  done
  set +f
}

start_training() {
  local words
  set -f
  # shellcheck disable=SC2086  # ARGS is split at spaces, and nothing else happens to it
  words=$(quoted "$(run_name)" "$(launch_folder)" "$EXP" --run.dir "gs://$BUCKET/runs" \
    --run.cell "$RUN_ID" --run.seed "$SEED" $ARGS)
  set +f
  on_workers run all "bash $WORKER_SH start $words"
}

check_agent() { # gcloud asks no more than the agent where it opens several connections at once
  local workers
  workers=$(worker_count)
  ((workers == 1)) || ssh-add -l >/dev/null 2>&1 ||
    say "$ACCEL has $workers hosts: for them put the key into the agent: ssh-add ~/.ssh/google_compute_engine"
}

costs() { say "$TPU_NAME costs until make tpu-delete"; }

tpu_create() {
  local state
  need TPU_NAME ZONE PROJECT ACCEL
  check_accelerator
  state=$(state_of queued)
  if dry || [[ $state == NONE ]]; then
    create_vm
  else
    say "$TPU_NAME is there already"
  fi
  dry || check_agent
  wait_active
}

tpu_status() {
  local state
  need TPU_NAME ZONE PROJECT
  state=$(state_of queued)
  dry || echo "queued resource $TPU_NAME: $state"
  if dry || [[ $state == ACTIVE ]]; then
    state=$(state_of vm)
    dry || echo "VM $TPU_NAME: $state"
    on_workers run all "$(asking_state)" || true
  fi
  if [[ -n $BUCKET && -n $RUN_ID ]]; then
    run gcloud storage cat "$(run_folder)/status.json" "--project=$PROJECT" || true
  fi
  dry || [[ $state == NONE ]] || costs
}

tpu_setup() {
  need TPU_NAME ZONE PROJECT
  set_up
}

tpu_push() {
  need TPU_NAME ZONE PROJECT
  push
}

tpu_train() {
  need TPU_NAME ZONE PROJECT BUCKET RUN_ID
  check_training
  start_training
}

tpu_run() {
  need TPU_NAME ZONE PROJECT CMD
  on_workers run "${WORKER:-all}" "cd $CODE && PATH=$VENV/bin:\$PATH bash -c $(quoted "$CMD")"
}

tpu_logs() {
  need TPU_NAME ZONE PROJECT
  on_workers run "${WORKER:-0}" "bash $WORKER_SH logs"
}

tpu_ssh() {
  need TPU_NAME ZONE PROJECT
  vm run ssh "$TPU_NAME" "--worker=${WORKER:-0}"
}

tpu_pull() {
  local folder
  need PROJECT BUCKET RUN_ID
  folder="$RUN_DIR/$(run_name)"
  run mkdir -p "$folder"
  run gcloud storage rsync "$(run_folder)" "$folder" --recursive "--project=$PROJECT"
}

tpu_babysit() {
  need TPU_NAME ZONE PROJECT ACCEL BUCKET RUN_ID
  check_accelerator
  check_training
  babysit
}

tpu_delete() {
  need TPU_NAME ZONE PROJECT
  if dry || [[ $(state_of queued) != NONE ]]; then
    delete_vm
  else
    say "$TPU_NAME does not exist"
  fi
}

cd "$HERE/../.."
case $COMMAND in
  create | status | setup | push | train | run | logs | ssh | pull | babysit | delete) ;;
  *) die 2 "no such target (create status setup push train run logs ssh pull babysit delete)" ;;
esac
check_values
dry || command -v gcloud >/dev/null || die 2 "no command gcloud: install the Google Cloud CLI"
"tpu_$COMMAND"
