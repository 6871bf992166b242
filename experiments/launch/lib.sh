# shellcheck shell=bash disable=SC2034
# Shared by tpu.sh and babysit.sh: messages, checked variables, commands that are shown before they
# run, and the table of accelerators. Kept to what bash 3.2 knows, which is the bash of macOS.

CODE=ppo_jax               # in the home folder of every worker
WORKER_SH="$CODE/experiments/launch/worker.sh"
VENV="\$HOME/ppo_jax-venv" # expanded there

exec 3>&1 # commands are shown here, also where their output is read

say() { printf '%s: %s\n' "$TARGET" "$*" >&2; }

die() { # CODE TEXT
  local code=$1
  shift
  say "$*"
  exit "$code"
}

dry() { [[ -n $DRY_RUN && $DRY_RUN != 0 ]]; }

quoted() { # the words as one line that a shell reads back as the same words
  local word line="" safe='^[A-Za-z0-9_./:=,@%+-]+$'
  for word in "$@"; do
    if ! [[ $word =~ $safe ]]; then
      word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g"; printf x)" # x keeps a last newline
      word="${word%x}'"
    fi
    line="$line $word"
  done
  printf '%s' "${line# }"
}

run() { # show a command, then run it unless DRY_RUN
  printf '+ %s\n' "$(quoted "$@")" >&3
  dry || "$@"
}

remark() { printf '# %s\n' "$*" >&3; } # between the commands of a dry run

ask() { # run a command for its output; shown in a dry run alone, as some are asked every minute
  if dry; then
    printf '+ %s\n' "$(quoted "$@")" >&3
  else
    "$@"
  fi
}

meaning() { # of a variable | an example
  case $1 in
    TPU_NAME) echo "name of the TPU VM|ppo" ;;
    ZONE) echo "zone of the TPU VM|us-east5-b" ;;
    PROJECT) echo "Google Cloud project|my-project" ;;
    ACCEL) echo "accelerator type|v6e-8" ;;
    BUCKET) echo "bucket of the run folders, in the TPU's region|my-bucket" ;;
    RUN_ID) echo "name of the run, the same after every restart|run1" ;;
    CMD) echo "command for the workers|'nproc'" ;;
    *) echo "see make help|..." ;;
  esac
}

need() { # every variable that has no value is named, then exit 2
  local name text missing=""
  for name in "$@"; do
    if [[ -z ${!name} ]]; then
      text=$(meaning "$name")
      say "set $name (${text%|*}), as in make $TARGET $name=${text#*|}"
      missing=yes
    fi
  done
  [[ -z $missing ]] || exit 2
}

matches() { # NAME PATTERN ALLOWED: a value that is given must be of this form
  local name=$1 pattern=$2 allowed=$3
  # A newline would let one good line stand for the whole value.
  if [[ -n ${!name} ]] && { ! [[ ${!name} =~ $pattern ]] || [[ ${!name} == *$'\n'* ]]; }; then
    die 2 "$name=$(quoted "${!name}"): must be $allowed"
  fi
}

check_values() {
  matches TPU_NAME '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$' "lower-case letters, digits and -, a letter first"
  matches ZONE '^[a-z]+-[a-z]+[0-9]+-[a-z]$' "a zone like us-east5-b"
  matches PROJECT '^[a-z][a-z0-9.:-]*[a-z0-9]$' "a project id: lower-case letters, digits and -"
  matches RUNTIME '^[A-Za-z0-9][A-Za-z0-9._-]*$' "letters, digits and . _ -"
  matches SPOT '^[01]$' "1 (spot) or 0 (on demand)"
  matches DRY_RUN '^[01]$' "1 or 0"
  BUCKET=${BUCKET#gs://}
  BUCKET=${BUCKET%/}
  matches BUCKET '^[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$' \
    "a bucket's name, or name/folder, of letters, digits and . _ -"
  matches RUN_ID '^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$' "letters, digits and . _ - (no . or - first), 100 at most"
  matches EXP '^[A-Za-z0-9_][A-Za-z0-9_./-]*$' "letters, digits and . _ - / (no . or - first)"
  matches SEED '^[0-9]+$' "a whole number"
  matches WORKER '^([0-9]+|all)$' "a number from 0, or all"
  matches POLL '^[0-9]+(\.[0-9]+)?$' "seconds"
}

# Name, runtime version, sizes. Sizes of v2 to v5p count cores, eight on a host; those of v5litepod
# and v6e count chips, four on a host of a slice, and up to eight where there is one host.
ACCELERATORS='v2 tpu-ubuntu2204-base 8 32 128 256 512
v3 tpu-ubuntu2204-base 8 32 64 128 256 512 1024 2048
v4 tpu-ubuntu2204-base 8 16 32 64 128 256 384 512 1024 2048 4096
v5litepod v2-alpha-tpuv5-lite 1 4 8 16 32 64 128 256
v5p v2-alpha-tpuv5 8 16 32 64 128 256 384 512 1024 2048 4096
v6e v2-alpha-tpuv6e 1 4 8 16 32 64 128 256'

is_accelerator() {
  awk '{ for (i = 3; i <= NF; i++) print $1 "-" $i }' <<<"$ACCELERATORS" | grep -qxF -- "$1" && return
  # Larger slices of v4 and v5p come in every multiple of 64 cores.
  local big='^v(4|5p)-([1-9][0-9]{1,4})$'
  [[ $1 =~ $big ]] && ((BASH_REMATCH[2] % 64 == 0))
}

nearest_accelerator() { # NAME: the family that is spelled most like it, the size that is closest
  awk -v want="$1" '
    function edits(a, b,   i, j, m, n, d) { # characters to put in or to take out
      m = length(a); n = length(b)
      for (i = 0; i <= m; i++) for (j = 0; j <= n; j++) {
        if (i == 0 || j == 0) d[i, j] = i + j
        else if (substr(a, i, 1) == substr(b, j, 1)) d[i, j] = d[i-1, j-1]
        else d[i, j] = 1 + (d[i-1, j] < d[i, j-1] ? d[i-1, j] : d[i, j-1])
      }
      return d[m, n]
    }
    function apart(a, b) { return a > b ? a / b : b / a }
    BEGIN { size = want; sub(/.*-/, "", size); size += 0; if (size < 1) size = 1; sub(/-[^-]*$/, "", want) }
    { e = edits(want, $1) }
    NR == 1 || e < least {
      least = e; chosen = $3
      for (i = 4; i <= NF; i++) if (apart($i, size) < apart(chosen, size)) chosen = $i
      name = $1 "-" chosen
    }
    END { print name }' <<<"$ACCELERATORS"
}

check_accelerator() {
  is_accelerator "$ACCEL" && return
  local name=${ACCEL#tpu-}
  case $name in # what people call them
    v5e* | v5lite-*) name="v5litepod-${name##*[!0-9]}" ;;
  esac
  is_accelerator "$name" || name=$(nearest_accelerator "$name")
  die 2 "ACCEL=$(quoted "$ACCEL"): no such accelerator type; nearest: $name"
}

runtime_version() { # RUNTIME, or what the accelerator's family asks for
  [[ -n $RUNTIME ]] && echo "$RUNTIME" && return
  awk -v family="${ACCEL%-*}" '$1 == family { print $2 }' <<<"$ACCELERATORS"
}

worker_count() {
  local size=${ACCEL##*-}
  case $ACCEL in
    v5litepod-* | v6e-*) echo $((size <= 8 ? 1 : size / 4)) ;;
    *) echo $((size / 8)) ;;
  esac
}
