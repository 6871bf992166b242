"""Workload files: their prompts are what they say, and their responses as long as they say."""

import dataclasses

import jax
import numpy as np
import pytest

from ppo_jax.config import Config, ModelConfig, replace
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import WORKLOADS, Experiment, list_experiments, load_experiment
from ppo_jax.programs import make_stepper
from ppo_jax.step import sample_rollout
from ppo_jax.validate import check_config
from ppo_jax.workload import (
    Workload,
    check_workload,
    constant,
    load_workload,
    random_dataset,
    workload_batch,
    workload_of,
)

NAMES = sorted(list_experiments(WORKLOADS))
ONE_LAYER = {"model.shape.num_layers": 1}


@pytest.mark.parametrize("name", NAMES)
def test_every_workload_is_complete(name):
    experiment = load_experiment(name, WORKLOADS)
    check_workload(experiment.base, experiment)
    assert experiment.doc.startswith(f"{name.capitalize()}: ")
    assert f"ppo-jax bench {name}" in experiment.doc and "Expected" in experiment.doc
    assert workload_of(experiment).platforms == (("cpu",) if name[0] == "w" else ("gpu", "tpu"))


def test_the_names():
    assert NAMES == "g1 g2 g3 w1 w1s w2 w3 w3s w4".split()
    assert not set(NAMES) & set(list_experiments())


@pytest.mark.parametrize("shared, own", [("w1s", "w1"), ("w3s", "w3")])
def test_the_shared_trunk_is_all_that_differs(shared, own):
    one, other = (load_experiment(name, WORKLOADS) for name in (shared, own))
    assert other.base.model.critic == "separate"
    assert one.base == replace(other.base, **{"model.critic": "shared"})
    assert one.workload == other.workload


def test_the_sentiment_workload_is_the_experiment_itself():
    one, other = load_experiment("g3", WORKLOADS), load_experiment("sentiment")
    assert one.base == other.base and workload_of(one).prompt_tokens is None


@pytest.mark.parametrize("name, sequences", [("w1", 64), ("w2", 16), ("w3", 64), ("w4", 16)])
def test_prompts_of_a_batch(name, sequences):
    experiment = load_experiment(name, WORKLOADS)
    workload, config = workload_of(experiment), experiment.base
    shortest, longest = workload.prompt_tokens
    shape = config.model.shape if config.model.path is None else ModelConfig(vocab_size=49152)
    dataset = random_dataset(workload, config, shape)
    assert config.rollout.batch_size == sequences and len(dataset.prompts) % sequences == 0
    stops = {*shape.eos_token_ids, *config.rollout.stop_token_ids, shape.pad_token_id}
    assert not stops & {i for ids in dataset.prompt_ids for i in ids}
    assert all(0 <= i < shape.vocab_size for ids in dataset.prompt_ids for i in ids)
    lengths = np.array([len(ids) for ids in dataset.prompt_ids]).reshape(-1, sequences)
    assert lengths.min() == shortest and lengths.max() == longest
    assert (np.sort(lengths, axis=1) == np.sort(lengths[0])).all()  # equal work in every batch
    np.testing.assert_allclose(lengths.mean(axis=1), (shortest + longest) / 2, atol=0.5)


def test_batches_are_the_rows_in_order_and_then_again():
    config = replace(Config(), **{"rollout.batch_size": 4, **ONE_LAYER, "model.path": None})
    experiment = Experiment("x", config, constant, None, "", Workload((2, 5), seed=3))
    run, _, _ = load_workload(replace(config, **{"parallel.data": 1}), experiment)
    batches = [workload_batch(run, experiment.workload, step) for step in range(9)]
    rows = [batch.prompt_index_B.tolist() for batch in batches]
    assert rows[0] == [0, 1, 2, 3] and rows[7] == [28, 29, 30, 31] and rows[8] == rows[0]
    for i, row in enumerate(rows[1]):
        ids = run.dataset.prompt_ids[row]
        assert batches[1].ids_BP[i][batches[1].mask_BP[i]].tolist() == ids
    again = random_dataset(experiment.workload, config, config.model.shape)
    other = random_dataset(Workload((2, 5), seed=4), config, config.model.shape)
    assert again.prompt_ids == run.dataset.prompt_ids != other.prompt_ids


def test_the_lengths_of_w3_are_geometric():
    """One layer of it, 512 sequences: each id is drawn about every 24th time, EOS too."""
    experiment = load_experiment("w3", WORKLOADS)
    config = replace(experiment.base, **ONE_LAYER, **{"rollout.batch_size": 512})
    run, state, frozen = load_workload(config, experiment)
    prompts = workload_batch(run, workload_of(experiment), 0)
    sample = jax.jit(lambda *arguments: sample_rollout(run.setup, *arguments))
    lengths_B = np.asarray(sample(state, frozen, run.hparams, prompts).lengths_B)
    # Mean and deviation of a geometric law are alike; 512 draws know the mean to 4.4 %.
    assert 19 <= lengths_B.mean() <= 29
    assert 0.8 <= lengths_B.std() / lengths_B.mean() <= 1.2
    assert lengths_B.max() <= 256 and (lengths_B < 10).mean() > 0.25


def test_full_responses_without_a_stop_id():
    experiment = load_experiment("w1", WORKLOADS)
    changes = {"rollout.batch_size": 8, "rollout.max_new_tokens": 5, "ppo.minibatches": 2}
    config = replace(experiment.base, **ONE_LAYER, **changes, **{"parallel.data": 1})
    run, state, frozen = load_workload(config, experiment)
    stepper = make_stepper(run)
    prompts = workload_batch(run, workload_of(experiment), 0)
    _, done = stepper.dispatch(state, frozen, 0, prompts)
    assert (np.asarray(done.rollout.lengths_B) == 5).all()
    assert (np.asarray(done.scores_B) == 0.0).all()
    assert float(done.metrics["update/steps"]) == 4 * 2


def test_small_vocabularies_are_for_prompts_of_ids():
    config = load_experiment("w3", WORKLOADS).base
    with pytest.raises(ConfigError, match="model.shape.vocab_size=24: the random model reads"):
        check_config(config)
    check_config(config, reads_text=False)


@pytest.mark.parametrize(
    "workload, says",
    [
        ({"prompt_tokens": 3}, "WORKLOAD is a dict; expected a ppo_jax.workload.Workload"),
        (Workload((5, 3)), r"must be \(shortest, longest\) .* nearest valid: \(3, 5\)"),
        (Workload((0, 3)), r"nearest valid: \(1, 3\)"),
    ],
)
def test_a_faulty_workload_is_named(workload, says):
    experiment = Experiment("x", Config(), constant, "x.py", "", workload)
    with pytest.raises(ConfigError, match=says):
        workload_of(experiment)


def test_no_id_left_for_prompts():
    shape = dataclasses.replace(ModelConfig(), vocab_size=4, eos_token_ids=(0, 1), pad_token_id=2)
    config = replace(Config(), **{"rollout.stop_token_ids": (3,)})
    with pytest.raises(ConfigError, match="rollout.stop_token_ids: all 4 ids stop"):
        random_dataset(Workload((1, 2)), config, shape)
