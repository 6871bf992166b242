"""`generate`, `score` and `export` from files to files against torch transformers, float32."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import row_states
from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    PPOOptions,
    RewardOptions,
    RolloutOptions,
    RopeScaling,
    RunOptions,
)
from ppo_jax.decoder import Decoder
from ppo_jax.experiment import Experiment
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.main import main
from ppo_jax.model import unembed
from ppo_jax.smollm2 import ensure_cached
from ppo_jax.train import train

torch.set_num_threads(1)
NEW_TOKENS = 48


def chat(text: str, system: str | None = None) -> list[dict]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


PROMPTS = [
    chat("What is the capital of France? Answer in one word."),
    chat("Say hello."),
    chat("Tell me a story about a lighthouse keeper who finds a strange letter on the beach."),
    chat("What is 7 plus 5?", system="You are a calculator. Answer with a number only."),
    [
        *chat("My name is Zoë."),
        {"role": "assistant", "content": "Nice to meet you, Zoë!"},
        {"role": "user", "content": "What is my name?"},
    ],
    chat("List three colours, separated by commas."),
    chat("Write a Python function that returns the n-th Fibonacci number."),
    chat("Translate to French: 'Good morning, my friend.'"),
]
TEXTS = ("Hello, wörld! 日本 🙂", "  two  spaces\n\tand a tab", "1234567 it's")


@pytest.fixture(scope="module")
def theirs():
    """SmolLM2 in torch, and its tokenizer."""
    folder = ensure_cached()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The file that `generate` writes, and its rows."""
    folder = tmp_path_factory.mktemp("generate")
    lines = (json.dumps({"prompt": prompt}) for prompt in PROMPTS)
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--model", "smollm2-135m", "--temperature", "0", "--max_new_tokens", str(NEW_TOKENS)]
    files = ["--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "out.jsonl")]
    assert main(["generate", *words, *files]) == 0
    return folder / "out.jsonl", read_rows(folder / "out.jsonl")


@pytest.fixture(scope="module")
def their_logprobs(theirs, generated):
    """log-softmax of the generated tokens, each row alone: no padding at all."""
    model, tokenizer = theirs
    result = []
    for prompt, row in zip(PROMPTS, generated[1], strict=True):
        prompt_ids = their_prompt_ids(tokenizer, prompt)
        ids = torch.tensor([prompt_ids + row["response_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt_ids) - 1 : -1]
        chosen = torch.tensor(row["response_ids"])[:, None]
        result.append(logits.log_softmax(-1).gather(1, chosen)[:, 0].numpy())
    return result


def read_rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def their_prompt_ids(tokenizer, prompt) -> list[int]:
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def largest_difference(rows, wanted) -> float:
    return max(
        np.abs(np.array(row["logprobs"]) - other).max()
        for row, other in zip(rows, wanted, strict=True)
    )


def test_greedy_ids_are_torch_s(theirs, generated):
    model, tokenizer = theirs
    eos = model.generation_config.eos_token_id
    prompts = [their_prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=eos
        )
    wanted = []
    for row in output[:, width:].tolist():
        wanted.append(row[: row.index(eos) + 1] if eos in row else row)
    rows = generated[1]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["response_ids"] for row in rows] == wanted
    ended = [row[-1] == eos for row in wanted]
    assert any(ended) and not all(ended)  # both ways of ending were seen
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in wanted]
    assert [row["response"] for row in rows] == texts
    print(f"{sum(map(len, wanted))} ids equal, {sum(ended)} of {len(ended)} ended by EOS")


def test_logprobs_of_generate(generated, their_logprobs):
    difference = largest_difference(generated[1], their_logprobs)
    print(f"logprobs of generate: {difference:.1e}")
    assert difference < 1e-3


def test_score_of_generated_rows(generated, their_logprobs, tmp_path):
    path, rows = generated
    words = ["--model", "smollm2-135m", "--data", str(path), "--out", str(tmp_path / "scored")]
    assert main(["score", *words]) == 0
    scored = read_rows(tmp_path / "scored")
    assert [row["ids"] for row in scored] == [row["response_ids"] for row in rows]
    difference = largest_difference(scored, their_logprobs)
    print(f"logprobs of score: {difference:.1e}")
    assert difference < 1e-3


def check_export(model_name: str, out, ids: np.ndarray, tolerance: float) -> np.ndarray:
    """Export, load in torch with nothing missing or left over, compare logits and tokenizer.

    Gives torch's logits of the export.
    """
    assert main(["export", "--model", model_name, "--out", str(out)]) == 0
    model, info = AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, local_files_only=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(ids)).logits.numpy()
    source = open_source(model_name)
    decoder, params = Decoder(source.config), load_trunk(source)
    ours = unembed(
        decoder, params, row_states(decoder, params, jnp.asarray(ids), jnp.ones(ids.shape, bool))
    )
    difference = np.abs(np.asarray(ours) - wanted).max()
    print(f"logits of the export: {difference:.1e}, up to {abs(wanted).max():.0f} in size")
    assert difference < tolerance

    eos = model.generation_config.eos_token_id
    assert (*(eos if isinstance(eos, list) else [eos]),) == source.config.eos_token_ids
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        assert encoded == source.tokenizer.encode(text)
        assert tokenizer.decode(encoded) == text
    assert tokenizer.chat_template == source.tokenizer.chat_template
    return wanted


def test_export_of_smollm2(theirs, tmp_path):
    model, tokenizer = theirs
    ids = np.array([their_prompt_ids(tokenizer, PROMPTS[i])[:32] for i in (2, 6)])
    # 30 layers and logits up to 39: torch's own float32 is 9e-5 from its float64 here, and its two
    # attention implementations are 8e-5 apart. 1e-4 would be a test of the rounding.
    exported = check_export("smollm2-135m", tmp_path / "out", ids, tolerance=3e-4)
    with torch.no_grad():
        original = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_array_equal(exported, original)  # the weights went through bit for bit


TIED = ModelConfig(embed_dim=32, head_dim=8, mlp_dim=48, init_std=0.1, max_positions=128)
UNTIED = ModelConfig(
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=1,
    head_dim=16,
    mlp_dim=48,
    max_positions=128,
    rope_theta=5e5,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
    norm_eps=1e-4,
    tie_embeddings=False,
    init_std=0.1,
    eos_token_ids=(257, 3),
)


def byte_sum(prompts, responses) -> list[float]:
    """Differs between random responses, so every iteration has a gradient."""
    return [sum(text.encode()) % 7 / 7 for text in responses]


@pytest.mark.parametrize(
    "shape, layers, critic", [(TIED, "unroll", "shared"), (UNTIED, "scan", "separate")]
)
def test_export_of_a_run(tmp_path, shape, layers, critic):
    rows = (json.dumps({"prompt": text}) for text in ("one two", "three", "four five six", "7"))
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    config = Config(
        model=ModelOptions(path=None, shape=shape, scan_layers=layers, critic=critic),
        data=DataOptions(path=str(tmp_path / "data.jsonl")),
        rollout=RolloutOptions(batch_size=8, max_new_tokens=6),
        reward=RewardOptions(workers=0),  # a function of this test, which no process could import
        ppo=PPOOptions(epochs=1),
        run=RunOptions(
            iterations=2,
            dir=str(tmp_path / "runs"),
            show_prompts=0,
            profile_after=0,
            compile_cache=None,
            progress=False,
        ),
        hparams=HParams(learning_rate=1e-2),
    )
    train(config, Experiment("tiny", config, byte_sum, tmp_path / "tiny.py", ""))
    run = tmp_path / "runs" / "tiny" / "base" / "seed0"
    ids = np.random.default_rng(0).integers(0, 256, size=(3, 40))
    check_export(str(run), tmp_path / "out", ids, tolerance=1e-4)

    trained = load_trunk(open_source(str(run)))["layers"][-1]["v"]["kernel"]
    start = load_trunk(open_source(None, shape, seed=0))["layers"][-1]["v"]["kernel"]
    assert np.abs(trained - start).max() > 1e-3  # what was exported has been trained
