# shellcheck shell=bash
# Sourced by tpu.sh: keeps one run going until it has ended. Every POLL seconds it looks at the
# queued resource, the VM and the run, and does what is missing: a lost VM is deleted, requested
# again, set up, and the run of the same RUN_ID goes on from its newest checkpoint.

INCURABLE="2 3 4 6 7"   # exit codes that the same command would end with again
WITHOUT_PROGRESS=3      # restarts on a VM that lives
PATIENCE=30             # failures, and VMs lost, without a look at a running run in between
UNREACHABLE=5           # of ssh, after which a VM counts as lost; each is ten tries of gcloud's
HALF=5                  # looks at a slice of which only some workers run

ENDED=""                # exit code of babysit, once it is known
RUN_STATUS="" RUN_STEP=-1
STEP=-1 RESTARTS=0 TROUBLE=0 REACHED="" UNREACHED=0 PARTLY=0 NOTED=""

note() { # what is the same as before is not said again
  [[ $* == "$NOTED" ]] || say "$*"
  NOTED="$*"
}

trouble() { # WEIGHT TEXT
  ((TROUBLE += $1))
  say "$2"
  if ((TROUBLE >= PATIENCE)); then
    finish 1 "giving up: this does not pass"
  fi
}

finish() { # CODE TEXT
  ENDED=$1
  say "$2"
}

asking_state() { # for the workers; a new VM has not even the file
  echo "if test -f $WORKER_SH; then bash $WORKER_SH state; else echo ppo-jax-state fresh; fi"
}

field() { # of an indented JSON object on stdin: a word or a number
  sed -nE "s/^ *\"$1\": \"?([A-Za-z0-9]+).*/\1/p" | head -n 1
}

read_run() { # how the run itself says that it stands
  local text
  text=$(ask gcloud storage cat "$(run_folder)/status.json" "--project=$PROJECT" 2>/dev/null) || text=""
  RUN_STATUS=$(field status <<<"$text")
  RUN_STEP=$(field step <<<"$text")
  [[ $RUN_STEP =~ ^[0-9]+$ ]] || RUN_STEP=-1
}

renew() { # WHY: the VM is lost, or was never had
  read_run
  if [[ $RUN_STATUS == "done" ]]; then # it had the time to finish
    finish 0 "$(run_name) is done at iteration $RUN_STEP"
    return
  fi
  trouble 1 "$1: requesting $TPU_NAME again"
  [[ -z $ENDED ]] || return 0
  REACHED="" UNREACHED=0 PARTLY=0
  if ! delete_vm; then
    trouble 1 "$TPU_NAME could not be deleted"
    return
  fi
  request
}

request() { create_vm || trouble 1 "$TPU_NAME could not be requested"; }

begin() { # [fresh]
  local weight=1
  if [[ ${1:-} == fresh ]] && ! set_up; then
    # What fails on a VM that lives fails again; one that is lost in between says nothing.
    [[ $(state_of vm) != READY ]] || weight=10
    trouble "$weight" "setting up $TPU_NAME has failed"
    return
  fi
  start_training || trouble 1 "$(run_name) could not be started"
}

begin_again() { # CODE, or nothing where none is known
  read_run
  ((RUN_STEP <= STEP)) || RESTARTS=0
  STEP=$RUN_STEP
  ((RESTARTS += 1))
  if ((RESTARTS > WITHOUT_PROGRESS)); then
    finish "${1:-1}" "$(run_name): no progress in $WITHOUT_PROGRESS restarts (code ${1:-unknown})"
    return
  fi
  say "$(run_name) has ended with code ${1:-unknown} at iteration $RUN_STEP: going on"
  begin
}

look() {
  local state
  state=$(state_of queued)
  case $state in
    ACTIVE) look_at_vm ;;
    NONE)
      note "$TPU_NAME does not exist: requesting it"
      request
      ;;
    FAILED | SUSPENDED) renew "$TPU_NAME is $state" ;;
    UNKNOWN) trouble 1 "no state of $TPU_NAME" ;;
    *) note "$TPU_NAME is $state" ;;
  esac
}

look_at_vm() {
  local state
  state=$(state_of vm)
  case $state in
    READY) look_at_run ;;
    PREEMPTED | TERMINATED | STOPPED | HIDDEN | NONE) renew "the VM is $state" ;;
    UNKNOWN) trouble 1 "no state of the VM $TPU_NAME" ;;
    *) note "the VM is $state" ;;
  esac
}

look_at_run() {
  local out errors why
  errors=$(mktemp)
  if out=$(on_workers ask all "$(asking_state)" 2>"$errors" </dev/null); then
    REACHED=yes UNREACHED=0
    decide "$(grep '^ppo-jax-state ' <<<"$out")"
  elif [[ -z $REACHED ]]; then # perhaps no key, which no new VM would cure
    why=$(grep . "$errors" | tail -n 1) || true
    trouble 3 "ssh does not reach every worker of $TPU_NAME: $why"
  else
    ((UNREACHED += 1))
    note "$TPU_NAME does not answer"
    ((UNREACHED < UNREACHABLE)) || renew "$TPU_NAME has stopped answering"
  fi
  rm -f "$errors"
}

decide() { # LINES, one a worker
  local word name code ours fresh=0 running=0 done=0 idle=0 codes=""
  ours=$(run_name)
  while read -r _ word name code; do
    case $word in
      fresh) ((fresh += 1)) ;;
      running)
        if [[ $name != "$ours" ]]; then
          finish 5 "$TPU_NAME runs $name, not $ours"
          return
        fi
        ((running += 1))
        ;;
      ended | lost)
        if [[ $name != "$ours" ]]; then
          ((idle += 1))
        elif [[ $code == 0 ]]; then
          ((done += 1))
        else
          codes="$codes ${code:-unknown}"
        fi
        ;;
      *) ((idle += 1)) ;;
    esac
  done <<<"$1"
  act "$fresh" "$running" "$done" "$idle" "$codes"
}

act() { # numbers of workers that are FRESH RUNNING DONE IDLE, and CODES of the others
  local code
  if (($1)); then
    say "setting up $TPU_NAME"
    begin fresh
  elif (($2)) && (($3 + $4 == 0)) && [[ -z $5 ]]; then
    note "$(run_name) is running"
    TROUBLE=0 PARTLY=0
  elif (($2)); then # what is left of it waits for the others, at best until a time-out of its own
    ((PARTLY += 1))
    note "$(run_name) runs on $2 workers alone"
    if ((PARTLY >= HALF)); then
      PARTLY=0
      on_workers run all "bash $WORKER_SH stop" || true
    fi
  elif [[ -n $5 ]]; then
    for code in $INCURABLE; do
      if [[ " $5 " == *" $code "* ]]; then
        finish "$code" "$(run_name) has ended with code $code, which a restart does not cure: make tpu-logs"
        return
      fi
    done
    code=${5##* }
    begin_again "${code#unknown}"
  elif (($4)); then
    say "starting $(run_name)"
    begin
  else
    finish 0 "$(run_name) is done"
  fi
}

show_all() { # each command of a whole life, once
  remark "is it done already?"
  read_run
  remark "every $POLL s: where the VM does not exist, request it"
  state_of queued >/dev/null
  create_vm
  remark "where it is active, ask its workers"
  state_of vm >/dev/null
  on_workers ask all "$(asking_state)"
  remark "where it is new, set it up"
  set_up
  remark "where the run has not started, or has ended with a code that a restart cures, start it"
  start_training
  remark "where the VM is lost, delete it, request it, and so on with the same RUN_ID"
  delete_vm
  create_vm
}

babysit() {
  if dry; then
    show_all
    return
  fi
  read_run
  if [[ $RUN_STATUS == "done" ]]; then
    say "$(run_name) is done at iteration $RUN_STEP; for more iterations, make tpu-train"
    return
  fi
  STEP=$RUN_STEP
  check_agent
  while :; do
    look
    [[ -z $ENDED ]] || break
    sleep "$POLL"
  done
  costs
  exit "$ENDED"
}
