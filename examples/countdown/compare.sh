#!/usr/bin/env bash
# The comparison at the top of the README: no entropy term, a fixed coefficient at three strengths, and AER, from the
# same warm start, with the same seeds and budget, one run at a time. Finished runs are not repeated, so this script
# can be stopped and restarted at any time.
#
#   examples/countdown/compare.sh
#   SEEDS="0" STEPS=100 FIXED="0.02" examples/countdown/compare.sh
#   DRY_RUN=1 examples/countdown/compare.sh        only prints veRL's commands
#
# SEEDS  training seeds            STEPS  training steps of each run       RUNS  folder for everything
# FIXED  coefficients of `fixed` (empty: none)   FIXED_SEEDS  seeds of the `fixed` arms (default: SEEDS)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

SEEDS=${SEEDS:-0 1 2}
STEPS=${STEPS:-220}
RUNS=${RUNS:-runs/compare}
FIXED=${FIXED-0.01 0.03 0.1}
FIXED_SEEDS=${FIXED_SEEDS:-$SEEDS}
BIN=${BIN:-.venv/bin}
DRY_RUN=${DRY_RUN:-}

logs=()
dumps=()
before=

# arm LABEL SEED METHOD [OVERRIDE...]
arm() {
  local label=$1 seed=$2 method=$3
  shift 3
  local name=$label-seed$seed
  # All arms start from the same policy: its answers to the held-out prompts are sampled in the first run only.
  "$BIN/python" -m examples.countdown.train --entropy "$method" --seed "$seed" --steps "$STEPS" \
    --runs "$RUNS" --name "$name" ${DRY_RUN:+--print-command} -- ${before:+trainer.val_before_train=false} "$@"
  before=${before:-$RUNS/$name/validation/0.jsonl}
  logs+=("$label=$RUNS/$name/metrics.jsonl")
  dumps+=("$label=$RUNS/$name/validation/$STEPS.jsonl")
}

for seed in $SEEDS; do
  arm none "$seed" none
  arm aer "$seed" aer
done
for coefficient in $FIXED; do
  for seed in $FIXED_SEEDS; do
    arm "fixed-$coefficient" "$seed" fixed "entropy.controller.coefficient=$coefficient"
  done
done

[[ -n $DRY_RUN ]] && exit 0
"$BIN/verl-aer" summary "${logs[@]}"
"$BIN/verl-aer" compare "before=$before" "${dumps[@]}" --k 1 --k 8
"$BIN/verl-aer" plot "${logs[@]}" --title "Countdown, $STEPS steps, seeds $SEEDS" --log-entropy --out "$RUNS/compare.png"
