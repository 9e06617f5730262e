"""Countdown's tokenizer and policy, loaded from disk as by veRL and vLLM."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.countdown.model import build_model, build_tokenizer, save
from examples.countdown.task import LEVELS, CountdownProblem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, seed=0), tokenizer, path)
    return path


def test_vocabularies_of_model_and_tokenizer_are_equal(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == model.get_output_embeddings().weight.shape[0]
    assert (model.config.eos_token_id, model.config.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert model.dtype == torch.float32


def test_chat_template_renders_the_users_content_and_nothing_else(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = CountdownProblem((3, 5, 7), 56).prompt
    messages = [{"role": "user", "content": prompt}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == prompt
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert len(ids) == len(prompt)
    assert tokenizer.decode(ids) == prompt


def test_one_token_a_character_and_unknown_characters_are_not_dropped(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("1*2x é\n")["input_ids"].count(tokenizer.unk_token_id) == 4
    ids = [*tokenizer("9-4*8")["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "9-4*8"
    assert tokenizer.unk_token_id not in tokenizer("".join(str(n) for n in LEVELS) + "+-*,=:")["input_ids"]


def test_the_seed_decides_the_weights():
    tokenizer = build_tokenizer()
    first, again, other = (build_model(tokenizer, seed).state_dict() for seed in (0, 0, 1))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
