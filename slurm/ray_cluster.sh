# shellcheck shell=bash
# Sourced after job.sh: one Ray cluster over the job's nodes, for the duration of the job.
#
#   ray_cluster_start    starts head and workers; returns when all have joined with their GPUs; sets RAY_HEAD, host:port
#   ray_cluster_watch    fails the job if Ray has ended on a node.
#   ray_cluster_stop     ends Ray on all nodes. Every end of a job calls it; calling it twice is harmless.

RAY_HEAD=""
RAY_PIDS=()   # pids of the srun of each node's Ray, in the order of NODE_NAMES

ray_cluster_start() {
    local address_file=$ATTEMPT/ray-address number
    start_ray_node 0 head --address-file "$address_file" --peer "${NODE_NAMES[1]:-}"
    await "the Ray head on ${NODE_NAMES[0]} has no address" test -s "$address_file"
    RAY_HEAD=$(cat "$address_file")
    say "Ray's head is on ${NODE_NAMES[0]}, $RAY_HEAD"
    for number in "${!NODE_NAMES[@]}"; do
        [ "$number" = 0 ] || start_ray_node "$number" worker --address "$RAY_HEAD"
    done
    await_all_nodes
}

# ray_node_command NUMBER ROLE ARGUMENTS...   sets LAUNCH
ray_node_command() {
    local node=${NODE_NAMES[$1]} role=$2
    shift 2
    # The folder has the same name on all nodes, because Ray's workers take the name from the head.
    local command=(
        "$PYTHON" -m verl_aer.launch.ray_node "$role" "$@" --interface "$INTERFACE"
        --temp-dir "$NODE_TMP/ray-${SLURM_JOB_ID:-JOB}" --logs "$ATTEMPT/ray-logs/$node"
    )
    # Without GPUs the number of slots is given; with GPUs Ray finds those of the job.
    [ "$HARDWARE" = gpu ] || command+=(--gpus "$GPUS_PER_NODE")
    [ "$RAY_DASHBOARD" = 0 ] || [ "$role" = worker ] || command+=(--dashboard)
    on_node "$node" "$ATTEMPT/ray-$node.log" "${command[@]}"
}

start_ray_node() {
    ray_node_command "$@"
    "${LAUNCH[@]}" </dev/null &
    RAY_PIDS[$1]=$!
}

# Sets LAUNCH to the command that waits for all nodes and checks each of them.
ray_wait_command() {
    local command=(
        "$PYTHON" -m verl_aer.cli cluster --address "$RAY_HEAD" --gpus-per-node "$GPUS_PER_NODE"
        --wait "$JOIN_SECONDS" --shared "$DIR" "${NODE_NAMES[@]}"
    )
    [ "$CLUSTER_CHECK" != 0 ] || command+=(--only-wait)
    on_node "${NODE_NAMES[0]}" "$ATTEMPT/cluster.log" "${command[@]}"
}

await_all_nodes() {
    local waiter code=0
    ray_wait_command
    "${LAUNCH[@]}" </dev/null &
    waiter=$!
    # The command has its own limit. This limit is for a step that Slurm never starts.
    await "no report of the nodes" is_over "$waiter"
    wait "$waiter" || code=$?
    cat "$ATTEMPT/cluster.log"
    [ "$code" -eq 0 ] || fail "$(silent_nodes)
$(tail -n 1 "$ATTEMPT/cluster.log")"
}

# Prints the nodes on which Ray has not started, with their last output; nothing if it has started on all nodes.
silent_nodes() {
    local node
    for node in "${NODE_NAMES[@]}"; do
        grep -qs 'Ray runtime started' "$ATTEMPT/ray-$node.log" || printf 'last output of %s:\n%s\n' "$node" "$(last_words "$node")"
    done
}

is_over() { ! alive "$1"; }

# await MESSAGE CONDITION...   waits for the condition; fails if Ray ends on a node, or with the message after the limit
await() {
    local otherwise=$1 deadline=$(($(date +%s) + JOIN_SECONDS + 300))
    shift
    until "$@"; do
        [ -z "$STOP_ASKED" ] || requeue "stopped before training began"
        ray_cluster_watch
        [ "$(date +%s)" -lt "$deadline" ] || fail "$otherwise after $((JOIN_SECONDS + 300)) s; see $ATTEMPT"
        pause 0.5
    done
}

ray_cluster_watch() {
    local number node code
    for number in "${!RAY_PIDS[@]}"; do
        alive "${RAY_PIDS[$number]}" && continue
        node=${NODE_NAMES[$number]} code=0
        wait "${RAY_PIDS[$number]}" || code=$?
        unset "RAY_PIDS[$number]"
        # If Slurm is ending the whole job, its signal arrives first or soon after.
        pause 1
        fail "Ray ended on $node (exit code $code), last output:
$(last_words "$node")
whole log: $ATTEMPT/ray-$node.log"
    done
}

# Prints the process that died, or else the last lines, of a node's Ray log, without colors.
last_words() {
    local text
    text=$(sed -e 's/\x1b\[[0-9;]*m//g' -e '/^[[:space:]]*$/d' "$ATTEMPT/ray-$1.log" 2>/dev/null || true)
    if grep -q 'subprocesses exited unexpectedly' <<<"$text"; then
        sed -n -e '/subprocesses exited unexpectedly/,/-----/{/-----/!p}' <<<"$text"
    else
        tail -n 3 <<<"$text"
    fi
}

ray_cluster_stop() {
    local number waited
    # srun passes SIGUSR2 on to its task. At SIGTERM it would kill the task at once.
    for number in "${!RAY_PIDS[@]}"; do kill -USR2 "${RAY_PIDS[$number]}" 2>/dev/null || true; done
    for waited in {1..30}; do
        for number in "${!RAY_PIDS[@]}"; do
            alive "${RAY_PIDS[$number]}" || unset "RAY_PIDS[$number]"
        done
        [ "${#RAY_PIDS[@]}" -gt 0 ] || return 0
        sleep 0.5
    done
    say "Ray did not end within $((waited / 2)) s on ${#RAY_PIDS[@]} node(s); killed"
    for number in "${!RAY_PIDS[@]}"; do kill -TERM "${RAY_PIDS[$number]}" 2>/dev/null || true; done
    RAY_PIDS=()
}
