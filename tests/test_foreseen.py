"""Plans of experiments whose first stages are still to be run."""

import io

import jax
import pytest
from rich.console import Console

from builders import tiny_model
from ppo_jax.arguments import PlanArgs
from ppo_jax.config import replace
from ppo_jax.cost import seen_pairs, trunk_flops
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment, load_experiment
from ppo_jax.loading import load_trunk, open_source
from ppo_jax.main import main
from ppo_jax.plan import as_json, plan
from ppo_jax.plan_report import show_plan
from ppo_jax.planned import open_planned
from ppo_jax.rewards.learned import learned_reward

TINY = load_experiment("tiny")
H200 = PlanArgs(device="h200")
BYTES = {"vocab_size": 259, "eos_token_ids": (257,), "pad_token_id": 258, "max_positions": 64}
SFT_SHAPE = tiny_model(num_layers=3, **BYTES)
STAGES = {
    "model.path": "@sft",
    "model.critic": "separate",
    "model.critic_path": "@reward-model",
    "data.max_prompt_tokens": 16,
}


def staged(tmp_path, **changes) -> Experiment:
    """An experiment of three stages, of which none has been run."""
    base = replace(TINY.base, **(STAGES | {"run.dir": str(tmp_path)} | changes))
    sft = replace(base, **{"model.path": None, "model.critic": "shared", "model.critic_path": None})
    sft = replace(sft, **{"model.shape": SFT_SHAPE})
    rewarding = replace(
        sft, **{"model.path": "@sft", "model.shape": tiny_model(num_layers=7, **BYTES)}
    )
    return TINY._replace(
        name="staged",
        given=None,
        base=base,
        reward=learned_reward(),
        sft=sft,
        reward_model=rewarding,
        workload=None,
    )


def test_stages_that_are_still_to_be_run_are_planned_by_their_shapes(tmp_path):
    """The reward model begins from the SFT model, and that from the shape in the file."""
    experiment = staged(tmp_path)
    planned = open_planned(experiment, experiment.base, "gpu", 1)
    case = planned.case
    assert case.model == case.critic == SFT_SHAPE and planned.unmade == ("@sft", "@reward-model")
    (reward,) = case.reward_models
    assert reward.model == SFT_SHAPE and not reward.scanned
    made = plan(experiment, experiment.base, H200)
    console = Console(width=140, file=io.StringIO(), _environ={})
    show_plan(made, console=console)
    text = console.file.getvalue()
    assert "@sft, @reward-model: by the shape" in text and "reward reward_model" in text
    assert as_json(made)["not_made_yet"] == ["@sft", "@reward-model"]
    assert list(made.phases) == ["rollout", "score", "reward", "update"]
    whole_B = made.lengths.prompt_B + made.lengths.response_B  # the last token is read as well
    flops = trunk_flops(SFT_SHAPE, float(whole_B.sum()), seen_pairs(SFT_SHAPE, whole_B))
    assert made.phases["reward"].work.flops == pytest.approx(flops)


def test_a_judge_that_is_a_model_is_held_beside_the_policy(tmp_path):
    """In the memory of a run that looks at held-out rows, and in no phase's work."""
    judged = {"data.eval_path": "rows.jsonl", "run.eval_every": 5}
    experiment = staged(tmp_path, **judged)._replace(judge=learned_reward(), reward=TINY.reward)
    made = plan(experiment, experiment.base, H200)
    unheld = plan(experiment, replace(experiment.base, **{"run.eval_every": None}), H200)
    # In bfloat16, as a reward's.
    weights = 2 * sum(x.size for x in jax.tree.leaves(load_trunk(open_source(None, SFT_SHAPE))))
    for name, parts in unheld.memory.phases.items():
        more = made.memory.phases[name]["params"] - parts["params"]
        assert more == pytest.approx(weights, rel=0.01), name
    assert list(made.judges) == ["judge.reward_model"] and not unheld.judges
    assert made.phases == unheld.phases


def test_a_stage_of_adapters_hands_on_what_it_adapts(tmp_path):
    experiment = staged(tmp_path, **{"model.lora.rank": 2})
    sft = replace(experiment.sft, **{"model.lora.rank": 4, "model.lora.targets": ("q", "v")})
    experiment = experiment._replace(sft=sft)
    planned = open_planned(experiment, experiment.base, "gpu", 1)
    assert planned.config.model.lora.targets == ("q", "v") and planned.config.model.lora.rank == 2


@pytest.mark.parametrize(
    "change, says",
    [
        ({"sft": None}, "@sft: no run .*/sft/seed0, and the experiment staged has no SFT; exp"),
        ({"reward": learned_reward("@train")}, "@train: no run .*`ppo-jax train staged"),
        ({"reward": learned_reward("@rewards")}, "no stage of an experiment; nearest .*@reward"),
    ],
)
def test_what_is_to_be_run_first_is_one_line(tmp_path, change, says):
    experiment = staged(tmp_path)._replace(**change)
    with pytest.raises(ConfigError, match=says) as error:
        plan(experiment, experiment.base, H200)
    assert "\n" not in str(error.value)


def test_a_stage_that_begins_from_itself_is_to_be_run(tmp_path):
    experiment = staged(tmp_path)
    sft = replace(experiment.sft, **{"model.path": "@sft"})
    with pytest.raises(ConfigError, match="@sft: no run"):
        plan(experiment._replace(sft=sft), experiment.base, H200)


def test_a_reward_model_of_another_vocabulary_is_refused(tmp_path):
    experiment = staged(tmp_path, **{"model.critic_path": None})
    wider = replace(experiment.base, **{"model.path": None})
    wider = replace(wider, **{"model.shape": tiny_model(**BYTES | {"vocab_size": 300})})
    with pytest.raises(ConfigError, match="reward reward_model: @reward-model reads another voc"):
        plan(experiment, wider, H200)


def test_the_command_plans_what_has_no_runs_yet(tmp_path, capsys):
    words = ["plan", "dialogue", "--run.dir", str(tmp_path), "--device", "h200"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "@sft, @reward-model: by the shape" in said and "fits: " in said
