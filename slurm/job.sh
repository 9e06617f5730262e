# shellcheck shell=bash
# Sourced by the scripts of this folder: the site's settings, the folder of a run, commands on nodes, and the end of a
# job. README.md describes them for users.
#
# Every job ends in `finish`: it stops Ray on all nodes, records the result, and prints the cause last.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CAUSE=""           # cause of the job's failure, printed last
STOP_ASKED=""      # time of Slurm's stop signal, in seconds since the epoch
DIR=""             # folder of the run
ATTEMPT=""         # folder of this attempt at the run
DRIVER_PID=""      # pid of the srun of the job's main command
STOP_REQUEST=""    # file that makes the main command save and end, if it supports that

say() { printf '[verl_aer %s] %s\n' "$(date +%H:%M:%S)" "$*"; }

fail() {
    CAUSE=$1
    exit "${2:-1}"
}

# -------------------------------------------------------------------------------------------------------- settings

# The site's file does not overwrite variables that are set, so that the environment can change a value for one job.
read_settings() {
    SITE=${SITE:-$HERE/env.sh}
    if [ -e "$SITE" ]; then
        # shellcheck source=env.sh.example
        source "$SITE"
    elif [ "$SITE" != "$HERE/env.sh" ]; then
        fail "SITE=$SITE: no such file; copy slurm/env.sh.example and edit it" 2
    fi
    NODES=${SLURM_JOB_NUM_NODES:-${NODES:-1}}
    HARDWARE=${HARDWARE:-gpu}
    GPUS_PER_NODE=${GPUS_PER_NODE:-8}
    PYTHON=${PYTHON:-python}
    OUT=${OUT:-runs}
    INTERFACE=${INTERFACE:-}
    CONTAINER=${CONTAINER:-none}
    NODE_TMP=${NODE_TMP:-/tmp}
    JOIN_SECONDS=${JOIN_SECONDS:-300}
    SIGNAL_SECONDS=${SIGNAL_SECONDS:-600}
    CLUSTER_CHECK=${CLUSTER_CHECK:-1}
    RAY_DASHBOARD=${RAY_DASHBOARD:-0}
    case $OUT in /*) ;; *) OUT=$PWD/$OUT ;; esac
    check_settings
}

check_settings() {
    local name wrong=()
    for name in NODES GPUS_PER_NODE JOIN_SECONDS SIGNAL_SECONDS; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || wrong+=("$name=${!name}: must be a number, 1 or more.")
    done
    [[ $HARDWARE =~ ^(gpu|cpu)$ ]] || wrong+=("HARDWARE=$HARDWARE: must be gpu or cpu.")
    [[ $CONTAINER =~ ^(none|pyxis|apptainer)$ ]] || wrong+=("CONTAINER=$CONTAINER: must be none, pyxis or apptainer.")
    [ "$CONTAINER" = none ] || [ -n "${CONTAINER_IMAGE:-}" ] || wrong+=("CONTAINER_IMAGE: not set, and CONTAINER=$CONTAINER.")
    [ ${#wrong[@]} -eq 0 ] || fail "${wrong[*]} Set it in $SITE or in the environment." 2
}

print_settings() {
    local name
    for name in SITE NODES HARDWARE GPUS_PER_NODE PYTHON OUT RUN RECIPE INTERFACE CONTAINER CONTAINER_IMAGE CONTAINER_MOUNTS \
        NODE_TMP JOIN_SECONDS SIGNAL_SECONDS CLUSTER_CHECK RAY_DASHBOARD ACCOUNT PARTITION QOS TIME SBATCH_EXTRA \
        NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME HF_HOME HF_HUB_OFFLINE VERL_USE_EXTERNAL_MODULES PYTHONPATH \
        SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_RESTART_COUNT SLURM_ARRAY_TASK_ID SLURM_CLUSTER_NAME; do
        printf '%s=%s\n' "$name" "${!name-(not set)}"
    done
}

# Loads modules, a virtual environment, or anything else in the site's file, before Python starts.
prepare_environment() {
    if declare -F site_setup >/dev/null; then
        site_setup || fail "site_setup of $SITE failed" 2
    fi
    if [ -n "$INTERFACE" ]; then
        export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$INTERFACE} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$INTERFACE}
    fi
    # A separate token per job keeps this job from joining another Ray by mistake, and other jobs from joining this one.
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
    export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=${VLLM_NO_USAGE_STATS:-1}
}

# ------------------------------------------------------------------------------------------------------ submission

# submit SCRIPT ARGUMENTS...   uses SBATCH_MORE, the options that the script adds
submit() {
    local script=$1
    shift
    local command=(
        sbatch --export=ALL --requeue --open-mode=append --signal="B:USR1@$SIGNAL_SECONDS"
        --nodes="$NODES" --ntasks-per-node=1 --output="$OUT/slurm/%x-%j.out"
    )
    [ "$HARDWARE" = cpu ] || command+=(--gpus-per-node="$GPUS_PER_NODE")
    [ -z "${ACCOUNT:-}" ] || command+=(--account="$ACCOUNT")
    [ -z "${PARTITION:-}" ] || command+=(--partition="$PARTITION")
    [ -z "${QOS:-}" ] || command+=(--qos="$QOS")
    [ -z "${TIME:-}" ] || command+=(--time="$TIME")
    # Unquoted on purpose: options of the site.
    # shellcheck disable=SC2206
    command+=(${SBATCH_EXTRA:-} "${SBATCH_MORE[@]}" "$script" "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        echo "# submission"
        show "${command[@]}"
        return
    fi
    mkdir -p "$OUT/slurm"
    say "log: $OUT/slurm/"
    "${command[@]}"
    exit
}

show() {
    printf '%q ' "$@"
    echo
}

# ----------------------------------------------------------------------------------------------------------- nodes

# The allocation's nodes, in Slurm's order. The first one runs this script. Slurm expands names with brackets.
read_nodes() {
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        mapfile -t NODE_NAMES < <(seq -f "NODE%g" 1 "$NODES")
        return
    fi
    local list=${SLURM_JOB_NODELIST:-${SLURM_NODELIST:-}} listed
    listed=$(scontrol show hostnames "$list") || fail "scontrol show hostnames '$list' failed; see its message above"
    mapfile -t NODE_NAMES < <(tr -d '\r' <<<"$listed" | awk 'NF { print $1 }')
    [ "${#NODE_NAMES[@]}" -eq "$NODES" ] ||
        fail "Slurm gave $NODES node(s), but scontrol show hostnames '$list' names ${#NODE_NAMES[@]}: ${NODE_NAMES[*]:-none}"
}

# on_node NODE LOG COMMAND...   sets LAUNCH to the command that runs COMMAND on NODE, in the site's container
on_node() {
    local node=$1 log=$2
    shift 2
    # --overlap: several steps use the node at once. --cpu-bind=none: otherwise a step with one task gets one core.
    LAUNCH=(srun --overlap --export=ALL --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --output="$log")
    case $CONTAINER in
    pyxis)
        LAUNCH+=(--container-image="$CONTAINER_IMAGE" --container-workdir="$PWD")
        [ -z "${CONTAINER_MOUNTS:-}" ] || LAUNCH+=(--container-mounts="$CONTAINER_MOUNTS")
        LAUNCH+=("$@")
        ;;
    apptainer)
        LAUNCH+=(apptainer exec --pwd "$PWD")
        [ "$HARDWARE" = cpu ] || LAUNCH+=(--nv)
        [ -z "${CONTAINER_MOUNTS:-}" ] || LAUNCH+=(--bind "$CONTAINER_MOUNTS")
        LAUNCH+=("$CONTAINER_IMAGE" "$@")
        ;;
    none) LAUNCH+=("$@") ;;
    esac
}

alive() { kill -0 "$1" 2>/dev/null; }

# A pause that a signal interrupts at once: bash runs a trap only between commands.
pause() {
    sleep "$1" &
    wait $! || true
}

# ------------------------------------------------------------------------------------------------- folder of a run

# open_run NAME SETTINGS...   sets DIR and ATTEMPT; exits if the run is finished, fails if its settings differ
open_run() {
    local name=$1 number settings
    shift
    DIR=$OUT/$name
    mkdir -p "$DIR/attempts"
    if [ -f "$DIR/finished.txt" ]; then
        say "$DIR is already finished ($(head -1 "$DIR/finished.txt")); not run again"
        exit 0
    fi
    settings=$(mktemp "$DIR/.settings.XXXXXX")
    printf '%s\n' "$@" >"$settings"
    [ -e "$DIR/settings.txt" ] || cp "$settings" "$DIR/settings.txt"
    if ! cmp -s "$settings" "$DIR/settings.txt"; then
        diff "$DIR/settings.txt" "$settings" | sed -n 's/^[<>]/  &/p' >&2 || true
        rm -f "$settings"
        fail "$DIR belongs to a run with other settings (above: < that run, > this job): choose another with RUN=..., or remove it" 2
    fi
    rm -f "$settings"
    claim_run
    number=$(find "$DIR/attempts" -mindepth 1 -maxdepth 1 -type d | wc -l)
    ATTEMPT=$DIR/attempts/$(printf '%03d' $((number + 1)))-job$SLURM_JOB_ID-restart${SLURM_RESTART_COUNT:-0}
    mkdir "$ATTEMPT"
    ln -sfn "attempts/${ATTEMPT##*/}" "$DIR/.latest.$SLURM_JOB_ID"
    mv -T "$DIR/.latest.$SLURM_JOB_ID" "$DIR/latest"
    print_settings >"$ATTEMPT/settings.txt"
    print_settings
    say "attempt ${ATTEMPT##*/} of $name; all output is in $DIR/latest"
}

# Two jobs that train the same run would overwrite each other's checkpoints. squeue fails for a job that Slurm has
# forgotten, which no longer trains.
claim_run() {
    local holder=""
    [ ! -f "$DIR/job.txt" ] || holder=$(cat "$DIR/job.txt")
    if [ -n "$holder" ] && [ "$holder" != "$SLURM_JOB_ID" ] && [ -n "$(squeue -h -j "$holder" -t R,CG,S 2>/dev/null || true)" ]; then
        fail "job $holder is training $DIR: wait for it, or choose another run with RUN=..." 2
    fi
    echo "$SLURM_JOB_ID" >"$DIR/.job.$SLURM_JOB_ID"
    mv "$DIR/.job.$SLURM_JOB_ID" "$DIR/job.txt"
}

# Merges the metrics logs of all attempts. A repeated step occurs twice, and every reader takes the later one.
gather_metrics() {
    if compgen -G "$DIR/attempts/*/metrics.jsonl" >/dev/null; then
        # Incomplete lines of a killed attempt are dropped. grep fails if there is no complete line.
        grep -h '}}$' "$DIR"/attempts/*/metrics.jsonl >"$DIR/.metrics.jsonl" || true
        mv "$DIR/.metrics.jsonl" "$DIR/metrics.jsonl"
        [ ! -f "$ATTEMPT/metrics.jsonl.entropy.json" ] ||
            cp "$ATTEMPT/metrics.jsonl.entropy.json" "$DIR/metrics.jsonl.entropy.json"
    fi
}

# ------------------------------------------------------------------------------------------------ how a job ends

trap 'finish $?' EXIT
trap 'asked_to_stop' USR1
trap 'CAUSE="Slurm ended the job: cancelled, out of time, pre-empted or re-queued (see sacct -j ${SLURM_JOB_ID:-})"; exit 143' TERM INT

# Before Slurm takes the nodes away, the run saves and ends. It resumes as a new attempt.
asked_to_stop() {
    [ -z "$STOP_ASKED" ] || return 0
    STOP_ASKED=$(date +%s)
    say "Slurm requests a stop"
    if [ -n "$DRIVER_PID" ] && [ -n "$STOP_REQUEST" ]; then
        say "requesting a checkpoint after the current step"
        touch "$STOP_REQUEST" || say "cannot write $STOP_REQUEST; the last checkpoint will be used"
    fi
}

# Slurm sends its signal SIGNAL_SECONDS before the end. A job with a slightly longer limit would be stopped at its first
# step, again and again.
check_time_limit() {
    local limit
    # squeue gives no answer if there is no limit. Slurm enforces its own.
    limit=$(seconds_of "$(squeue -h -j "$SLURM_JOB_ID" -o %l 2>/dev/null || true)")
    [ -z "$limit" ] || [ "$limit" -ge $((2 * SIGNAL_SECONDS)) ] ||
        fail "the job's time limit is $limit s, and it is stopped SIGNAL_SECONDS=$SIGNAL_SECONDS before its end: set TIME to at least twice that, or SIGNAL_SECONDS (sbatch --signal=B:USR1@SECONDS) to less" 2
}

# seconds_of [DAYS-][[HOURS:]MINUTES:]SECONDS   converts a limit as squeue prints it; prints nothing for other text
seconds_of() {
    [[ $1 =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]] || return 0
    local days=${BASH_REMATCH[2]:-0} hours=${BASH_REMATCH[4]:-0} minutes=${BASH_REMATCH[5]} seconds=${BASH_REMATCH[6]}
    echo $((((10#$days * 24 + 10#$hours) * 60 + 10#$minutes) * 60 + 10#$seconds))
}

# Checks whether the time between Slurm's signal and the end is nearly over.
is_overdue() { [ -n "$STOP_ASKED" ] && [ $(($(date +%s) - STOP_ASKED)) -gt $((SIGNAL_SECONDS - SIGNAL_SECONDS / 5)) ]; }

requeue() {
    end_driver
    ray_cluster_stop
    gather_metrics
    say "$1; re-queued"
    echo "re-queued: $1" >"$ATTEMPT/result.txt"
    scontrol requeue "$SLURM_JOB_ID" || fail "Slurm does not re-queue this job; repeat the same submission to resume $DIR" 75
    # Slurm ends this script now.
    trap - EXIT
    pause 60
    exit 0
}

end_driver() {
    if [ -n "$DRIVER_PID" ] && alive "$DRIVER_PID"; then
        kill -TERM "$DRIVER_PID" 2>/dev/null || true
        wait "$DRIVER_PID" 2>/dev/null || true
    fi
    DRIVER_PID=""
}

finish() {
    local code=$1
    trap - EXIT
    # A second signal must not interrupt the cleanup.
    trap : USR1 TERM INT
    set +e
    end_driver
    ray_cluster_stop
    if [ -n "$ATTEMPT" ]; then
        gather_metrics
        [ -f "$ATTEMPT/result.txt" ] || { [ "$code" -eq 0 ] && echo finished || printf 'failed (%s)\n%s\n' "$code" "$CAUSE"; } >"$ATTEMPT/result.txt"
    fi
    if [ "$code" -ne 0 ]; then
        [ -n "$CAUSE" ] || CAUSE="the launcher failed with exit code $code; see its message above"
        printf 'verl_aer: the job failed (exit code %s): %s\n' "$code" "$CAUSE" >&2
    fi
    exit "$code"
}
