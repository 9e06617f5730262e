"""A trainer that goes through all methods in one real run: loaded by veRL's own switch for modules of users.

Each method gets three steps. It is saved after the second with veRL's checkpoint, and the third starts from that
checkpoint: a resume on the cluster that is there.
"""

from __future__ import annotations

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

from verl_aer import get_method, method_names
from verl_aer._import_hooks import after_import
from verl_aer.control.step import StepControl
from verl_aer.integration.availability import TRAINER_MODES

STEPS = 3
"""Of each method; the state is saved before the last of them."""

OUT_OF_REACH = {
    "absolute": ["entropy.target.entropy=5.0"],
    "anchored": ["entropy.target.tau=1.0"],
    "band": ["entropy.target.low=5.0", "entropy.target.high=6.0"],
}
"""Settings with which α, or the pull, moves within three steps: with the defaults it would stay at a bound."""

OF_METHOD = {
    # An untrained policy is sure of no token.
    "entropic": ["entropy.advantage_shaping.probability=0.01"],
    # Whether its entropy falls within two steps is chance.
    "aer": ["entropy.controller.alpha_init=0.01"],
    "aer_no_allocation": ["entropy.controller.alpha_init=0.01"],
}

TRAINER_MODES["aer_tour"] = "sync"


def register() -> None:
    # Not above: veRL imports this module before its plug-ins, and with them the CPU platform, are there.
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    from verl_aer.integration.preflight import check_config
    from verl_aer.integration.trainer import EntropyTrainerSync

    @register_trainer("aer_tour")
    class MethodTour(EntropyTrainerSync):
        """veRL's synchronous trainer with another method every STEPS steps."""

        def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
            method, nth = divmod(self.global_steps - 1, STEPS)
            if nth == 0:
                self._begin(method_names()[method])
            if nth == STEPS - 1:
                self._resume()
            batch = super().step(metrics, timing_raw)
            if nth == STEPS - 2:
                self._save_checkpoint()
            return batch

        def _begin(self, method: str) -> None:
            with initialize_config_module("verl.trainer.config", version_base=None):
                overrides = [*OUT_OF_REACH.get(get_method(method).target.kind, []), *OF_METHOD.get(method, [])]
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
            print(f"[tour] step {self.global_steps}: {method}", flush=True)

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
