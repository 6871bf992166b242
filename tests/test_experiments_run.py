"""Every experiment runs: its stages one after another, two iterations each, on a few rows."""

import json

import pytest

from ppo_jax.config import Config
from ppo_jax.eval_run import NUMBERS
from ppo_jax.experiment import list_experiments, load_experiment
from ppo_jax.main import main
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.pipeline import commands_of
from ppo_jax.run_folder import run_folder

# Whose responses are cut to a few tokens: a real model, and what reads its text does not mind.
LARGE = {"sentiment": ["--rollout.max_new_tokens", "4"]}
# Those whose `eval` is unlike every other: by a judge, with an environment, by task.
NUMBERS_OF = {
    "dialogue": {"judge", "judge.by_the_rule"},
    "maze": {"env/success", "env/spl"},
    "mixture": {"translate", "summarize", "qa", "qa.rows"},
}


def small(config: Config, rows: int) -> list[str]:
    """Flags that make a stage small: as few sequences as its parts and samples allow."""
    least = config.ppo.minibatches * config.ppo.microbatches * config.rollout.samples_per_prompt
    flags = {
        "rollout.batch_size": least * -(-rows // least),
        "data.eval_rows": 4,
        "parallel.data": 1,
        "ppo.token_sizes": None,
        "run.iterations": 2,
        "run.checkpoint_every": 2,
        "run.show_prompts": 0,
        "run.profile_after": 0,
        "run.progress": False,
        "reward.workers": 0,
    }
    if config.run.eval_every is not None:
        flags["run.eval_every"] = 2
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("name", sorted(list_experiments()))
def test_two_iterations_of_every_stage(name, tmp_path):
    experiment = load_experiment(name)
    configs = {"sft": experiment.sft, "reward-model": experiment.reward_model}
    for command, *words in commands_of(experiment, [name, "--run.dir", str(tmp_path)]):
        if command == "eval" and name not in NUMBERS_OF:
            continue
        config = configs.get(command, experiment.base)
        assert main([command, *words, *small(config, 8), *LARGE.get(name, [])]) == 0
        folder = run_folder(tmp_path / name / config.run.cell / "seed0")
        if command == "eval":
            numbers = json.loads((folder.root / NUMBERS).read_text())
            assert NUMBERS_OF[name] <= numbers["metrics"]["model"].keys()
            assert (numbers["wins"] is None) == (experiment.sft is None)
            continue
        assert json.loads(folder.status.read_text())["status"] == "done"
        assert [row["step"] for row in read_metrics(folder.metrics)] == [0, 1]
        if command == "train":
            by_policy = {row["written"] == row["tokens"] for row in read_samples(folder.samples)}
            assert by_policy == {experiment.environment is None}
        if config.data.eval_path is not None and config.run.eval_every is not None:
            assert any(key.startswith("eval/") for key in read_metrics(folder.metrics)[-1])
