"""Small faults put into the code one at a time; a test has to fail for each of them.

    make mutants                          all of them
    python -m tests.mutants controller    those whose file name contains a word

Each fault is a line of the code before and after. It is made in a copy of the tree, and the tests that are about
its file run there. Exit code 1 if a fault is found by none, or if its line is no longer in the code.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("verl_aer", "tests", "examples", "slurm", ".ci", "pyproject.toml", "README.md")

TESTS = {
    "allocation": [
        "tests/unit/test_allocation.py",
        "tests/property/test_allocation_properties.py",
        "tests/unit/test_questions.py",
    ],
    "correctness": [
        "tests/unit/test_correctness.py",
        "tests/property/test_allocation_properties.py",
        "tests/integration/test_batch_transferqueue.py",
    ],
    "target": ["tests/unit/test_control.py", "tests/unit/test_schema.py", "tests/unit/test_penalty.py"],
    "controller": ["tests/unit/test_controller.py", "tests/unit/test_control.py"],
    "control": ["tests/unit/test_control.py", "tests/property/test_control_properties.py"],
    "functional": ["tests/unit/test_functional.py"],
    "loss": [
        "tests/integration/test_loss_equals_verl.py",
        "tests/integration/test_loss_parts.py",
        "tests/integration/test_algorithms.py",
    ],
    "batch": ["tests/integration/test_batch_transferqueue.py", "tests/integration/test_batch_containers.py"],
    "trainer": ["tests/integration/test_trainer_mixin.py"],
    "functional_request": ["tests/integration/test_trainer_mixin.py"],
    "step_metrics": ["tests/integration/test_trainer_mixin.py"],
    "summary": ["tests/unit/test_summary.py"],
    "selection": ["tests/unit/test_selection.py"],
    "penalty": ["tests/unit/test_penalty.py"],
    "questions": ["tests/unit/test_questions.py"],
    "rollouts": ["tests/unit/test_shaping.py", "tests/integration/test_batch_transferqueue.py"],
    "reward_shaping": ["tests/unit/test_shaping.py"],
    "advantage_shaping": ["tests/unit/test_shaping.py"],
    "state": ["tests/unit/test_state.py"],
    "alerts": ["tests/unit/test_alerts.py"],
    "operation": ["tests/unit/test_kernels.py", "-m", "not slow"],
    "chunked": ["tests/unit/test_kernels.py", "-m", "not slow"],
    "triton_rows": ["tests/unit/test_triton.py"],
    "recomputed": ["tests/unit/test_kernels_recomputed.py"],
    "kept": ["tests/unit/test_kernels.py", "-m", "not slow"],
    "engine": ["tests/integration/test_engines.py", "tests/integration/test_own_functional.py"],
    "stop_request": ["tests/integration/test_stop_request.py"],
    "ray_node": ["tests/unit/test_ray_node.py"],
    "ray_cluster": ["tests/integration/test_ray_cluster.py"],
    "runtime_env": ["tests/unit/test_runtime_env.py"],
    "job": ["tests/slurm/test_scripts.py"],
    "train_run": ["tests/slurm/test_scripts.py"],
    "sweep": ["tests/slurm/test_scripts.py"],
}
"""By the name of the module or script that the fault is in."""


class Mutant(NamedTuple):
    """A fault: in ``file``, the only occurrence of ``line`` becomes ``fault``."""

    file: str
    line: str
    fault: str


MUTANTS = [
    # Allocation
    Mutant(
        "allocation.py", "np.maximum(0.0, self.rho - groups.accuracy)", "np.maximum(0.0, self.rho + groups.accuracy)"
    ),
    Mutant(
        "allocation.py", "np.maximum(0.0, self.rho - groups.accuracy)", "np.maximum(0.0, groups.accuracy - self.rho)"
    ),
    Mutant("allocation.py", "np.maximum(0.0, self.rho - groups.accuracy)", "self.rho - groups.accuracy"),
    Mutant("allocation.py", "weights = margin / self.rho\n", "weights = margin * self.rho\n"),
    Mutant("allocation.py", "            weights = margin\n", "            weights = margin / self.rho\n"),
    Mutant("allocation.py", "(margin > 0).astype", "(margin >= 0).astype"),
    Mutant("allocation.py", "(margin / self.rho) ** self.power\n        else", "margin**self.power\n        else"),
    Mutant("allocation.py", "explores &= groups.accuracy != 0", "explores &= groups.accuracy == 0"),
    Mutant("allocation.py", "explores &= ~(groups.entropy > ", "explores &= (groups.entropy <= "),
    Mutant("allocation.py", "np.where(explores, largest - weights, 0.0)", "largest - weights"),
    Mutant("allocation.py", "self.mean_floor * largest - weights.mean()", "self.mean_floor - weights.mean()"),
    Mutant("allocation.py", "min(1.0, missing / room.mean())", "missing"),
    Mutant("allocation.py", "if not self.include_all_wrong:", "if self.include_all_wrong:"),
    Mutant("allocation.py", "weights = weights / weights.mean()", "weights = weights / weights.sum()"),
    Mutant("allocation.py", "np.append(weights, 0.0)", "np.append(weights, 1.0)"),
    Mutant("allocation.py", "np.isfinite(weights) & (weights >= 0)", "np.isfinite(weights)"),
    # Group accuracy
    Mutant("correctness.py", "(reward > threshold)", "(reward >= threshold)"),
    Mutant("correctness.py", "(reward > threshold)", "(reward < threshold)"),
    Mutant("correctness.py", "solved / np.maximum(size, 1)", "solved / np.maximum(size, 2)"),
    Mutant(
        "correctness.py", "np.append(next_differs, True)[: len(rows)]", "np.insert(next_differs, 0, True)[: len(rows)]"
    ),
    Mutant("correctness.py", "prompt_of_row = np.full(len(real), -1,", "prompt_of_row = np.full(len(real), 0,"),
    Mutant("correctness.py", "    if threshold is not None:", "    if threshold is not None and unreported.all():"),
    Mutant("correctness.py", "acc_is_reward & (correct != 0) & (correct != 1)", "acc_is_reward & (correct < 0)"),
    Mutant("correctness.py", "    if so_far.problem:", "    if False:"),
    Mutant("correctness.py", "unreported.all() and not so_far.reported", "unreported.all()"),
    Mutant("correctness.py", "unreported.all() and not so_far.reported", "False"),
    Mutant("correctness.py", 'unreported.any() and on_missing == "error"', "unreported.any()"),
    Mutant("correctness.py", "self.reported or verdicts.correct is not None", "True"),
    Mutant("correctness.py", "if known else np.full(prompts, np.nan)", "if True else np.full(prompts, np.nan)"),
    # Target
    Mutant("target.py", "self.tau * initial_entropy", "self.tau"),
    Mutant("target.py", "self.tau * initial_entropy", "initial_entropy"),
    # Controller
    Mutant("controller.py", "error = target - entropy", "error = entropy - target"),
    Mutant("controller.py", "return self.eta * error", "return error"),
    Mutant("controller.py", "((error > 0) - (error < 0))", "(error > 0)"),
    Mutant("controller.py", "return self.damping * self._counted", "return -self.damping * self._counted"),
    Mutant("controller.py", "return self.damping * self._counted", "return self._counted"),
    Mutant("controller.py", "step <= self.warmup_steps", "step < self.warmup_steps"),
    Mutant("controller.py", "abs(error) <= self.dead_band", "abs(error) < self.dead_band"),
    Mutant("controller.py", "abs(error) <= self.dead_band", "error <= self.dead_band"),
    Mutant(
        "controller.py",
        "self.ema * previous + (1 - self.ema) * entropy",
        "(1 - self.ema) * previous + self.ema * entropy",
    ),
    Mutant("controller.py", "return min(max(alpha, minimum), maximum)", "return max(alpha, minimum)"),
    Mutant("controller.py", "return min(max(alpha, minimum), maximum)", "return min(alpha, maximum)"),
    Mutant("controller.py", "highest > maximum or", "highest >= maximum or"),
    Mutant("controller.py", "lowest < minimum and", "lowest <= minimum and"),
    Mutant("controller.py", "and minimum != 0)", "and minimum <= 0)"),
    # Control
    Mutant("control.py", "next_alpha(before.undamped_alpha, smoothed", "next_alpha(before.alpha, smoothed"),
    Mutant(
        "control.py",
        "undamped_alpha = self._controller.next_alpha(before.undamped_alpha, smoothed, target, step)",
        "undamped_alpha = self._controller.next_alpha(before.undamped_alpha, entropy, target, step)",
    ),
    Mutant("control.py", "updates=before.updates + 1,", "updates=before.updates,"),
    Mutant("control.py", "skipped_updates=before.skipped_updates + 1", "skipped_updates=before.skipped_updates"),
    Mutant("control.py", "count >= self._target.anchor_steps", "count > self._target.anchor_steps"),
    Mutant("control.py", "initial_entropy = total / count", "initial_entropy = total"),
    Mutant("control.py", "and initial_entropy is None and count", "and count"),
    Mutant("control.py", "if step <= self._state.step:", "if step < self._state.step:"),
    Mutant("control.py", "if not math.isfinite(entropy):", "if math.isnan(entropy):"),
    # Functional
    Mutant("functional.py", "others * _finite(y)", "others * y"),
    Mutant("kernels/chunked.py", "best.values.masked_fill(best.values.isinf(), torch.nan)", "best.values"),
    Mutant("functional.py", "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    # Loss
    Mutant(
        "integration/loss.py",
        "return policy_loss - alpha * term, metrics",
        "return policy_loss + alpha * term, metrics",
    ),
    Mutant("integration/loss.py", "return policy_loss - alpha * term, metrics", "return policy_loss - term, metrics"),
    Mutant("integration/loss.py", "return policy_loss - alpha * term, metrics", "return policy_loss, metrics"),
    Mutant(
        "integration/loss.py", "agg_loss(weight * token_weight * penalty.value", "agg_loss(token_weight * penalty.value"
    ),
    Mutant("integration/loss.py", "penalty.value(entropy, signal)", "penalty.value(entropy.detach(), signal)"),
    Mutant(
        "integration/loss.py",
        'config.loss_agg_mode if aggregation == "policy" else aggregation',
        "config.loss_agg_mode",
    ),
    Mutant(
        "integration/loss.py",
        "torch.where(mask, entropy, 0).double().sum() * dp_size",
        "torch.where(mask, entropy, 0).double().sum()",
    ),
    Mutant("integration/loss.py", "torch.where(mask, entropy, 0).double()", "entropy.double()"),
    Mutant("integration/loss.py", '"actor/aer/entropy_gradient": abs(alpha) *', '"actor/aer/entropy_gradient": 1.0 *'),
    Mutant("integration/loss.py", "mask & rows_with_a_term(data)[:, None]", "mask"),
    Mutant("integration/loss.py", "(_required_alpha(data) * _required_weight(data))", "_required_alpha(data)"),
    Mutant(
        "integration/loss.py",
        '"actor/aer/policy_loss": policy_loss.detach()',
        '"actor/aer/policy_loss": (policy_loss - alpha * term).detach()',
    ),
    # Batch
    Mutant("integration/batch.py", 'key.rsplit("_", 2)', 'key.split("_", 2)'),
    Mutant("integration/batch.py", "sums.append(values[row].sum().item())", "sums.append((values * row).sum().item())"),
    Mutant("integration/batch.py", "float(row.sum()) for row in mask", "float(len(row)) for row in mask"),
    Mutant(
        "integration/batch.py", "item.data if is_non_tensor(item) else item for item in list(column)", "*list(column)"
    ),
    Mutant("integration/batch.py", "SCORE_KEY] if reward_is_colocated else []", "SCORE_KEY]"),
    Mutant("integration/batch.py", "SCORE_KEY] if reward_is_colocated else []", "SCORE_KEY] if False else []"),
    Mutant("integration/batch.py", "np.isclose(numbers, reward, rtol=1e-6, atol=1e-6)", "np.isfinite(numbers)"),
    Mutant("integration/batch.py", "& ~own &", "&"),
    Mutant("integration/batch.py", "(key == FILLED_IN_KEY)", "True"),
    Mutant("integration/batch.py", "unreported[real] = verdicts.unreported", "pass"),
    Mutant(
        "integration/batch.py",
        "if name in data else [None] * data.batch_size[0]",
        "if False else [None] * data.batch_size[0]",
    ),
    Mutant(
        "integration/batch.py",
        "batch_size=len(batch.keys))\n    return tq.kv_batch_put(",
        "batch_size=len(batch.keys))\n    return batch if tq else tq.kv_batch_put(",
    ),
    # A step
    Mutant(
        "integration/trainer.py",
        "batch.extra_info[ALPHA_KEY] = self.entropy_control.alpha",
        "batch.extra_info[ALPHA_KEY] = 0.0",
    ),
    Mutant(
        "integration/trainer.py",
        "            return attach_weights(batch, weights)",
        "            attach_weights(batch, weights)\n            return batch",
    ),
    Mutant("integration/trainer.py", "counted = ~rows.is_padding & (rows.tokens > 0)", "counted = rows.tokens > 0"),
    Mutant("integration/trainer.py", "if measures_responses(aggregation):", "if False:"),
    Mutant(
        "integration/trainer.py",
        "        self.entropy_nats += nats\n        self.tokens += tokens",
        "        self.entropy_nats = nats\n        self.tokens = tokens",
    ),
    Mutant(
        "integration/trainer.py",
        "if not self._step_record.actor_updated:",
        "if self._step_record.actor_updated is None:",
    ),
    Mutant("integration/trainer.py", "config.trainer.v1.trainer_mode = TRAINER_MODES[mode]", "pass"),
    Mutant("integration/step_metrics.py", "real = ~rows.is_padding", "real = rows.is_padding | ~rows.is_padding"),
    Mutant(
        "integration/step_metrics.py",
        "(step.weight * step.rows).sum() / step.rows.sum()",
        "step.weight.sum() / step.rows.sum()",
    ),
    Mutant("integration/step_metrics.py", "if not np.isnan(step.accuracy).any():", "if True:"),
    Mutant("integration/step_metrics.py", "summed(unreported & groups.is_last)", "summed(unreported)"),
    Mutant(
        "integration/trainer.py", "if verdicts.problem and self.entropy_config.uses_accuracy:", "if verdicts.problem:"
    ),
    Mutant("integration/trainer.py", "if verdicts.problem and self.entropy_config.uses_accuracy:", "if False:"),
    Mutant(
        "integration/trainer.py", "reward_is_colocated=self.get_reward_handles() is None", "reward_is_colocated=False"
    ),
    Mutant("integration/trainer.py", "self._verdicts_so_far = before.after(verdicts)", "pass"),
    # Controllers of other methods, and what they steer to
    Mutant("controller.py", "alpha + self.delta if entropy < target", "alpha + self.delta if entropy <= target"),
    Mutant("controller.py", "else alpha - self.delta", "else alpha"),
    Mutant(
        "controller.py",
        "return alpha if entropy < target or not self.gate",
        "return alpha if entropy <= target or not self.gate",
    ),
    Mutant("controller.py", "or not self.gate else 0.0", "and not self.gate else 0.0"),
    Mutant("controller.py", "min(step / self.total_steps, 1.0)", "min((step + 1) / self.total_steps, 1.0)"),
    Mutant("controller.py", "min(step / self.total_steps, 1.0)", "step / self.total_steps"),
    Mutant("controller.py", "math.cos(math.pi * x / 2)", "math.cos(math.pi * x)"),
    Mutant("target.py", "min(max(entropy, bounds.low), bounds.high)", "min(max(entropy, bounds.high), bounds.low)"),
    Mutant("target.py", "min(max(entropy, bounds.low), bounds.high)", "(bounds.low + bounds.high) / 2"),
    # Functionals
    Mutant("functional.py", "equal.cumsum(dim=-1) <= wanted", "equal.cumsum(dim=-1) < wanted"),
    Mutant("functional.py", "below | (equal & (equal.cumsum(dim=-1) <= wanted))", "below | equal"),
    Mutant("functional.py", "z.shape[-1] - excluded).double()", "z.shape[-1]).double()"),
    Mutant("functional.py", "below, equal = z < threshold", "below, equal = z > threshold"),
    Mutant("functional.py", "mass_before >= p", "mass_before > p"),
    Mutant("functional.py", "pi.cumsum(dim=-1) - pi", "pi.cumsum(dim=-1)"),
    Mutant("functional.py", "* pi * (_finite(y) - mean_y)", "* pi * _finite(y)"),
    Mutant("functional.py", "log_sum = s.log1p()", "log_sum = s.log()"),
    # Selection
    Mutant("selection.py", "(self.quantile * (n - 1)", "(self.quantile * n"),
    Mutant("selection.py", ".ceil().long()", ".floor().long()"),
    Mutant("selection.py", "argsort(dim=-1, descending=True, stable=True)", "argsort(dim=-1, stable=True)"),
    Mutant("selection.py", "(rank < k) * (n / k.clamp(min=1))", "(rank < k) * (1 / k.clamp(min=1))"),
    Mutant("selection.py", "(1, 0))[:, :-1]", "(0, 1))[:, 1:]"),
    Mutant("selection.py", "turns.clamp(min=1) * own", "own"),
    Mutant("selection.py", "entropy.masked_fill(~mask, -math.inf)", "entropy"),
    # Penalty
    Mutant("penalty.py", "2.0 * (min(max(", "(min(max("),
    Mutant(
        "penalty.py", "entropy, bounds.low), bounds.high) - entropy)", "entropy, bounds.low), bounds.high) + entropy)"
    ),
    Mutant("penalty.py", "return entropy - signal", "return entropy + signal"),
    Mutant("penalty.py", '(signal["low"] - entropy).clamp(min=0) + ', ""),
    Mutant("penalty.py", ' + (entropy - signal["high"]).clamp(min=0)', ""),
    Mutant("penalty.py", "1.0 + math.exp", "math.exp"),
    Mutant("penalty.py", "(self.total_steps // 2)", "self.total_steps"),
    Mutant("control.py", "known = entropy if math.isfinite(entropy) else self._state.entropy_ema", "known = entropy"),
    Mutant("control.py", "total, count = state.entropy_sum + entropy", "total, count = entropy"),
    Mutant("target.py", "self.kappa_low * history, self.kappa_high * history", "self.kappa_low, self.kappa_high"),
    # Questions
    Mutant("questions.py", "config.rise if accuracy < observed else config.fall", "config.fall"),
    Mutant(
        "questions.py", "return (1 - eta) * accuracy + eta * observed", "return eta * accuracy + (1 - eta) * observed"
    ),
    Mutant("questions.py", "for observed in _merged(observations):", "for observed in observations:"),
    Mutant("questions.py", "solved = sum(group.accuracy * group.size", "solved = sum(group.accuracy"),
    Mutant("questions.py", "(-questions[name].step, name)", "(questions[name].step, name)"),
    Mutant("questions.py", "(-questions[name].step, name)", "-questions[name].step"),
    Mutant("questions.py", "min(lengths, default=None), step)", "max(lengths, default=None), step)"),
    Mutant("questions.py", "before is not None and before.shortest is not None", "False"),
    Mutant("questions.py", "sort_keys=True, default=_content", "default=_content"),
    Mutant("questions.py", "value.getpalette(), pixels]", "value.getpalette()]"),
    Mutant("questions.py", "if own is not None:", "if own:"),
    Mutant("allocation.py", "groups.history < groups.history_mean", "groups.history <= groups.history_mean"),
    Mutant("rollouts.py", "self.is_last & (self.correct > 0.5)", "self.correct > 0.5"),
    Mutant("rollouts.py", "self.is_last & (self.correct > 0.5)", "self.is_last"),
    # Shaping
    Mutant(
        "reward_shaping.py", "np.clip((rollouts.tokens - shortest) / shortest, -0.9, 1.0)", "rollouts.tokens / shortest"
    ),
    Mutant("reward_shaping.py", "groups.accuracy > groups.history", "groups.accuracy < groups.history"),
    Mutant("reward_shaping.py", "-self.beta * rollouts.correct * excess", "-self.beta * excess"),
    Mutant("reward_shaping.py", 'if bucket == "hard" else count - target', 'if bucket == "easy" else count - target'),
    Mutant("reward_shaping.py", "entropy[1:].unfold", "entropy.unfold"),
    Mutant("reward_shaping.py", "accuracy >= 2 / 3", "accuracy > 2 / 3"),
    Mutant("reward_shaping.py", "x**2 / (2 * kappa)", "x**2 / kappa"),
    Mutant("reward_shaping.py", "share * cap * _huber", "cap * _huber"),
    Mutant("reward_shaping.py", "margin = max(1.0, ", "margin = max(0.0, "),
    Mutant("reward_shaping.py", "self.threshold_ema * before", "before"),
    Mutant("advantage_shaping.py", "tokens.advantages + _column(weight, tokens) * bonus", "tokens.advantages + bonus"),
    Mutant("advantage_shaping.py", "torch.minimum(self.a * tokens.entropy", "torch.maximum(self.a * tokens.entropy"),
    Mutant("advantage_shaping.py", "tokens.advantages.abs() / self.kappa", "tokens.advantages / self.kappa"),
    Mutant("advantage_shaping.py", "(1 - pi) * (tokens.log_probs", "pi * (tokens.log_probs"),
    Mutant("advantage_shaping.py", "omega[tokens.mask])", "omega)"),
    Mutant("advantage_shaping.py", "self.highest - (omega - lowest)", "self.lowest + (omega - lowest)"),
    Mutant("advantage_shaping.py", "highest.clamp(min=0.02)", "highest.clamp(min=20.0)"),
    Mutant("advantage_shaping.py", "[prompt] - confidence)", "[prompt] + confidence)"),
    Mutant("advantage_shaping.py", "(np.append(rollouts.groups.accuracy, 0.0)[prompt] > 0)", "(prompt >= 0)"),
    Mutant("advantage_shaping.py", "masked_fill(~tokens.mask, 0.0)", "masked_fill(~tokens.mask, -99.0)"),
    Mutant("advantage_shaping.py", "tokens.advantages - alpha * sure", "tokens.advantages + alpha * sure"),
    Mutant("advantage_shaping.py", "> self.probability", "< self.probability"),
    Mutant("integration/loss.py", "agg_loss(weight * token_weight * penalty.value", "agg_loss(weight * penalty.value"),
    Mutant("integration/loss.py", "measured = token_weight * entropy.detach()", "measured = entropy.detach()"),
    Mutant(
        "integration/loss.py", "measured = selection.weights(other, mask) * other", "measured = token_weight * other"
    ),
    Mutant(
        "integration/functional_request.py", "if pushed.of_sample else pushed", "if not pushed.of_sample else pushed"
    ),
    Mutant("integration/functional_request.py", "entropy.functional if bypass else", "entropy.functional if True else"),
    Mutant("integration/trainer.py", "batch.extra_info.pop(FUNCTIONAL_KEY, None)", "pass"),
    Mutant("integration/loss.py", "agg_loss(weight * token_weight * slope", "agg_loss(weight * slope"),
    Mutant("integration/trainer.py", "self.entropy_memory = replace(self.entropy_memory, questions=questions)", "pass"),
    Mutant("advantage_shaping.py", "torch.where(tokens.mask, shaped.to", "torch.where(tokens.mask | True, shaped.to"),
    Mutant("reward_shaping.py", "np.where(rollouts.is_last, change, 0.0)", "np.asarray(change)"),
    Mutant("integration/batch.py", "row[-1] += added", "row[0] += added"),
    Mutant("integration/batch.py", "values = values * selection.weights", "values = values + 0 * selection.weights"),
    Mutant("correctness.py", "is_last[last] = True", "is_last[rows] = True"),
    Mutant("state.py", '("config", "state", "memory", "conditions")', '("config", "state", "conditions")'),
    Mutant("state.py", "alpha = controller.nearest(state.alpha)", "alpha = state.alpha"),
    Mutant("state.py", "controller.nearest(state.undamped_alpha)", "state.undamped_alpha"),
    Mutant("state.py", "or target.needs_anchor != config.target.needs_anchor", ""),
    Mutant("alerts.py", "hard < 0.9 * initial", "hard < initial"),
    # One pass over the logits
    Mutant("kernels/operation.py", "row_weight != 0", "row_weight == 0"),
    Mutant("kernels/operation.py", "grad_entropy = torch.where(wanted, grad_entropy, 0.0)", "pass"),
    Mutant("kernels/operation.py", "grad = logits.detach() if ctx.inplace", "grad = logits.detach() if True"),
    Mutant(
        "kernels/operation.py", "if type(functional) not in FUNCTIONALS", "if not isinstance(functional, FUNCTIONALS)"
    ),
    Mutant("kernels/recomputed.py", "if not len(rows):", "if False:"),
    Mutant("kernels/recomputed.py", "rows[grad_entropy[rows] != 0]", "rows"),
    Mutant("kernels/recomputed.py", "of_z.div_(temperature[some, None])", "of_z"),
    Mutant("kernels/recomputed.py", "value.masked_fill(~z.amax(dim=-1).isfinite(), torch.nan)", "value"),
    Mutant("kernels/recomputed.py", "with torch.autocast(z.device.type, enabled=False):", "if True:"),
    Mutant("kernels/recomputed.py", "in read.split(chunk_rows(logits))", "in read.split(len(logits))"),
    Mutant("kernels/chunked.py", "log_pi.sub_(state.log_z), state", "log_pi, state"),
    Mutant("kernels/chunked.py", "* (state.log_z[here] - state.log_zk[here]).exp()", ""),
    Mutant("kernels/chunked.py", "sub_(state.mean_y[here, None])", "sub_(0.0)"),
    Mutant(
        "kernels/chunked.py",
        "scale = -1.0 / temperature[rows, None]",
        "scale = -torch.ones_like(temperature[rows, None])",
    ),
    Mutant("kernels/chunked.py", "grad_log_pi[rows].any() or grad_entropy[rows].any()", "grad_log_pi[rows].any()"),
    Mutant("kernels/chunked.py", "log_z + shift, mean_y + shift", "log_z + shift, mean_y"),
    Mutant("kernels/chunked.py", "log_z + shift, mean_y + shift", "log_z, mean_y + shift"),
    Mutant("kernels/chunked.py", "others.mul_(mask)", "pass"),
    Mutant("kernels/chunked.py", "if len(lost):", "if False:"),
    Mutant("kernels/chunked.py", "return y.clamp_(min=-1e4)", "return y"),
    Mutant("kernels/kept.py", "begin = int(kept.cut[row]) + 1", "begin = int(kept.cut[row])"),
    Mutant("kernels/kept.py", "else (torch.ge, torch.gt)", "else (torch.gt, torch.ge)"),
    Mutant("kernels/kept.py", ".nonzero()[count[row] - 1, 0]", ".nonzero()[count[row], 0]"),
    Mutant("kernels/chunked.py", "& (grad_log_pi == 0) & (grad_entropy == 0)] = 0.0", "& (grad_log_pi != 0)] = 0.0"),
    Mutant("kernels/kept.py", "logits.index_fill(0, no_distribution, 0.0)", "logits"),
    Mutant("kernels/kept.py", "_lowest(size, logits if", "_lowest(size + 1, logits if"),
    Mutant("kernels/kept.py", ".floor().long() + excluded", ".floor().long()"),
    Mutant("kernels/kept.py", ".div_(temperature[:, None]).exp_()\n    total", ".exp_()\n    total"),
    Mutant("kernels/kept.py", "(1 - p) / logits.shape[-1]", "1 / logits.shape[-1]"),
    Mutant("kernels/kept.py", ".sum(dim=-1, keepdim=True) - 1", ".sum(dim=-1, keepdim=True) - 2"),
    Mutant("kernels/kept.py", "last.squeeze(-1) + 1 - above", "last.squeeze(-1) - above"),
    Mutant("kernels/kept.py", "out[:, settings.columns :] = 0.0", "pass"),
    Mutant("kernels/triton_rows.py", "t = a * t + d * tl.where(higher, s, e)", "t = a * t + d * e"),
    Mutant("kernels/triton_rows.py", "s = a * s + e", "s = a * s + tl.where(higher, 0.0, e)"),
    Mutant("kernels/triton_rows.py", "tl.where(itself, s, e * (s + 1))", "e * (s + 1)"),
    Mutant("kernels/triton_rows.py", "tl.where(itself, t, e * (t + d * (s + 1)))", "e * (t + d * s)"),
    Mutant("kernels/triton_rows.py", "* (state.log_z - state.log_zk).exp()", ""),
    Mutant(
        "kernels/triton_rows.py",
        "torch.where(wanted, (kept_top - top) / temperature, 0.0)",
        "(kept_top - top) / temperature",
    ),
    Mutant("kernels/triton_rows.py", "(index > cut) if KEEP", "(index >= cut) if KEEP"),
    Mutant("kernels/triton_rows.py", "else (index <= cut)", "else (index < cut)"),
    Mutant("kernels/triton_rows.py", "to(tl.int32) + excluded", "to(tl.int32)"),
    Mutant("kernels/triton_rows.py", "(place - 1) * heavy < amount", "place * heavy < amount"),
    Mutant(
        "kernels/triton_rows.py",
        "below += tl.sum(tl.where(classes < chosen",
        "below += tl.sum(tl.where(classes <= chosen",
    ),
    Mutant("kernels/triton_rows.py", "+ 0.0  # no -0.0", ""),
    Mutant("kernels/triton_rows.py", "value = tl.maximum(value, FLOOR, propagate_nan=tl.PropagateNan.ALL)", "pass"),
    Mutant("kernels/triton_rows.py", "top.isfinite() & ~s.isnan()", "top.isfinite()"),
    Mutant("kernels/triton_rows.py", "(top > FLOOR.value) & ", ""),
    Mutant("kernels/triton_rows.py", "torch.where(read, state.mean_y, 0.0)", "state.mean_y"),
    Mutant("kernels/triton_rows.py", "index.to(tl.int64) * column_stride", "index * column_stride"),
    Mutant("kernels/triton_rows.py", "torch.bfloat16: 16", "torch.bfloat16: 12"),
    Mutant("kernels/triton_rows.py", "torch.float16: 20", "torch.float16: 16"),
    Mutant("kernels/triton_rows.py", "(of_log_pi == 0) & (of_entropy == 0)", "of_log_pi == 0"),
    Mutant("kernels/triton_rows.py", "LOWEST, propagate_nan", "float('-inf'), propagate_nan"),
    Mutant(
        "integration/engine.py",
        "first, end = prompts - 1, prompts + responses - 1",
        "first, end = prompts, prompts + responses",
    ),
    Mutant("integration/engine.py", "counted &= rows_with_a_term(micro_batch).repeat_interleave(lengths)", "pass"),
    Mutant(
        "integration/engine.py", "return None if isinstance(functional, Full) else self._real_vocabulary", "return None"
    ),
    Mutant("integration/engine.py", "requested_functional(micro_batch) or Full()", "Full()"),
    Mutant("integration/engine.py", "inplace=not entropy.requires_grad", "inplace=True"),
    # Summary
    Mutant("summary.py", "if entropy[0] > target else mean >= target", "if True else mean >= target"),
    Mutant("summary.py", "running_mean(entropy)[WINDOW - 1 :]", "entropy[WINDOW - 1 :]"),
    Mutant("summary.py", "int(steps[WINDOW - 1 + first])", "WINDOW + first"),
    Mutant("summary.py", "mean[first:] / target - 1.0", "mean / target - 1.0"),
    Mutant("summary.py", "is_finite(error) and error > 0", "is_finite(error) and error < 0"),
    Mutant("summary.py", "first_accuracy=_mean(accuracy[:WINDOW])", "first_accuracy=_mean(accuracy[:1])"),
    # A run that is asked to stop
    Mutant("integration/stop_request.py", "if self._saved_step != self.global_steps:", "if True:"),
    Mutant("integration/stop_request.py", "                self._save_checkpoint()", "                pass"),
    Mutant("integration/stop_request.py", " and self.global_steps < self.total_training_steps", ""),
    Mutant("integration/stop_request.py", "            request.unlink()", "            pass"),
    Mutant(
        "integration/stop_request.py", "            self.total_training_steps = self.global_steps", "            pass"
    ),
    Mutant("integration/stop_request.py", "        super().on_step_end()", "        pass"),
    # A Ray cluster
    Mutant(
        "ray_node.py", "_FAMILIES = (socket.AF_INET, socket.AF_INET6)", "_FAMILIES = (socket.AF_INET6, socket.AF_INET)"
    ),
    Mutant("ray_node.py", "usable = [name for name, found in addresses.items() if found]", "usable = list(addresses)"),
    Mutant("ray_node.py", "        return address_towards(peer)", '        return "127.0.0.2"'),
    Mutant("ray_node.py", 'return f"[{address}]:{port}" if ":" in address else', "return"),
    Mutant("ray_node.py", "or os.cpu_count() or 1), LEAST_CPUS)", "or os.cpu_count() or 1), 0)"),
    Mutant("ray_node.py", '        "--min-worker-port=0",', '        "--min-worker-port=10002",'),
    Mutant("ray_node.py", 'f"--dashboard-port={dashboard}",', '"--dashboard-port=8265",'),
    Mutant("ray_node.py", "log.stat().st_size - LOG_TAIL_BYTES", "LOG_TAIL_BYTES"),
    Mutant("integration/ray_cluster.py", "if n.gpus < gpus_per_node]", "if n.gpus <= gpus_per_node]"),
    Mutant("integration/ray_cluster.py", 'return name.partition(".")[0].lower()', "return name"),
    Mutant("integration/ray_cluster.py", "if end - start < least:", "if True:"),
    Mutant("integration/ray_cluster.py", "return 0.0 if abs(best) <= least / 2 else best", "return best"),
    Mutant("integration/ray_cluster.py", "if len(by_version) > 1:", "if len(by_version) > 2:"),
    Mutant(
        "integration/ray_cluster.py",
        'if found["gpus"] and found["gpus"] < node.gpus:',
        'if found["gpus"] != node.gpus:',
    ),
    Mutant("integration/ray_cluster.py", 'FAIL if found["shm"] < SHM_FAIL else WARN', "WARN"),
    Mutant(
        "integration/ray_cluster.py",
        'if abs(found["clock"]) > CLOCK_WARN_SECONDS:',
        'if found["clock"] > CLOCK_WARN_SECONDS:',
    ),
    Mutant("runtime_env.py", '[*loaded, *filter(None, own.split(","))]', "loaded"),
    Mutant("runtime_env.py", "    if name in SET_BY_VERL:", "    if False:"),
    Mutant("runtime_env.py", '    if not (folder / "__init__.py").is_file():', "    if False:"),
    # Jobs
    Mutant("../slurm/job.sh", "tr -d '\\r' <<<\"$listed\" | awk 'NF { print $1 }'", 'echo "$listed"'),
    Mutant("../slurm/job.sh", '    [ "${#NODE_NAMES[@]}" -eq "$NODES" ] ||', "    true ||"),
    Mutant("../slurm/job.sh", '    if ! cmp -s "$settings" "$DIR/settings.txt"; then', "    if false; then"),
    Mutant("../slurm/job.sh", '[ "$holder" != "$SLURM_JOB_ID" ] && ', ""),
    Mutant("../slurm/job.sh", "grep -h '}}$'", "cat"),
    Mutant("../slurm/job.sh", '    mv -T "$DIR/.latest.$SLURM_JOB_ID" "$DIR/latest"', "    true"),
    Mutant("../slurm/job.sh", '        LAUNCH+=(apptainer exec --pwd "$PWD")', "        LAUNCH+=()"),
    Mutant(
        "../slurm/train_run.sh",
        '        [ -z "$STOP_ASKED" ] || requeue "stopped with a checkpoint"',
        '        requeue "stopped with a checkpoint"',
    ),
    Mutant(
        "../slurm/train_run.sh",
        '    if [ -e "$DIR/checkpoints/stopped_on_request" ]; then',
        '    if [ -n "$STOP_ASKED" ]; then',
    ),
    Mutant("../slurm/train_run.sh", "        case ${key#+} in", "        case ${override#+} in"),
    Mutant("../slurm/train_run.sh", "grep -vE '^trainer", "grep -vE '^nothing"),
    Mutant(
        "../slurm/sweep.sbatch", "number / ${#SEED_NUMBERS[@]} % ${#SETTING_TEXTS[@]}", "number % ${#SETTING_TEXTS[@]}"
    ),
    Mutant("../slurm/sweep.sbatch", '    [ "$number" -lt "$CELLS" ] ||', "    true ||"),
    Mutant("../slurm/sweep.sbatch", '[ -f "$OUT/$NAME/finished.txt" ] || left+=("$number")', 'left+=("$number")'),
]


def is_caught(mutant: Mutant, tree: Path) -> bool:
    """Whether a test fails with the fault; the tree is as before afterwards."""
    path = tree / "verl_aer" / mutant.file
    code = path.read_text()
    if code.count(mutant.line) != 1:
        raise SystemExit(f"{mutant.file} holds {mutant.line!r} {code.count(mutant.line)} times, not once")
    path.write_text(code.replace(mutant.line, mutant.fault))
    tests = TESTS[path.stem]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        capture_output=True,
        check=False,
    )
    path.write_text(code)
    # 1 is a failed test; anything else but 0 is an error of the run itself.
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.file}: pytest ended with {done.returncode}\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 1


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.file for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)
        for number, mutant in enumerate(chosen, start=1):
            caught = is_caught(mutant, tree)
            survivors += [] if caught else [mutant]
            print(
                f"{number}/{len(chosen)} {'caught  ' if caught else 'SURVIVED'} {mutant.file}: {mutant.fault.strip()}",
                flush=True,
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults were caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
