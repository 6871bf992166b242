"""Mixtures of tasks: each row is scored by its own task's reward, and its mean is of its rows."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import data
from ppo_jax.columns import take_texts, text_column
from ppo_jax.config import replace
from ppo_jax.errors import ConfigError, DataError, RewardError
from ppo_jax.loading import open_source, resolve_options
from ppo_jax.metrics import to_host
from ppo_jax.prepare import Opened, prepare
from ppo_jax.programs import make_stepper
from ppo_jax.reward import combine_scores
from ppo_jax.rewards.base import Part, check_values, parse_rewards, text_columns
from ppo_jax.rewards.by_task import by_task
from ppo_jax.rewards.exact import exact_match
from ppo_jax.rewards.host import Rows, Watched, call
from ppo_jax.tokenizer import byte_tokenizer
from reward_rows import make_rollout
from tiny_runs import CONFIG

TASKS = ["copy", "länge", "copy", ["länge", "copy"], "len", "copyist"]


def texts(values):
    return take_texts(
        text_column(values, byte_tokenizer(), 259, [""] * len(values)), np.arange(len(values))
    )


def long(rollout, columns):
    return rollout.lengths_B * 1.0


def tokens(rollout, columns):
    return jnp.where(rollout.mask_BT > 0, 1.0, jnp.nan)


def short(prompts, responses, limit, task):
    return [len(text) / top for text, top in zip(responses, limit, strict=True)]


def test_scores_and_means_are_of_the_rows_of_a_task():
    parts = parse_rewards([*by_task({"copy": long, "länge": (0.5, tokens)}), (0.25, long)])
    assert [(part.name, part.weight) for part in parts] == [
        ("copy", 1.0),
        ("copy.rows", 0.0),
        ("länge", 0.5),
        ("länge.rows", 0.0),
        ("long", 0.25),
    ]
    sizes = [1, 2, 3, 4, 5, 6]
    rollout = make_rollout([[65] * size for size in sizes], 9)
    columns = {"task": texts(TASKS)}
    raw = {part.name: jax.jit(part.device.fn)(rollout, columns, ()) for part in parts}
    scores = combine_scores(raw, {part.name: part.weight for part in parts}, rollout)
    n = np.array(sizes) + 1.0  # with the stop token
    copies, lengths = np.array([1, 0, 1, 1, 0, 0]), np.array([0, 1, 0, 1, 0, 0])
    np.testing.assert_allclose(scores.total_B, copies * n + 0.5 * lengths * n + 0.25 * n)
    np.testing.assert_allclose(scores.part_mean("copy"), (2 + 4 + 5) / 3)
    np.testing.assert_allclose(scores.part_mean("länge"), (3 + 5) / 2)
    np.testing.assert_allclose(scores.part_mean("copy.rows"), 3 / 6)
    np.testing.assert_array_equal(np.isnan(scores.parts["copy"]), copies == 0)
    assert text_columns(parts) == ("task",)


def test_a_reward_of_the_host_sees_the_rows_of_its_task_alone():
    seen = []

    def counted(prompts, responses, limit, unused=3, **others):
        seen.append((list(prompts), list(responses), list(limit), sorted(others)))
        return [float(x) for x in limit]

    part = parse_rewards(by_task({"copy": counted}))[0]
    assert list(inspect.signature(part.host).parameters)[2:] == [
        "limit",
        "unused",
        "task",
        "others",
    ]
    columns = {"limit": [10, 20, 30, 40, None, "x"], "task": TASKS, "more": [0] * 6}
    rows = Rows(list(range(6)), list("abcdef"), list("ABCDEF"), columns)
    np.testing.assert_array_equal(call(part, rows).scores["copy"], [10, 0, 30, 40, 0, 0])
    assert seen == [(["a", "c", "d"], ["A", "C", "D"], [10, 30, 40], ["more"])]
    none = rows.pick([1, 4])
    np.testing.assert_array_equal(call(part, none).scores["copy"], [0, 0])
    assert len(seen) == 1


def test_faults_of_a_reward_of_the_host_name_the_row():
    def bad(prompts, responses):
        for text in responses:
            if text == "C":
                raise ValueError("no")
        return [0.0]

    rows = Rows([7, 8, 9], ["a", "b", "c"], ["A", "B", "C"], {"task": ["x", "y", "x"]})
    with pytest.raises(RewardError, match="row 9 .*ValueError: no"):
        call(by_task({"x": bad})[0], rows)
    with pytest.raises(RewardError, match="returned 1 values for 2 rows of its task"):
        call(by_task({"x": lambda prompts, responses: [1.0]})[0], rows)
    with pytest.raises(RewardError, match="returned a dict .a.; expected a list"):
        call(by_task({"x": lambda prompts, responses: {"a": [1.0, 1.0]}})[0], rows)
    left = call(by_task({"x": bad})[0], rows, on_error="mask")
    assert list(left.failed) == [9]
    told = []
    shown = by_task({"y": lambda prompts, responses: [1.0 for _ in responses]})[0].host
    shown(rows.prompts, Watched(rows.responses, told.append), task=rows.columns["task"])
    assert told[-2:] == [1, -1]


def test_tasks_without_a_reward_and_malformed_mixtures(tmp_path):
    part = by_task({"copy": long, "len": long})[1]
    check_values(part, {"task": ["copy", ["len", "copy"]]}, [1, 2], "f.jsonl")
    for given in ("cop", ["len", "cop"], 3, None):
        with pytest.raises(DataError, match=r"f\.jsonl:9: task is .*known: copy, len"):
            check_values(part, {"task": ["copy", given]}, [8, 9], "f.jsonl")
    for rewards in ({}, [long], {"": long}, {"a": [long, long]}, {"a": 3}):
        with pytest.raises(ConfigError):
            by_task(rewards)
    assert parse_rewards((2.0, Part("a", 0.5, None, short)))[0].weight == 1.0


def test_the_mean_of_an_absent_task_is_left_out():
    metrics = {"reward/a": jnp.nan, "reward/a.rows": 0.0, "reward/b": 0.5, "reward/b.rows": 0.25}
    found = to_host({name: jnp.float32(value) for name, value in metrics.items()})
    assert found == {"reward/a.rows": 0.0, "reward/b": 0.5, "reward/b.rows": 0.25}


def test_in_a_run_with_rewards_of_both_kinds(tmp_path):
    path = tmp_path / "mixed.jsonl"
    tasks = ["long", "short", "short", "never"]
    rows = [{"prompt": "abcdef"[n % 5 :], "task": tasks[n % 3], "limit": n + 1} for n in range(16)]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = open_source(None, CONFIG.model.shape)
    config = replace(
        CONFIG,
        model=resolve_options(CONFIG.model, source),
        **{"data.path": str(path), "rollout.batch_size": 16},
    )
    parts = parse_rewards(by_task({"long": long, "short": (2.0, short), "never": long}))
    dataset = data.load_dataset(
        config.data, source.tokenizer, vocab_size=259, texts=text_columns(parts)
    )
    run, state, frozen = prepare(Opened(config, source, None, dataset, parts))
    batch = data.make_batch(dataset, config, 0, pad_id=run.pad_id, width=run.width)
    _, done = make_stepper(run).dispatch(state, frozen, 0, batch)
    found = to_host(done.metrics)
    lengths, ids_BT = np.asarray(done.rollout.lengths_B), np.asarray(done.rollout.response_ids_BT)
    wanted = {"long": [], "short": []}
    for row, n, ids in zip(batch.prompt_index_B, lengths, ids_BT, strict=True):
        text = run.tokenizer.decode(ids[:n], skip_special_tokens=True)
        limit, task = rows[row]["limit"], rows[row]["task"]
        wanted[task].append(n if task == "long" else len(text) / limit)
    for task, scores in wanted.items():
        assert found[f"reward/{task}"] == pytest.approx(np.mean(scores), rel=1e-5)
        assert found[f"reward/{task}.rows"] == pytest.approx(len(scores) / 16)
    assert "reward/never" not in found and found["reward/never.rows"] == 0
    total = sum(wanted["long"]) + 2 * sum(wanted["short"])
    assert found["objective/scores"] == pytest.approx(total / 16, rel=1e-5)


@pytest.mark.parametrize(
    "rewards",
    [
        [exact_match(name="qa"), *by_task({"qa": exact_match()})],
        [*by_task({"qa": exact_match()}), exact_match(name="qa")],
        [*by_task({"qa": exact_match()}), *by_task({"qa": exact_match()})],
    ],
)
def test_a_task_shares_its_name_with_no_other_reward(rewards):
    with pytest.raises(ConfigError, match="a second one of that name, where qa is a task"):
        parse_rewards(rewards)
