# shellcheck shell=bash
# Sourced after job.sh: one Ray cluster over the job's nodes, for as long as the job lasts.
#
#   ray_cluster_start    head and workers; returns once all have joined with their GPUs. Sets RAY_HEAD, host:port.
#   ray_cluster_watch    fails the job if Ray has ended on a node.
#   ray_cluster_stop     ends Ray on all nodes; called on every way out of a job, and twice does no harm.

RAY_HEAD=""
RAY_PIDS=()   # srun of each node's Ray, in the order of NODE_NAMES

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

# ray_node_command NUMBER ROLE ARGUMENTS...   fills LAUNCH
ray_node_command() {
    local node=${NODE_NAMES[$1]} role=$2
    shift 2
    # The folder's name is the same on all nodes: Ray's workers take it from the head.
    local command=(
        "$PYTHON" -m verl_aer.launch.ray_node "$role" "$@" --interface "$INTERFACE"
        --temp-dir "$NODE_TMP/ray-${SLURM_JOB_ID:-JOB}" --logs "$ATTEMPT/ray-logs/$node"
    )
    # Without a GPU its slots are Ray's own count; with GPUs Ray finds those that the job has.
    [ "$HARDWARE" = gpu ] || command+=(--gpus "$GPUS_PER_NODE")
    [ "$RAY_DASHBOARD" = 0 ] || [ "$role" = worker ] || command+=(--dashboard)
    on_node "$node" "$ATTEMPT/ray-$node.log" "${command[@]}"
}

start_ray_node() {
    ray_node_command "$@"
    "${LAUNCH[@]}" </dev/null &
    RAY_PIDS[$1]=$!
}

# The command that waits until all nodes are there, and looks at each of them.
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
    # It has its own limit; this one is for a step that Slurm never starts.
    await "nothing was heard of the nodes" is_over "$waiter"
    wait "$waiter" || code=$?
    cat "$ATTEMPT/cluster.log"
    [ "$code" -eq 0 ] || fail "$(silent_nodes)
$(tail -n 1 "$ATTEMPT/cluster.log")"
}

# Nodes on which Ray has not come up, with what they say themselves; nothing if it has everywhere.
silent_nodes() {
    local node
    for node in "${NODE_NAMES[@]}"; do
        grep -qs 'Ray runtime started' "$ATTEMPT/ray-$node.log" || printf '%s said last:\n%s\n' "$node" "$(last_words "$node")"
    done
}

is_over() { ! alive "$1"; }

# await OTHERWISE CONDITION...   until the condition holds; fails if Ray ends on a node or the time is over before
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
        # Slurm may be ending the whole job, of which this is only a part: its signal comes first then, or soon.
        pause 1
        fail "Ray ended on $node (exit code $code), which said:
$(last_words "$node")
whole log: $ATTEMPT/ray-$node.log"
    done
}

# What matters of a node's Ray log: which of its processes died, or else its last lines; without colors.
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
    # srun hands SIGUSR2 on to its task; at SIGTERM it would kill it at once.
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
