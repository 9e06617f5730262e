# shellcheck shell=bash
# Sourced after job.sh and ray_cluster.sh: one training run, from the check of its config to its result.

# verl_command OVERRIDES...   sets VERL to the arguments of veRL's command; the user's overrides come last
verl_command() {
    VERL=()
    [ "$HARDWARE" = gpu ] || VERL+=(+hardware=cpu)
    VERL+=(
        "trainer.nnodes=$NODES"
        "trainer.n_gpus_per_node=$GPUS_PER_NODE"
        "trainer.experiment_name=${DIR#"$OUT"/}"
        "trainer.default_local_dir=$DIR/checkpoints"
        "trainer.validation_data_dir=$DIR/validation"
        "trainer.logger=[console,file]"
        "trainer.resume_mode=auto"
        "hydra.run.dir=$ATTEMPT/hydra"
        # veRL joins a running Ray, and must not pass its resources.
        "++ray_kwargs.ray_init.address=${RAY_HEAD:-HOST:PORT}"
        "++ray_kwargs.ray_init.num_cpus=null"
        "++ray_kwargs.ray_init.num_gpus=null"
        "$@"
    )
}

# The launcher decides folders and the number of nodes, because it tells runs apart by them.
check_overrides() {
    local override key
    for override in "$@"; do
        key=${override%%=*}
        key=${key#+}
        case ${key#+} in
        trainer.nnodes) fail "$override: the number of nodes is NODES=${override#*=}, or sbatch --nodes" 2 ;;
        trainer.default_local_dir) fail "$override: name the run's folder with OUT=... and RUN=..." 2 ;;
        trainer.resume_mode | trainer.resume_from_path) fail "$override: a run resumes by itself; submit with its RUN=..." 2 ;;
        ray_kwargs.ray_init.*) fail "$override: the launcher starts Ray; see INTERFACE and NODE_TMP in env.sh.example" 2 ;;
        esac
    done
}

# expand ARGUMENTS...   sets OVERRIDES to the arguments, or with RECIPE=... to those of the recipe METHOD OVERRIDES...
expand() {
    if [ -z "${RECIPE:-}" ]; then
        OVERRIDES=("$@")
    else
        local method=${1:-aer} text
        text=$(OVERRIDES_ONLY=1 bash "$RECIPE" "${method#+entropy=}" "${@:2}") || fail "RECIPE=$RECIPE failed, see above" 2
        # The job decides the number of machines.
        mapfile -t OVERRIDES < <(grep -vE '^trainer\.(nnodes|n_gpus_per_node)=' <<<"$text")
    fi
    check_overrides "${OVERRIDES[@]}"
}

# train_run NAME ARGUMENTS...
train_run() {
    local name=$1
    expand "${@:2}"
    set -- "${OVERRIDES[@]}"
    read_nodes
    check_time_limit
    prepare_environment
    # FSDP's checkpoints depend on the number of ranks, so it is one of the settings of a run.
    open_run "$name" "ranks=$((NODES * GPUS_PER_NODE))" "$@"
    STOP_REQUEST=$DIR/checkpoints/stop_requested
    mkdir -p "$DIR/checkpoints"
    # Files of an earlier attempt.
    rm -f "$STOP_REQUEST" "$DIR/checkpoints/stopped_on_request"
    SAVED_BEFORE=$(saved_step)
    export VERL_FILE_LOGGER_PATH=$ATTEMPT/metrics.jsonl
    [ "$HARDWARE" = gpu ] || export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
    check_config "$@"
    ray_cluster_start
    verl_command "$@"
    on_node "${NODE_NAMES[0]}" "$ATTEMPT/train.log" "$PYTHON" -m verl.trainer.main_ppo "${VERL[@]}"
    show "${LAUNCH[@]}" >"$ATTEMPT/command.txt"
    say "training; whole output in $ATTEMPT/train.log"
    "${LAUNCH[@]}" </dev/null &
    DRIVER_PID=$!
    await_driver
    end_of_training
}

# Checks config, data and reward within seconds, before Ray starts.
check_config() {
    verl_command "$@"
    on_node "${NODE_NAMES[0]}" "$ATTEMPT/config.log" "$PYTHON" -m verl_aer.cli doctor --config-only "${VERL[@]}"
    "${LAUNCH[@]}" </dev/null || {
        fail "the config has problems:
$(cat "$ATTEMPT/config.log")" 2
    }
}

await_driver() {
    while alive "$DRIVER_PID"; do
        ray_cluster_watch
        if is_overdue; then
            requeue_without_checkpoint
        fi
        pause 1
    done
}

# Prints the step of veRL's last complete checkpoint; nothing if there is none.
saved_step() { cat "$DIR/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || true; }

requeue_without_checkpoint() {
    # An attempt that has saved nothing would repeat the same steps again and again.
    [ "$(saved_step)" != "$SAVED_BEFORE" ] ||
        fail "the current step did not end within four fifths of SIGNAL_SECONDS=$SIGNAL_SECONDS, and this attempt has saved nothing: set SIGNAL_SECONDS to more than the duration of a step, or trainer.save_freq to less"
    requeue "the current step did not end in time; the last checkpoint will be used"
}

end_of_training() {
    local code=0
    wait "$DRIVER_PID" || code=$?
    DRIVER_PID=""
    if [ "$code" -ne 0 ]; then
        # A dead node also ends the driver. Report the node as the cause.
        pause 3
        ray_cluster_watch
        on_node "${NODE_NAMES[0]}" "$ATTEMPT/diagnosis.log" "$PYTHON" -m verl_aer.cli diagnose "$ATTEMPT/train.log" --exit-code "$code"
        "${LAUNCH[@]}" </dev/null || true
        fail "$(cat "$ATTEMPT/diagnosis.log" 2>/dev/null || echo "see $ATTEMPT/train.log")" "$code"
    fi
    # A request after the last step leaves its file behind, and the run is finished.
    if [ -e "$DIR/checkpoints/stopped_on_request" ]; then
        [ -z "$STOP_ASKED" ] || requeue "stopped with a checkpoint"
        # The request came from a user, not from Slurm.
        echo "stopped on request after step $(cat "$DIR/checkpoints/stopped_on_request")" >"$ATTEMPT/result.txt"
        say "stopped on request; repeat the same submission to resume $DIR"
        return
    fi
    rm -f "$STOP_REQUEST"
    gather_metrics
    printf 'job %s, %s\n' "$SLURM_JOB_ID" "$(date +%FT%T)" >"$DIR/.finished.txt"
    mv "$DIR/.finished.txt" "$DIR/finished.txt"
    say "finished; metrics in $DIR/metrics.jsonl"
}

# dry_run NAME ARGUMENTS...   prints each node's commands and the composed config with its problems; needs no Slurm
dry_run() {
    local name=$1 number
    expand "${@:2}"
    set -- "${OVERRIDES[@]}"
    read_nodes
    DIR=$OUT/$name
    ATTEMPT=$DIR/attempts/001-jobJOB-restart0
    RAY_HEAD=HOST:PORT
    echo "# settings"
    RUN=$name print_settings
    echo "# Ray"
    for number in "${!NODE_NAMES[@]}"; do
        if [ "$number" = 0 ]; then
            ray_node_command 0 head --address-file "$ATTEMPT/ray-address" --peer "${NODE_NAMES[1]:-}"
        else
            ray_node_command "$number" worker --address "$RAY_HEAD"
        fi
        show "${LAUNCH[@]}"
    done
    ray_wait_command
    show "${LAUNCH[@]}"
    verl_command "$@"
    echo "# training"
    on_node "${NODE_NAMES[0]}" "$ATTEMPT/train.log" "$PYTHON" -m verl.trainer.main_ppo "${VERL[@]}"
    show "${LAUNCH[@]}"
    ATTEMPT=""
    echo "# config"
    "$PYTHON" -m verl_aer.cli doctor --no-local-checks --show-config "${VERL[@]}" || fail "the config has problems, see above" 2
}
