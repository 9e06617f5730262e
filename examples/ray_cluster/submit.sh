#!/usr/bin/env bash
# One training run as a job of a running Ray cluster. All arguments go to veRL.
#
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 OUT=/shared/runs NODES=2 examples/ray_cluster/submit.sh +entropy=aer ...
#   DRY_RUN=1 ... examples/ray_cluster/submit.sh ...     prints the command, the runtime environment and the config
#
# RUN names the folder of the run below OUT, which all nodes share. The nodes need veRL and its dependencies. This package
# is shipped to them. Repeat the same submission to resume a stopped run.
set -euo pipefail

PYTHON=${PYTHON:-python}
NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
[ -n "${OUT:-}" ] || { echo "set OUT to a folder that all nodes share" >&2; exit 2; }
RUN=${RUN:-run-$(date +%Y%m%d-%H%M%S)}
folder=$OUT/$RUN

config=(
    "trainer.nnodes=$NODES"
    "trainer.n_gpus_per_node=$GPUS_PER_NODE"
    "trainer.experiment_name=$RUN"
    "trainer.default_local_dir=$folder/checkpoints"
    "trainer.validation_data_dir=$folder/validation"
    "trainer.logger=[console,file]"
    "hydra.run.dir=$folder/hydra"
    # veRL joins a running Ray, and must not pass its resources.
    "++ray_kwargs.ray_init.address=auto"
    "++ray_kwargs.ray_init.num_cpus=null"
    "++ray_kwargs.ray_init.num_gpus=null"
    "$@"
)
# veRL overwrites its metrics log at every start, so each attempt has a separate file.
attempt=$(date +%Y%m%d-%H%M%S)
runtime_env=$(mktemp --suffix=.yaml)
trap 'rm -f "$runtime_env"' EXIT
# Unquoted on purpose: options of `verl-aer runtime-env`, such as --env HF_HOME=/shared/huggingface --module my_methods.
# shellcheck disable=SC2086
"$PYTHON" -m verl_aer.cli runtime-env --out "$runtime_env" \
    --env "VERL_FILE_LOGGER_PATH=$folder/metrics-$attempt.jsonl" ${RUNTIME_ENV:-}
submit=(
    "$PYTHON" -m ray.scripts.scripts job submit --runtime-env "$runtime_env" --
    # The cluster's Python, not the local one.
    "${CLUSTER_PYTHON:-python}" -m verl.trainer.main_ppo "${config[@]}"
)
if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${submit[@]}"
    printf '\n\n'
    cat "$runtime_env"
    "$PYTHON" -m verl_aer.cli doctor --no-local-checks "${config[@]}"
    exit
fi
"${submit[@]}"
