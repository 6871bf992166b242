"""Which changes a run goes on with: a word for each key, and for what is not in the config."""

import copy

import pytest

from ppo_jax import manifest, resume
from ppo_jax.arguments import TrainArgs
from ppo_jax.config import Config, replace
from ppo_jax.config_io import to_dict
from ppo_jax.errors import CheckpointError
from ppo_jax.resume import compare, find_start


def facts_of(config=None, **changes):
    """As `run_facts` makes them."""
    facts = {
        "config": to_dict(config or Config()),
        "data": "d0",
        "tokenizer": "t0",
        "weights": "w0",
        "critic_weights": None,
        "reward": "r0",
        "code": "c0",
        "versions": {"jax": "0.10.2", "optax": "0.2.6"},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 4, "processes": 1},
        "compilers": {"compiler": "cpu", "XLA_FLAGS": None, "cpu": "Xeon"},
        "reward_weights": {"judge": "j0"},
        "kind": "train",
    }
    return copy.deepcopy({**facts, **changes})


FACTS = facts_of()


def make_step(path, step, facts=FACTS):
    """What a save leaves; Orbax's part of it is not read here."""
    state = path / str(step) / manifest.ITEM
    state.mkdir(parents=True)
    for name in ("_METADATA", "data"):
        (state / name).write_text(f"{name} of {step}" * 9)
    manifest.write_record(path, step, {**facts, "goodness": None})


def flip(path, step):
    data = path / str(step) / manifest.ITEM / "data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    return data


def tree(path):
    return {str(p.relative_to(path)): p.is_file() and p.read_bytes() for p in path.rglob("*")}


def start(path, facts=FACTS, **switches):
    """(where it goes on, what it warns of)"""
    said = []
    step = find_start(path, facts, TrainArgs(**switches), said.append)
    assert not any("\n" in line for line in said)
    return step, said


def refused(path, facts=FACTS, **switches):
    before = tree(path)
    with pytest.raises(CheckpointError) as raised:
        start(path, facts, **switches)
    assert raised.value.exit_code == 4 and "\n" not in str(raised.value)
    assert tree(path) == before
    return str(raised.value)


def make_steps(path, *steps):
    for step in steps:
        make_step(path, step)
    return path


@pytest.fixture
def path(tmp_path):
    return make_steps(tmp_path / "checkpoints", 3, 6)


FREE = {
    "run.dir": "elsewhere",
    "run.progress": False,
    "run.profile_after": 0,
    "run.samples": 0,
    "run.show_prompts": 0,
    "run.checkpoint_every": 7,
    "run.checkpoint_minutes": None,
    "run.keep": 9,
    "run.keep_best": "objective/scores",
    "run.eval_every": 5,
    "run.grace": 5.0,
    "run.compile_cache": None,
    "run.tensorboard": True,
    "run.iterations": 300,  # nothing counts on it while the schedule is constant
    "model.trust_remote_code": True,
    "parallel.offload": "both",
    "data.path": "moved.jsonl",  # whose content is compared
    "reward.timeout": 5.0,
}
STRUCTURAL = {
    "model.critic_path": "other",
    "model.shape.num_layers": 3,
    "model.shape.tie_embeddings": False,
    "model.scan_layers": "scan",
    "model.critic": "separate",
    "model.lora.rank": 8,
    "model.lora.targets": ("q_proj",),
    "data.max_prompt_tokens": 65,
    "data.overlong": "drop",
    "data.bad_rows": "skip",
    "data.shuffle": False,
    "rollout.batch_size": 64,
    "rollout.samples_per_prompt": 2,
    "reward.reference": "ema",
    "ppo.advantage": "rloo",
    "optim.adam": "tensorflow",
    "run.seed": 1,
}
HARMLESS = {
    "hparams.learning_rate": 2e-5,
    "hparams.clip_high": float("inf"),
    "hparams.value_clip": None,
    "hparams.kl_target": 6.0,
    "model.compute_dtype": "float32",
    "model.remat": "none",
    "model.attention": "xla",
    "rollout.max_new_tokens": 25,
    "rollout.slots": 16,
    "rollout.stop_token_ids": (5,),
    "reward.kl_controller": "adaptive",
    "reward.reference_reset_every": 5,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "optim.b2": 0.95,
    "optim.weight_decay": 0.1,
    "optim.schedule": "linear",
    "optim.max_nonfinite": 9,
}
INEXACT = {"reward.workers": 4, "reward.row_timeout": 1.0}
INEXACT |= {"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2}
INEXACT |= {"parallel.rollout": "pmap"}
INEXACT |= {"data.eval_path": "others.jsonl", "data.eval_rows": 3}
KINDS = {"free": FREE, "structural": STRUCTURAL, "harmless": HARMLESS, "inexact": INEXACT}
KEYS = [(kind, key) for kind, keys in KINDS.items() for key in keys]


@pytest.mark.parametrize("kind, key", KEYS)
def test_a_key_that_changed(kind, key):
    now = facts_of(replace(Config(), **{key: KINDS[kind][key]}))
    for one, other in ((FACTS, now), (now, FACTS)):
        changes = compare(one, other)._asdict()
        lines = changes.pop(kind, None)
        assert lines is None or (len(lines) == 1 and lines[0].startswith(f"{key}: "))
        assert not any(line for name, line in changes.items() if name != kind)
    assert compare(now, now) == ([], [], [])


def test_alone_or_with_others_in_a_program_rounds_otherwise():
    together = FACTS | {"together": True}
    assert compare(FACTS, together) == ([], [], ["now with other runs in a program"])
    assert compare(together, FACTS) == ([], [], ["now alone"])
    assert compare(together, together) == ([], [], [])


def test_no_key_of_a_kind_is_forgotten():
    assert set(FREE) == resume.FREE | {"run.iterations"}
    assert set(INEXACT) == set(resume.INEXACT)
    for prefix in {*resume.STRUCTURAL} - {"model.path", "model.base_path"}:
        assert any(key == prefix or key.startswith(f"{prefix}.") for key in STRUCTURAL)


@pytest.mark.parametrize("key", ["model.path", "model.base_path"])
def test_a_model_may_have_another_name(key):
    """Its weights tell; random ones have none to tell by."""
    renamed = replace(Config(), **{key: "elsewhere"})
    assert compare(FACTS, facts_of(renamed)) == ([], [], [])
    others = compare(FACTS, facts_of(renamed, weights="other")).structural
    assert [line.split(":")[0] for line in others] == [key, "model.path"]
    unknown = compare(facts_of(Config(), weights=None), facts_of(renamed, weights=None))
    assert len(unknown.structural) == 1 and unknown.structural[0].startswith(f"{key}: ")


def test_what_changed_is_said_with_both_values():
    now = facts_of(replace(Config(), **{"hparams.lam": 0.5, "ppo.epochs": 2, "run.seed": 1}))
    changes = compare(FACTS, now)
    assert changes.harmless == ["ppo.epochs: 4 -> 2", "hparams.lam: 0.95 -> 0.5"]
    assert changes.structural == ["run.seed: 0 -> 1"]


def test_iterations_matter_to_a_warm_up_that_was_cut():
    """Of 20 iterations there was room for 9."""
    short, longer, long = (
        facts_of(replace(Config(), **{"optim.warmup": 20, "run.iterations": count}))
        for count in (10, 30, 100)
    )
    assert compare(short, long).harmless == ["run.iterations: 10 -> 100"]
    assert compare(longer, long) == ([], [], [])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_iterations_matter_to_a_schedule(schedule):
    then, now = (
        facts_of(replace(Config(), **{"optim.schedule": schedule, "run.iterations": count}))
        for count in (100, 300)
    )
    assert compare(then, now) == ([], ["run.iterations: 100 -> 300"], [])
    assert compare(FACTS, now).harmless[-1] == "run.iterations: 100 -> 300"


@pytest.mark.parametrize(
    "name, what",
    [
        ("data", "data.path: the file"),
        ("tokenizer", "the tokenizer"),
        ("weights", "model.path: the weights"),
        ("critic_weights", "model.critic_path: the weights"),
        ("reward_weights", "a reward model: the weights"),
        ("kind", "what is trained"),
    ],
)
def test_other_content_ends_it(path, name, what):
    now = facts_of(**{name: "other"})
    assert compare(FACTS, now) == ([f"{what} is not what it was"], [], [])
    for allowed in (False, True):
        message = refused(path, now, allow_config_change=allowed)
        assert "step 6 cannot be gone on from: " in message and f"{what} is not" in message
        assert "--run.cell" in message and "--run.dir" in message


def test_other_code():
    assert compare(FACTS, facts_of(reward="r1")).harmless == [
        "the experiment's code is not what it was"
    ]
    assert compare(FACTS, facts_of(reward=None)) == ([], [], [])  # called from no file
    assert compare(FACTS, facts_of(code="c1")).inexact == ["ppo_jax's code is not what it was"]


def test_other_machines_and_libraries():
    now = facts_of(
        versions={"jax": "0.11.0", "optax": "0.2.6"},
        devices={"platform": "cpu", "kind": "cpu", "count": 2, "processes": 1},
        compilers={"compiler": "cpu", "XLA_FLAGS": "--a=1", "cpu": "EPYC"},
    )
    said = ["count 4 -> 2", "jax 0.10.2 -> 0.11.0", "XLA_FLAGS None -> --a=1", "cpu Xeon -> EPYC"]
    assert compare(FACTS, now) == ([], [], said)


@pytest.mark.parametrize("kind", ["versions", "devices", "compilers"])
def test_what_an_older_version_did_not_record_tells_nothing(kind):
    then = facts_of()
    then[kind].popitem()
    assert compare(then, FACTS) == ([], [], [])
    del then[kind]
    assert compare(then, FACTS) == ([], [], [])


def test_a_new_run(tmp_path):
    assert start(tmp_path / "nowhere") == (None, [])
    assert start(tmp_path) == (None, [])


def test_the_newest_goes_on(path):
    before = tree(path)
    assert start(path) == start(path, strict_resume=True) == (6, [])
    assert start(path, facts_of(replace(Config(), **FREE)))[0] == 6
    assert tree(path) == before


def test_numbers_not_names_say_which_is_newest(path):
    make_step(path, 10)
    assert start(path) == (10, [])


def test_harmless_changes_need_a_word(path):
    now = facts_of(replace(Config(), **{"hparams.lam": 0.5}))
    message = refused(path, now)
    assert "hparams.lam: 0.95 -> 0.5" in message and "--allow_config_change" in message
    step, said = start(path, now, allow_config_change=True)
    assert step == 6 and len(said) == 1 and "hparams.lam: 0.95 -> 0.5" in said[0]


@pytest.mark.parametrize("key", STRUCTURAL)
def test_structural_changes_end_it(path, key):
    now = facts_of(replace(Config(), **{key: STRUCTURAL[key]}))
    for allowed in (False, True):
        assert f"{key}: " in refused(path, now, allow_config_change=allowed)


def test_inexact_changes_are_said(path):
    step, said = start(path, facts_of(code="c1"))
    assert step == 6 and len(said) == 1
    assert "not bit for bit: ppo_jax's code is not what it was" in said[0]
