"""The entropy control in veRL's training worker and FSDP engines gives the same result for any split of a batch.

The splits are ranks, micro-batches, dynamic batching, the order of the rows, FSDP 1 and 2, and LoRA. Entropies, the
entropy term, its metrics and the gradient of the update equal those of the whole batch on one rank.
"""

from __future__ import annotations

import ast
import inspect
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional as verl_F
from verl.workers.config import FSDPEngineConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from examples.countdown.model import build_model, build_tokenizer, save
from tests.integration.engine_rank import ALPHA, CASES, TEMPERATURE, VOCABULARY, WEIGHTS, make_rows, rank_batch
from tests.integration.test_loss_equals_verl import LENGTHS, nested
from verl_aer.integration import engine as engine_module
from verl_aer.integration.engine import EntropyEngine, install_entropy_engines
from verl_aer.integration.loss import UPDATE_ENTROPY_NATS, UPDATE_TOKENS, WEIGHTED_ROWS_KEY
from verl_aer.integration.measure_request import DONE_KEY, MEASURE_KEY, encode_measure, require_measure_applied
from verl_aer.parts.measure import Clamped, Full, Measure, Nucleus

RELATIVE = 1e-5
"""Float32, added up in another order."""


def start_rank(ranks: int, rank: int, port: int, model: Path, out: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.engine_rank", str(model), str(out)]
    with (out / f"{ranks}-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "model"
    tokenizer = build_tokenizer()
    assert len(tokenizer) == VOCABULARY
    save(build_model(tokenizer, seed=0), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def found(model: Path) -> dict[str, list[dict]]:
    """Case -> what each of its ranks found."""
    out = model.parent
    results: dict[str, list[dict]] = {}
    for ranks in sorted({case.ranks for case in CASES.values()}):
        port = free_port()
        running = [start_rank(ranks, rank, port, model, out) for rank in range(ranks)]
        try:
            for rank, process in enumerate(running):
                assert process.wait(300) == 0, (out / f"{ranks}-{rank}.log").read_text()[-3000:]
        finally:
            for process in running:
                process.kill()
                process.wait()
        for rank in range(ranks):
            for name, result in torch.load(out / f"{ranks}-{rank}.pt", weights_only=False).items():
                results.setdefault(name, []).append(result)
    return results


def entropy_of_rows(ranks: list[dict]) -> dict[int, torch.Tensor]:
    return {row: entropy for rank in ranks for row, entropy in rank["entropy"].items()}


@pytest.mark.parametrize("name", ["whole", "clamped", "nucleus"])
def test_entropies_are_the_measure_of_the_models_logits(found, model, name):
    entropy = entropy_of_rows(found[name])
    policy = AutoModelForCausalLM.from_pretrained(model)
    for number, row in enumerate(make_rows()):
        with torch.no_grad():
            logits = policy(row["input_ids"][None]).logits[0] / TEMPERATURE
        expected = CASES[name].measure.entropy(logits)
        # The entropy of a prompt's tokens is not read, or of the one after the last.
        prompt = LENGTHS[number][0]
        expected[: prompt - 1] = expected[-1] = 0.0
        torch.testing.assert_close(entropy[number], expected, rtol=RELATIVE, atol=0)


def test_the_measures_differ_here(found):
    rows = [torch.cat(list(entropy_of_rows(found[name]).values())) for name in ("whole", "clamped", "nucleus")]
    rows = [row[row > 0] for row in rows]
    assert (rows[0] > rows[1] + 0.1).all()
    assert (rows[1] > rows[2]).all()


def reduced(value: object) -> float:
    """A metric as the trainer reduces it over the mini-batches of a step; here there is one."""
    (number,) = value if isinstance(value, list) else [value]
    return float(number)


REFERENCES = ("whole", "clamped", "nucleus", "LoRA")
"""One rank, one micro-batch."""
OTHERS = sorted(name for name in CASES if name not in REFERENCES)
OF_ALL_ROWS = [name for name in OTHERS if not CASES[name].weighted_rows]


def reference(name: str) -> str:
    return next((other for other in REFERENCES if name.startswith(other)), "whole")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.guards("bug 7")
def test_entropies_of_the_old_log_prob_pass_do_not_depend_on_the_cut(found, name):
    rows, expected = entropy_of_rows(found[name]), entropy_of_rows(found[reference(name)])
    assert sorted(rows) == sorted(expected) == list(range(len(LENGTHS)))
    for row, (prompt, _) in enumerate(LENGTHS):
        # veRL's own engine computes those of the prompt too, which are not read.
        response = slice(prompt - 1, -1)
        torch.testing.assert_close(rows[row][response], expected[row][response], rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("name", [name for name in OTHERS if CASES[name].weighted_rows])
def test_the_updates_entropy_is_of_rows_with_a_term_where_the_batch_says_so(found, name):
    expected = entropy_of_rows(found["whole"])
    kept = [row for row, weight in enumerate(WEIGHTS) if weight > 0]
    nats = sum(expected[row][LENGTHS[row][0] - 1 : -1].sum().item() for row in kept)
    for metrics in (rank["metrics"] for rank in found[name]):
        assert reduced(metrics[UPDATE_TOKENS]) == sum(LENGTHS[row][1] for row in kept)
        assert reduced(metrics[UPDATE_ENTROPY_NATS]) == pytest.approx(nats, rel=RELATIVE)
        term = "actor/aer/entropy_term"
        assert reduced(metrics[term]) == pytest.approx(reduced(found["whole"][0]["metrics"][term]), rel=RELATIVE)


@pytest.mark.parametrize("name", OF_ALL_ROWS)
@pytest.mark.guards("bug 7")
def test_metrics_of_the_update_do_not_depend_on_the_cut(found, name):
    expected = found[reference(name)][0]["metrics"]
    ours = [metric for metric in expected if metric.startswith("actor/aer/")]
    assert len(ours) == 6
    for metrics in (rank["metrics"] for rank in found[name]):
        for metric in ours:
            assert reduced(metrics[metric]) == pytest.approx(reduced(expected[metric]), rel=RELATIVE), metric


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.guards("bug 7")
def test_gradients_do_not_depend_on_the_cut(found, name):
    expected = found[reference(name)][0]["gradient"]
    scale = max(gradient.abs().max() for gradient in expected.values())
    gradients = found[name][0]["gradient"]
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        assert (gradient - expected[parameter]).abs().max() <= RELATIVE * scale, parameter


@pytest.mark.parametrize("name", REFERENCES)
def test_what_is_compared_is_the_entropy_control(found, name):
    whole = found[name][0]
    entropy = entropy_of_rows(found[name])
    tokens = sum(response for _, response in LENGTHS)
    # Response token t was drawn from the distribution at the token before it.
    nats = {row: entropy[row][prompt - 1 : -1].sum().item() for row, (prompt, _) in enumerate(LENGTHS)}
    metrics = {name: reduced(value) for name, value in whole["metrics"].items() if name.startswith("actor/aer/")}
    assert metrics[UPDATE_TOKENS] == tokens
    assert metrics[UPDATE_ENTROPY_NATS] == pytest.approx(sum(nats.values()), rel=RELATIVE)
    weighted = sum(WEIGHTS[row] * nats[row] for row in nats)
    assert metrics["actor/aer/entropy_term"] == pytest.approx(ALPHA * weighted / tokens, rel=RELATIVE)


def test_lora_trains_its_adapters_and_nothing_else(found):
    moved = {name for name, gradient in found["LoRA"][0]["gradient"].items() if gradient.any()}
    assert moved
    assert all("lora_" in name for name in moved)


# ------------------------------------------------------------------ packed and padded


def outputs(
    measure: Measure,
    packed: bool,
    logits: list[torch.Tensor],
    vocabulary: int | None = None,
    engine_class: type = EntropyEngine,
    dense: bool = False,
    switches: dict[str, bool] | None = None,
    **config: object,
) -> tuple[dict[str, torch.Tensor], TensorDict]:
    """What the engine makes of the model's logits, given a row at a time as ``(s_i, V)``; prompts are of one token.

    dense: prompts and responses are padded, as veRL's legacy trainers send them.
    """
    engine = object.__new__(engine_class)
    engine.engine_config = FSDPEngineConfig(use_torch_compile=False, **config)
    engine.use_ulysses_sp = False
    engine.pad_to_length = None
    engine.compute_entropy_from_logits = verl_F.entropy_from_logits
    tokens = {str(token): token for token in range(vocabulary or 0)}
    tokenizer = SimpleNamespace(get_vocab=lambda: tokens) if vocabulary else None
    engine.model_config = SimpleNamespace(tokenizer=tokenizer)

    lengths = [len(row) for row in logits]
    ids = nested([torch.arange(length) for length in lengths])
    prompts, responses = nested([torch.arange(1)] * len(logits)), nested([torch.arange(n - 1) for n in lengths])
    if dense:
        prompts, responses = prompts.to_padded_tensor(0), responses.to_padded_tensor(0)
    data = TensorDict({"input_ids": ids, "prompts": prompts, "responses": responses}, batch_size=len(logits))
    tu.assign_non_tensor(
        data,
        calculate_entropy=True,
        use_remove_padding=packed,
        **{MEASURE_KEY: encode_measure(measure)},
        **(switches or {}),
    )
    temperature = torch.linspace(0.5, 1.5, len(logits))
    arguments = {"input_ids_rmpad_rolled": ids.values().roll(-1), "temperature_is_one": False}
    if packed:
        whole = torch.cat(logits)[None]
        arguments |= {"temperature_rmpad": temperature.repeat_interleave(torch.tensor(lengths)), "pad_size": 0}
    else:
        whole = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True)
        arguments |= {"temperature": temperature}
    return engine.prepare_model_outputs(SimpleNamespace(logits=whole), arguments, data, None), data


def random_logits(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, vocabulary, generator=generator).requires_grad_() for length in (3, 7, 2)]


@pytest.mark.parametrize("measure", [Clamped(p=0.3), Nucleus(p=0.7)], ids=repr)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"entropy_checkpointing": True},
        {"entropy_from_logits_with_chunking": True, "entropy_from_logits_chunk_size": 4},
    ],
    ids=["plain", "checkpointing", "chunks"],
)
@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint:UserWarning")  # veRL's own call, in its packed path
def test_packed_and_padded_paths_agree_in_value_and_gradient(measure, config):
    gradients = []
    for packed in (True, False):
        logits = random_logits(vocabulary=11)
        found, data = outputs(measure, packed, logits, **config)
        for number, row in enumerate(found["entropy"].unbind()):
            temperature = [0.5, 1.0, 1.5][number]
            expected = measure.entropy(logits[number][:-1] / temperature)
            torch.testing.assert_close(row, torch.nn.functional.pad(expected, (0, 1)), rtol=1e-6, atol=1e-7)
        assert tu.get_non_tensor_data(data, DONE_KEY, default=False)
        assert tu.get_non_tensor_data(data, "calculate_entropy", default=False)
        (found["entropy"].values().sum() + found["log_probs"].values().sum()).backward()
        gradients.append(torch.cat([row.grad for row in logits]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_tokens_whose_entropy_nobody_reads_are_not_counted(weighted):
    engine = object.__new__(EntropyEngine)
    engine.use_ulysses_sp = False
    data = rank_batch(CASES["weighted rows" if weighted else "whole"], rank=0)
    tu.assign_non_tensor(data, **{WEIGHTED_ROWS_KEY: weighted})
    tokens = sum(prompt + response for prompt, response in LENGTHS)
    counted = engine._counted_tokens(data, tokens + 3)  # with three tokens of padding
    expected = []
    for (prompt, response), weight in zip(LENGTHS, WEIGHTS, strict=True):
        read = 1.0 if weight > 0 or not weighted else 0.0
        expected += [0.0] * (prompt - 1) + [read] * response + [0.0]
    assert counted.tolist() == [*expected, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("packed", [True, False])
def test_padded_columns_of_the_vocabulary_belong_to_no_set(packed):
    logits = random_logits(vocabulary=16)
    found, _ = outputs(Clamped(p=0.5), packed, logits, vocabulary=10)
    for number, row in enumerate(found["entropy"].unbind()):
        expected = Clamped(p=0.5).entropy(logits[number][:-1, :10] / [0.5, 1.0, 1.5][number])
        torch.testing.assert_close(row[:-1], expected, rtol=1e-6, atol=1e-7)


def test_an_engine_that_ignores_the_request_is_found_out():
    data = TensorDict({}, batch_size=1)
    tu.assign_non_tensor(data, **{MEASURE_KEY: encode_measure(Clamped())})
    with pytest.raises(RuntimeError, match="ignored the measure"):
        require_measure_applied(data)


# ------------------------------------------------------------------ whose engine it is


class OfAnotherVendor(FSDPEngineWithLMHead):
    """A subclass of veRL's, as recipes have them."""


def worker_with(**engines: type) -> SimpleNamespace:
    """A Ray actor's worker whose roles hold engines of these classes."""
    return SimpleNamespace(**{role: SimpleNamespace(engine=object.__new__(cls)) for role, cls in engines.items()})


def test_the_engines_of_actor_and_reference_policy_become_ours_and_no_others():
    policy = worker_with(actor=FSDPEngineWithLMHead, ref=FSDPEngineWithLMHead)
    critic = worker_with(engine=FSDPEngineWithValueHead)
    install_entropy_engines(SimpleNamespace(worker_dict={"actor_rollout_ref": policy, "critic": critic}))
    assert type(policy.actor.engine) is type(policy.ref.engine) is EntropyEngine
    assert type(critic.engine.engine) is FSDPEngineWithValueHead
    other = worker_with(actor=OfAnotherVendor)
    install_entropy_engines(other)
    assert type(other.actor.engine) is OfAnotherVendor
    install_entropy_engines(SimpleNamespace(actor=None, ref=None))


def test_on_a_device_without_kernels_of_ours_verls_engine_stays(monkeypatch):
    monkeypatch.setattr(engine_module, "get_device_name", lambda: "npu")
    policy = worker_with(actor=FSDPEngineWithLMHead)
    install_entropy_engines(policy)
    assert type(policy.actor.engine) is FSDPEngineWithLMHead


def switches_of_verl() -> set[str]:
    """What veRL's method looks up in a batch, by its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(FSDPEngineWithLMHead.prepare_model_outputs)))
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "key"]
    return {keyword.value.value for keyword in keywords if isinstance(keyword.value, ast.Constant)}


def test_every_switch_that_verls_outputs_depend_on_is_known():
    known = {
        "calculate_entropy",
        "calculate_sum_pi_squared",
        "distillation_only",
        "distillation_use_topk",
        "pad_mode",
        "use_fused_kernels",
        "use_remove_padding",
    }
    assert switches_of_verl() == known
    assert known - engine_module._other_switches() == engine_module.HANDLED_SWITCHES


def of_verls_class(**arguments: object) -> dict[str, torch.Tensor]:
    """What veRL's own class makes of the same batch."""
    return outputs(Full(), engine_class=FSDPEngineWithLMHead, **arguments)[0]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "unlike",
    [{"dense": True}, {"switches": {"calculate_sum_pi_squared": True}}],
    ids=["dense prompts", "another output"],
)
def test_a_batch_that_is_not_for_us_takes_verls_path_bit_for_bit(packed, unlike):
    arguments = {"packed": packed, "logits": random_logits(vocabulary=11), **unlike}
    expected = of_verls_class(**arguments)
    found, data = outputs(Full(), **arguments)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].values(), tensor.values()), name
    assert not tu.get_non_tensor_data(data, DONE_KEY, default=False)


def test_a_switch_of_another_trainer_changes_nothing():
    logits = random_logits(vocabulary=11)
    _, data = outputs(Clamped(p=0.3), True, logits, switches={"disable_auto_offload": True, "my_own_switch": True})
    require_measure_applied(data)
