"""A stop request: the step is finished and saved, the loop ends, and a late request stays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from verl_aer.integration.stop_request import StopOnRequestMixin, request_path


class Loop:
    """Stands for veRL's trainer: its loop, which saves every `save_freq` steps before the step's end."""

    def __init__(self, folder, steps: int, save_freq: int) -> None:
        self.config = SimpleNamespace(trainer=SimpleNamespace(default_local_dir=str(folder)))
        self.global_steps, self.total_training_steps, self.save_freq = 1, steps, save_freq
        self.events: list[str] = []
        self.ask_in_step: int | None = None

    def fit(self, agent_loop_manager: None) -> None:
        while self.global_steps <= self.total_training_steps:
            if self.global_steps == self.ask_in_step:
                request_path(self.config).touch()
            if self.global_steps % self.save_freq == 0:
                self._save_checkpoint()
            self.on_step_end()
            self.global_steps += 1

    def _save_checkpoint(self) -> None:
        self.events.append(f"save {self.global_steps}")

    def on_step_end(self) -> None:
        self.events.append(f"end {self.global_steps}")


class Trainer(StopOnRequestMixin, Loop):
    pass


@pytest.mark.parametrize(
    ("save_freq", "events"),
    [(9, ["end 1", "save 2", "end 2"]), (2, ["end 1", "save 2", "end 2"]), (1, ["save 1", "end 1", "save 2", "end 2"])],
)
def test_the_step_of_the_request_is_the_last_one_and_saved_once(tmp_path, save_freq, events, capsys):
    trainer = Trainer(tmp_path, steps=5, save_freq=save_freq)
    trainer.ask_in_step = 2
    trainer.fit(None)
    assert trainer.events == events
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"stopped_on_request": "2\n"}
    assert "stopped on request after step 2 of 5" in capsys.readouterr().out


def test_without_a_request_nothing_changes(tmp_path):
    trainer = Trainer(tmp_path, steps=2, save_freq=9)
    (tmp_path / "stopped_on_request").touch()
    trainer.fit(None)
    assert list(tmp_path.iterdir()) == []
    assert trainer.events == ["end 1", "end 2"]


def test_a_request_in_the_last_step_came_too_late_and_stays(tmp_path):
    trainer = Trainer(tmp_path, steps=2, save_freq=9)
    trainer.ask_in_step = 2
    trainer.fit(None)
    assert trainer.events == ["end 1", "end 2"]
    assert [path.name for path in tmp_path.iterdir()] == ["stop_requested"]
