"""What a checkpoint records of its run: the same for the same run, another for another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ppo_jax import manifest, run_facts
from ppo_jax.config import Config, LoraOptions, ModelConfig, replace
from ppo_jax.config_io import from_dict
from ppo_jax.data import load_dataset
from ppo_jax.experiment import Experiment
from ppo_jax.loading import Adapters, Source
from ppo_jax.resume import compare
from ppo_jax.run_folder import run_folder
from ppo_jax.tokenizer import byte_tokenizer

KEYS = "config data tokenizer weights critic_weights reward code versions devices compilers".split()
KEYS.append("reward_weights")
CODE = '''"""What it does."""

from ppo_jax.config import Config, replace

WORDS = ["a", "b"]


def score(prompts, responses):
    """Of each response."""
    return [float(len(WORDS)) for _ in responses]  # all alike


BASE = replace(Config(), **{"ppo.epochs": 2})
REWARD = score
'''


class Case:
    """A run's parts, each of which a test can change."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self.prompts, self.code = folder / "prompts.jsonl", folder / "case.py"
        self.prompts.write_text('{"prompt": "abc"}\n{"prompt": "de"}\n')
        self.code.write_text(CODE)
        self.policy, self.critic = folder / "policy", folder / "critic"
        for model in (self.policy, self.critic):
            model.mkdir()
            (model / "config.json").write_text('{"rope_theta": 1e4}')
            for name in ("model-1.safetensors", "model-2.safetensors"):
                (model / name).write_bytes(f"{model.name} {name}".encode() * 1000)
        self.tokenizer = byte_tokenizer()
        self.config = replace(Config(), **{"data.path": str(self.prompts)})

    def facts(self, **sources):
        source = Source(ModelConfig(), self.tokenizer, "policy", folder=self.policy)
        critic = Source(ModelConfig(), self.tokenizer, "critic", folder=self.critic)
        sources = {"source": source, "critic": critic, **sources}
        experiment = Experiment("case", self.config, None, self.code, "")
        data = load_dataset(self.config.data, self.tokenizer, vocab_size=259)
        return run_facts.run_facts(self.config, experiment, dataset=data, **sources)

    def changed(self, before):
        """The facts that are not as they were before."""
        now = self.facts()
        return [name for name in KEYS if now[name] != before[name]]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def random_source(case, **changes):
    return Source(ModelConfig(), case.tokenizer, None, **changes)


def test_they_are_json_and_come_back_as_they_were(case):
    case.config = replace(
        case.config,
        **{"hparams.clip_high": float("inf"), "rollout.stop_token_ids": (1, 2), "run.keep": 3},
    )
    facts = case.facts()
    back = json.loads(json.dumps(facts, allow_nan=False))
    assert back == facts and list(facts) == KEYS
    assert compare(back, facts) == ([], [], [])
    assert from_dict(Config, back["config"]) == case.config
    assert all(len(facts[name]) == 64 for name in KEYS[1:7])
    assert facts["versions"]["jax"] == jax.__version__ and all(facts["versions"].values())
    assert facts["devices"]["count"] == 4 and facts["devices"]["processes"] == 1


def test_a_second_call_says_the_same(case):
    facts = case.facts()
    assert case.facts() == facts
    case.tokenizer.encode("abc")
    for path in (*case.policy.iterdir(), case.prompts, case.code):
        os.utime(path, (0, 0))  # it is the content that counts
    case.tokenizer = byte_tokenizer()
    assert case.facts() == facts


AGAIN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_run_facts import Case
print(json.dumps(Case(Path(sys.argv[2])).facts()))
"""


def test_another_process_says_the_same(tmp_path):
    """Sets and hashes are in another order there."""
    one, other = (tmp_path / name for name in ("one", "other"))
    facts = Case(one).facts()
    command = [sys.executable, "-c", AGAIN, str(Path(__file__).parent), str(other)]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in KEYS[1:] if theirs[name] != facts[name]] == []


def edit(attribute, name=None):
    def act(case):
        path = getattr(case, attribute)
        path = path if name is None else path / name
        path.write_bytes(path.read_bytes() + b"\n")

    return act


def rename(case):
    (case.policy / "model-2.safetensors").rename(case.policy / "model-3.safetensors")


def template(case):
    case.tokenizer.chat_template = "{{ messages }}"


def token(case):
    case.tokenizer.add_tokens(["xyz"])


def option(case):
    case.config = replace(case.config, **{"hparams.lam": 0.5})


CHANGES = {
    "data": [edit("prompts")],
    "tokenizer": [template, token],
    "weights": [edit("policy", "model-2.safetensors"), edit("policy", "x.safetensors"), rename],
    "critic_weights": [edit("critic", "model-1.safetensors")],
    "config": [option],
}


@pytest.mark.parametrize("name, change", [(n, c) for n, group in CHANGES.items() for c in group])
def test_each_changes_with_its_thing(case, name, change):
    (case.policy / "x.safetensors").touch()
    before = case.facts()
    change(case)
    assert case.changed(before) == [name]


def test_what_no_model_is_read_from_does_not_count(case):
    before = case.facts()
    (case.policy / "README.md").write_text("other")
    assert case.changed(before) == []


def test_the_shape_of_a_model_counts(case):
    """Its config.json is read again on resume: another rotation or norm is another model."""
    before = case.facts()
    (case.policy / "config.json").write_text('{"rope_theta": 1e6}')
    assert case.changed(before) == ["weights"]


def flipped(path, offset):
    """Change one byte; done twice, nothing is changed."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_every_byte_of_a_small_file_counts(case):
    path, size = case.policy / "model-1.safetensors", run_facts.PROBES * run_facts.PROBE
    for length in (0, 1, run_facts.PROBE + 1, size - 1, size):
        path.write_bytes(os.urandom(length))
        before = run_facts._probe(path)
        for offset in {part * (length - 1) // 40 for part in range(41 if length else 0)}:
            flipped(path, offset)
            assert run_facts._probe(path) != before
            flipped(path, offset)
        assert run_facts._probe(path) == before


def test_both_ends_and_the_length_of_a_large_file_count(case):
    path, length = case.policy / "model-1.safetensors", 300 << 20
    path.write_bytes(b"")
    os.truncate(path, length)  # sparse: it takes no room
    before = run_facts._probe(path)
    for offset in (0, 9, run_facts.PROBE - 1, length // 2, length - run_facts.PROBE, length - 1):
        flipped(path, offset)
        assert run_facts._probe(path) != before
        flipped(path, offset)
    os.truncate(path, length - 1)
    assert run_facts._probe(path) != before


def replaced(old, new):
    assert old in CODE
    return CODE.replace(old, new)


@pytest.mark.parametrize(
    "code",
    [
        replaced("What it does.", "What else it does."),
        replaced('"""What it does."""\n', ""),
        replaced("  # all alike", ""),
        replaced('["a", "b"]', "['a',\n    'b']"),
        replaced('{"ppo.epochs": 2}', '{"ppo.epochs": 3}'),
    ],
)
def test_words_about_an_experiment_and_its_base_do_not_count(case, code):
    before = case.facts()
    case.code.write_text(code)
    assert case.changed(before) == []


def test_a_base_with_its_type_does_not_count_either(case):
    case.code.write_text(replaced("BASE =", "BASE: Config ="))
    before = case.facts()
    case.code.write_text(replaced("BASE =", "BASE: Config =").replace("epochs", "minibatches"))
    assert case.changed(before) == []


@pytest.mark.parametrize(
    "code",
    [
        replaced("float(len(WORDS))", "1.0 + len(WORDS)"),
        replaced('["a", "b"]', '["a", "c"]'),
        replaced("REWARD = score", "REWARD = [(0.5, score)]"),
        replaced("Config, replace", "replace, Config"),
    ],
)
def test_an_experiments_code_counts(case, code):
    before = case.facts()
    case.code.write_text(code)
    assert case.changed(before) == ["reward"]


def test_the_package_counts(case, tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "rewards").mkdir(parents=True)
    for name in ("a.py", "rewards/b.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(run_facts, "PACKAGE", package)
    before = case.facts()
    (package / "rewards" / "b.py").write_text("x = 2\n")
    assert case.changed(before) == ["code"]


def test_what_has_no_hash(case):
    case.config = replace(case.config, **{"parallel.data": 2})
    case.code.unlink()
    facts = case.facts(source=random_source(case), critic=None)
    assert facts["devices"]["count"] == 2 and facts["reward"] is None
    assert facts["weights"] is facts["critic_weights"] is None  # seed and shape are in the config


def test_a_run_to_begin_from_counts_by_its_newest_checkpoint(case, tmp_path):
    run = run_folder(tmp_path / "run")
    source = random_source(case, run=run)
    seen = [case.facts(source=source)["weights"]]
    for step, content in ((3, "a"), (6, "b"), (9, "a")):
        (run.checkpoints / str(step)).mkdir(parents=True)
        (run.checkpoints / str(step) / "data").write_text(content)
        manifest.write_record(run.checkpoints, step, {"run": step})
        seen.append(case.facts(source=source)["weights"])
    assert seen[0] is None and seen[1] == seen[3] != seen[2]  # the content counts, not the step


def test_adapters_count_and_what_they_lie_on(case, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "adapter_model.safetensors").write_bytes(b"a")
    base = Source(ModelConfig(), case.tokenizer, "policy", folder=case.policy)
    lies_on = random_source(case, adapters=Adapters(LoraOptions(4), base, own))
    seen = {None, case.facts(source=lies_on)["weights"]}
    for path in (own / "adapter_model.safetensors", case.policy / "model-1.safetensors"):
        path.write_bytes(b"b")
        seen.add(case.facts(source=lies_on)["weights"])
    assert len(seen) == 4
