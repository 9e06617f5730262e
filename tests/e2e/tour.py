"""Train many configurations on one cluster: a trainer that changes method and reward every few steps.

veRL loads this module by its switch for modules of users. Each leg of the tour has three steps. The trainer saves
veRL's checkpoint after the second step and resumes from it before the third, on the running cluster. After the last
leg it trains on, so that a test can kill one of its processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

from verl_aer import get_method, method_names
from verl_aer._import_hooks import after_import
from verl_aer.control.step import StepControl
from verl_aer.integration.availability import TRAINER_MODES

STEPS = 3
"""Steps of each leg. The trainer saves before the last of them."""

TOTAL_STEPS = 1000
"""More than the tour has: the run is still training when its last leg is over."""

REWARD = """
from pathlib import Path

KIND = Path(__file__).with_name("reward_kind.txt")

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    '''Right or wrong by the answer's length: an untrained policy has groups of every accuracy.'''
    right = float(len(solution_str) % 2)
    match KIND.read_text():
        case "plus_and_minus_one":
            return 2 * right - 1
        case "two_of_three_judged":
            return {"score": right, "acc": None if len(solution_str) % 3 == 0 else right}
        case "judged":
            return {"score": right, "acc": right}
"""


class Leg(NamedTuple):
    """One configuration of the tour."""

    method: str
    reward: str = "judged"
    overrides: tuple[str, ...] = ()


LEGS = {name: Leg(name) for name in method_names()} | {
    "fixed_any_reward": Leg("fixed", "plus_and_minus_one"),
    "aer_threshold": Leg("aer", "plus_and_minus_one", ("entropy.correctness.threshold=0",)),
    "aer_unjudged": Leg("aer", "two_of_three_judged"),
}

OF_TARGET = {
    "absolute": ["entropy.target.entropy=5.0"],
    "anchored": ["entropy.target.tau=1.0"],
    "band": ["entropy.target.low=5.0", "entropy.target.high=6.0"],
}
"""Targets out of reach, so that α, or the push, moves within three steps: with the defaults it stays at a bound."""

OF_METHOD = {
    # An untrained policy is sure of no token.
    "entropic": ["entropy.advantage_shaping.probability=0.01"],
    # Whether its entropy falls within two steps is chance.
    "aer": ["entropy.controller.alpha_init=0.01"],
    "aer_no_allocation": ["entropy.controller.alpha_init=0.01"],
}

TRAINER_MODES["aer_tour"] = "sync"


def register() -> None:
    # Not at the top: veRL imports this module before its plug-ins, and they bring the CPU platform.
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    from verl_aer.integration.preflight import check_config
    from verl_aer.integration.trainer import EntropyTrainerSync

    @register_trainer("aer_tour")
    class TourTrainer(EntropyTrainerSync):
        """veRL's synchronous trainer with another configuration every STEPS steps."""

        def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
            leg, nth = divmod(self.global_steps - 1, STEPS)
            if leg >= len(LEGS):
                return super().step(metrics, timing_raw)
            if nth == 0:
                self._begin(list(LEGS)[leg])
            if nth == STEPS - 1:
                self._resume()
            batch = super().step(metrics, timing_raw)
            if nth == STEPS - 2:
                self._save_checkpoint()
            return batch

        def _begin(self, name: str) -> None:
            method, reward, overrides = LEGS[name]
            Path(self.config.reward.custom_reward_function.path).with_name("reward_kind.txt").write_text(reward)
            overrides = [*OF_TARGET.get(get_method(method).target.kind, []), *OF_METHOD.get(method, []), *overrides]
            with initialize_config_module("verl.trainer.config", version_base=None):
                preset = compose("ppo_trainer", overrides=[f"+entropy={method}", *overrides])
            actor = self.config.actor_rollout_ref.actor
            with open_dict(self.config):
                self.config.entropy = preset.entropy
                self.config.algorithm.norm_adv_by_std_in_grpo = preset.algorithm.norm_adv_by_std_in_grpo
                for key in ("policy_loss", "clip_ratio_low", "clip_ratio_high"):
                    OmegaConf.update(actor, key, preset.actor_rollout_ref.actor[key])
                self.config.trainer.v1.trainer_mode = "aer_tour"
            checked = check_config(self.config)
            assert (checked.problems, checked.notes) == ([], [])
            self.config.trainer.v1.trainer_mode = "sync"
            self.entropy_config = checked.entropy
            self.step_control = StepControl(self.entropy_config.resolve(self.total_training_steps), self.entropy_source)
            self._install_loss()
            print(f"[tour] step {self.global_steps}: {name}", flush=True)

        def _resume(self) -> None:
            step, before = self.global_steps, (self.step_control.control.state, self.step_control.memory)
            with open_dict(self.config):
                self.config.trainer.resume_mode = "resume_path"
                self.config.trainer.resume_from_path = f"{self.config.trainer.default_local_dir}/global_step_{step - 1}"
            self.step_control = None
            self._load_checkpoint()
            self.config.trainer.resume_mode = "disable"
            assert self.global_steps == step - 1
            self.global_steps = step
            assert (self.step_control.control.state, self.step_control.memory) == before
            self._install_loss()


after_import("verl.trainer.ppo.v1", register)
