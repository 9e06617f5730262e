"""`examples/ray_cluster/rayjob.yaml`, against the fields that KubeRay publishes and the facts that a run depends on."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

TEXT = (Path(__file__).parents[2] / "examples" / "ray_cluster" / "rayjob.yaml").read_text()
MANIFEST = yaml.safe_load(TEXT)
# Made from the CRD that the file's `source` names; of the pod's fields only those are whole that such a manifest uses.
FIELDS = json.loads(Path(__file__).with_name("kuberay_rayjob_fields.json").read_text())
RUN = f"/shared/runs/{MANIFEST['metadata']['name']}"
UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

SPEC = MANIFEST["spec"]
HEAD = SPEC["rayClusterSpec"]["headGroupSpec"]
(WORKERS,) = SPEC["rayClusterSpec"]["workerGroupSpecs"]
GROUPS = pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "worker"])

CONTAINER = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0)
VOLUME = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0)
GROUP = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)


def training_command() -> list[str]:
    """The command below the entrypoint's shell, without what is done with its output."""
    *_, script = shlex.split(SPEC["entrypoint"])
    found = shlex.split(script[script.index("python") : script.index("2>&1")])
    assert found[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert found[3:7] == ["--config-path", "pkg://verl_aer.config", "--config-name", "aer_trainer"]
    return found


def overrides() -> list[str]:
    return training_command()[7:]


def override(name: str) -> str:
    (value,) = (word.partition("=")[2] for word in overrides() if word.partition("=")[0] == name)
    return value


def runtime_env() -> dict:
    return yaml.safe_load(SPEC["runtimeEnvYAML"])


def container(group: dict) -> dict:
    (found,) = group["template"]["spec"]["containers"]
    return found


def volume_at(group: dict, path: str) -> dict:
    (name,) = (mount["name"] for mount in container(group)["volumeMounts"] if mount["mountPath"] == path)
    (found,) = (volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == name)
    return found


def size(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()
    return int(number) * UNITS.get(unit, 1)


def problems(manifest: dict) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(FIELDS["schema"]).iter_errors(manifest)]


# ---------------------------------------------------------------------------------------------- KubeRay's own rules


def test_the_schema_is_one_and_says_where_it_is_from():
    jsonschema.Draft202012Validator.check_schema(FIELDS["schema"])
    assert FIELDS["source"]["repository"] == "https://github.com/ray-project/kuberay"
    assert FIELDS["source"]["release"]


def test_the_manifest_fits_kuberays_schema():
    assert problems(MANIFEST) == []


@pytest.mark.parametrize(
    ("place", "wrong", "value"),
    [
        (("spec",), "backofLimit", 3),
        (("spec",), "ttlSecondsAfterFinish", 600),
        (("spec", "rayClusterSpec"), "workerGroupSpec", []),
        (GROUP, "replica", 1),
        (GROUP, "rayStartParam", {}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template"), "specs", {}),
        (CONTAINER, "volumeMount", []),
        ((*CONTAINER, "resources"), "limit", {}),
        ((*CONTAINER, "volumeMounts", 0), "mountpath", "/shared"),
        (VOLUME, "persistentVolumeClaims", {}),
        ((*VOLUME, "persistentVolumeClaim"), "claim", "shared"),
    ],
)
def test_a_misspelt_field_is_refused(place, wrong, value):
    manifest = own_copy()
    at(manifest, place)[wrong] = value
    (problem,) = problems(manifest)
    assert f"'{wrong}' was unexpected" in problem


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ((), "apiVersion", "ray.io/v1beta1"),
        ((), "kind", "RayCluster"),
        (("spec",), "entrypoint", ["python", "-m", "verl.trainer.main_ppo"]),
        (("spec",), "runtimeEnvYAML", {"env_vars": {}}),
        (("spec",), "backoffLimit", "3"),
        (("spec",), "activeDeadlineSeconds", 604800.5),
        (("spec",), "shutdownAfterJobFinishes", "yes"),
        (("spec", "rayClusterSpec"), "rayVersion", 2.60),
        (("spec", "rayClusterSpec", "authOptions"), "mode", "password"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "object-store-memory", 34359738368),
        (GROUP, "replicas", "1"),
        ((*CONTAINER, "resources", "limits"), "memory", "512GB"),
        (VOLUME, "persistentVolumeClaim", "verl-aer-shared"),
    ],
)
def test_a_wrong_type_or_value_is_refused(place, name, value):
    manifest = own_copy()
    assert name in at(manifest, place)
    at(manifest, place)[name] = value
    assert len(problems(manifest)) == 1


@pytest.mark.parametrize(
    ("place", "name"),
    [((), "spec"), (GROUP, "template"), (CONTAINER, "name"), ((*VOLUME, "persistentVolumeClaim"), "claimName")],
)
def test_a_missing_field_is_refused(place, name):
    manifest = own_copy()
    del at(manifest, place)[name]
    assert problems(manifest) == [f"'{name}' is a required property"]


def own_copy() -> dict:
    """A manifest to spoil; head and worker have the same pod in the file, and one each here."""
    return json.loads(json.dumps(MANIFEST))


def at(manifest: dict, place: tuple) -> dict:
    found = manifest
    for key in place:
        found = found[key]
    return found


def test_what_the_operator_checks_beyond_the_schema():
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", MANIFEST["metadata"]["name"])
    assert SPEC["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert SPEC["shutdownAfterJobFinishes"] is True, "ttlSecondsAfterFinished is refused without it"
    assert SPEC["ttlSecondsAfterFinished"] > 0
    assert SPEC["activeDeadlineSeconds"] > 0
    assert SPEC["backoffLimit"] > 0
    # Tokens are refused for older ones.
    assert tuple(map(int, SPEC["rayClusterSpec"]["rayVersion"].split("."))) >= (2, 52, 0)


# ---------------------------------------------------------------------------------------------- nodes, GPUs, volumes


def test_there_are_as_many_nodes_as_verl_is_told():
    assert WORKERS["replicas"] == WORKERS["minReplicas"] == WORKERS["maxReplicas"]
    assert 1 + WORKERS["replicas"] == int(override("trainer.nnodes"))


@GROUPS
def test_every_node_has_as_many_gpus_as_verl_is_told(group):
    assert container(group)["resources"]["limits"]["nvidia.com/gpu"] == override("trainer.n_gpus_per_node")


@GROUPS
def test_every_pod_mounts_the_shared_claim(group):
    assert volume_at(group, "/shared")["persistentVolumeClaim"]["claimName"] == "verl-aer-shared"


@GROUPS
def test_every_pod_has_shared_memory_for_ray_and_as_much_again(group):
    memory = volume_at(group, "/dev/shm")["emptyDir"]
    assert memory["medium"] == "Memory"
    assert 2 * size(group["rayStartParams"]["object-store-memory"]) <= size(memory["sizeLimit"])
    assert 2 * size(memory["sizeLimit"]) <= size(container(group)["resources"]["limits"]["memory"])


@GROUPS
def test_verls_reservation_of_cpus_fits(group):
    limits = container(group)["resources"]["limits"]
    assert int(limits["cpu"]) >= 2 * 3 * int(limits["nvidia.com/gpu"])


# -------------------------------------------------------------------------------------------------- the run itself


def test_a_retried_run_goes_on_from_the_shared_volume():
    assert override("trainer.resume_mode") == "auto"
    assert override("trainer.default_local_dir") == f"{RUN}/checkpoints"
    assert 0 < int(override("trainer.save_freq")) < int(override("trainer.total_training_steps"))


def test_all_that_a_run_writes_is_in_its_folder():
    assert "file" in override("trainer.logger")
    assert runtime_env()["env_vars"]["VERL_FILE_LOGGER_PATH"] == f"{RUN}/metrics.jsonl"
    assert override("hydra.run.dir") == f"{RUN}/hydra"
    assert override("trainer.experiment_name") == MANIFEST["metadata"]["name"]
    assert set(re.findall(r"/shared/runs/[\w-]+", TEXT)) == {RUN}


def test_verl_joins_the_ray_that_runs():
    assert override("++ray_kwargs.ray_init.address") == "auto"
    assert override("++ray_kwargs.ray_init.num_cpus") == override("++ray_kwargs.ray_init.num_gpus") == "null"


def test_the_environments_values_are_strings():
    assert {type(value) for value in runtime_env()["env_vars"].values()} == {str}


def test_an_image_without_the_package_has_lines_to_uncomment():
    uncommented = re.sub(r"^( +)# ([A-Z_]+: \S+)$", r"\1\2", SPEC["runtimeEnvYAML"], flags=re.MULTILINE)
    added = yaml.safe_load(uncommented)["env_vars"].items() - runtime_env()["env_vars"].items()
    assert dict(added) == {
        "PYTHONPATH": "/shared/src/verl_aer",
        "VERL_USE_EXTERNAL_MODULES": "verl_aer.integration.plugin",
    }


@pytest.mark.parametrize("code", [0, 3])
def test_the_shell_hands_on_every_word_the_output_and_the_exit_code(tmp_path, code):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\necho to stderr >&2\nexit {code}\n')
    python.chmod(0o755)
    entrypoint = SPEC["entrypoint"].replace("/shared/", f"{tmp_path}/")
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    # As Ray runs it; twice, as a retry does.
    for _ in range(2):
        run = subprocess.run(entrypoint, shell=True, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == code, run.stderr
    log = (
        (tmp_path / "runs" / MANIFEST["metadata"]["name"] / "train.log").read_text().replace(f"{tmp_path}/", "/shared/")
    )
    assert log.splitlines() == [*training_command()[1:], "to stderr"] * 2
