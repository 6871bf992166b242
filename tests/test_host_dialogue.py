"""Environments in ordinary Python: dialogues turn by turn, and the errors of their players."""

import threading
import types
from fractions import Fraction

import jax
import numpy as np
import pytest

from ppo_jax import data
from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    ParallelOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
    replace,
)
from ppo_jax.envs.host import (
    HostEnv,
    caller,
    check_answer,
    check_host_environment,
    check_measures,
    check_text,
    gymnasium_env,
)
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.prepare import open_run_of, prepare, read_dataset
from ppo_jax.programs import make_stepper
from ppo_jax.rewards.environment import environment_reward
from ppo_jax.tokenizer import decode

SHAPE = ModelConfig(embed_dim=16, num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=16)
A, TURNS, T = 3, 4, 24
STOPS = tuple(range(0, 256, 5))


class Teller:
    """Answers with what it heard; its class says what goes wrong."""

    fault: str = ""
    made: list["Teller"] = []

    def __init__(self):
        Teller.made.append(self)

    def reset(self, seed, row):
        self.seed, self.heard, self.said = seed, [], [f"{seed % 100}:" if seed % 3 else ""]
        if Teller.fault == "reset":
            return row["no such column"]
        return "x" * T if Teller.fault == "long" else self.said[0]

    def step(self, action):
        self.heard.append(action)
        number = sum(action.encode())
        self.said.append("." * (number % 6))
        if Teller.fault == "step" and len(Teller.made) > 1 and self is Teller.made[1]:
            raise ZeroDivisionError("of a tool")
        if Teller.fault == "hang":
            threading.Event().wait(60)
        if Teller.fault == "cut":
            return "...", 1.0, False, len(self.heard) == 2
        answer = self.said[-1], len(self.heard) + number / 1000, number % 7 == 0
        return {"tuple": answer[:2], "nan": (answer[0], float("nan"), False)}.get(
            Teller.fault, answer
        )

    def measures(self):
        if Teller.fault == "measures" and self is Teller.made[-1]:
            return {"other": 1.0}
        if Teller.fault == "names":
            return {"other": 1.0}
        return {"heard": len("".join(self.heard))}


ENV = HostEnv("teller", Teller, A, TURNS, timeout=3.0)


@pytest.fixture(scope="module")
def run():
    """(run, dispatch, first state, frozen, prompts) of one small run for all tests."""
    Teller.made.clear()  # of an earlier one, where its tests are shared out among processes
    rollout = RolloutOptions(batch_size=12, max_new_tokens=T, stop_token_ids=STOPS)
    config = Config(
        model=ModelOptions(path=None, shape=SHAPE, remat="none"),
        data=DataOptions(path="experiments/data/tiny.jsonl", max_prompt_tokens=12),
        rollout=rollout,
        ppo=PPOOptions(epochs=1, token_sizes=None, bootstrap_truncated=True),
        parallel=ParallelOptions(data=2),
        run=RunOptions(iterations=2),
        hparams=HParams(kl_coef=0.01),
    )
    opened = open_run_of(config, environment_reward(), read_dataset, ENV)
    run, state, frozen = prepare(opened)
    prompts = data.make_batch(run.dataset, config, 0, pad_id=run.pad_id, width=run.width)
    return run, make_stepper(run).dispatch, state, frozen, prompts


def iterate(run, step=0):
    """(rollout, metrics, texts heard and said of each row) of an iteration from the first state."""
    setup, dispatch, state, frozen, prompts = run
    _, done = dispatch(jax.tree.map(lambda x: x.copy(), state), frozen, step, prompts)
    rollout, metrics = jax.device_get((done.rollout, done.metrics))
    return rollout, metrics, [(player.heard, player.said) for player in Teller.made]


@pytest.fixture(scope="module")
def first(run):
    return iterate(run)


def test_rows_are_what_was_heard_and_said(run, first):
    rollout, metrics, told = first
    ends = set()
    for b, (heard, said) in enumerate(told):
        ids, own = rollout.response_ids_BT[b], rollout.mask_BT[b] > 0
        position, rewards = len(said[0]), []
        assert not own[:position].any()
        for turn, action in enumerate(heard):
            length = 1
            while length < A and ids[position + length - 1] not in STOPS + (257,):
                length += 1
            assert own[position : position + length].all()
            assert decode(run[0].tokenizer, ids[position : position + length]) == action
            position += length
            rewards.append((position - 1, turn + 1 + sum(action.encode()) / 1000))
            done = sum(action.encode()) % 7 == 0
            if not done and position + len(said[turn + 1]) <= T:
                assert (
                    decode(run[0].tokenizer, ids[position:][: len(said[turn + 1])])
                    == said[turn + 1]
                )
                assert not own[position : position + len(said[turn + 1])].any()
                position += len(said[turn + 1])
        assert rollout.ended_B[b] == done and rollout.measures["turns"][b] == len(heard)
        cut_within = T - position if len(heard) < TURNS and not done else 0
        assert position <= rollout.lengths_B[b] <= position + min(cut_within, A - 1)
        wanted_T = np.zeros(T, np.float32)
        for at, reward in rewards:
            wanted_T[at] = reward
        np.testing.assert_allclose(rollout.env_rewards_BT[b], wanted_T, rtol=1e-6)
        ends.add("done" if done else "turns" if len(heard) == TURNS else "tokens")
    assert ends >= {"done", "turns"}
    assert metrics["env/heard"] == pytest.approx(rollout.measures["heard"].mean())
    assert metrics["objective/scores"] == pytest.approx(rollout.env_rewards_BT.sum(1).mean())


def test_what_was_written_is_scored_as_it_was_drawn(first):
    _, metrics, _ = first
    assert metrics["val/ratio_first_max_dev"] <= 1e-5
    assert metrics["rollout/logprob_gap_max"] <= 1e-5


def test_an_iteration_again_is_the_same_and_another_one_is_not(run, first):
    again, _, told = iterate(run)
    jax.tree.map(np.testing.assert_array_equal, again, first[0])
    assert told == first[2] and len(Teller.made) == 12  # players are reset, not made again
    other, _, _ = iterate(run, step=1)
    assert np.any(other.response_ids_BT[:, :2] != again.response_ids_BT[:, :2])
    assert len({player.seed for player in Teller.made}) == 12


FAULTS = {
    "reset": r"teller: reset raised on row 0 \(prompt '.*'\): KeyError: 'no such column'$",
    "long": "reset returned 24 tokens on row 0 .*, rollout.max_new_tokens is 24; expected at most",
    "step": r"teller: step raised on row 1 \(prompt '.*'\): ZeroDivisionError: of a tool$",
    "hang": "teller: step took more than 3 s on row 0",
    "tuple": r"step returned .* of type tuple on row 0 .*; expected a tuple \(text, reward, done",
    "nan": "step returned 'nan' of type float on row 0 .*; expected reward as a finite number",
    "names": r"measures returned \['other', 'turns'\], before \['heard', 'turns'\]; expected",
    "measures": "measures returned .*'other'.* on row 11 .*; expected the same names",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_player_does_wrong_is_said_in_one_line(run, first, fault, monkeypatch):
    monkeypatch.setattr(Teller, "fault", fault)
    with pytest.raises(RewardError, match=FAULTS[fault]) as caught:
        iterate(run)
    assert "\n" not in str(caught.value)


class Mute:
    """A value that cannot be shown."""

    def __repr__(self):
        raise TypeError("no text")


NO_NUMBERS = {"int": 10**400, "digits": -(10**5000), "float": 1e39, "Fraction": Fraction(10**400)}
NO_NUMBERS |= {"Mute": Mute(), "str": "1", "ndarray": np.ones(1), "None": None, "inf": -np.inf}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_float32_does_not_hold_is_no_reward_and_no_measure(kind):
    value = NO_NUMBERS[kind]
    says = rf"teller: step returned .* of type {type(value).__name__} on row 0; expected reward as"
    with pytest.raises(RewardError, match=says) as caught:
        check_answer(ENV, "row 0", ("a", value, False))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(RewardError, match="measures returned .* on row 0; expected x as a finite"):
        check_measures(ENV, "row 0", {"x": value})


def test_numbers_of_all_kinds_are_rewards():
    given = [1, True, 0.5, Fraction(1, 4), np.float32(0.25), np.array(2), jax.numpy.float32(3)]
    answers = [check_answer(ENV, "row 0", ("a", value, False)) for value in given]
    assert answers == [("a", number, False, False) for number in (1, 1, 0.5, 0.25, 0.25, 2, 3)]
    assert {type(answer[1]) for answer in answers} == {float}


def test_what_cannot_be_shown_is_refused_in_one_line():
    ends = "done as a bool"
    for answer, wanted in ((("a", 1, Mute()), ends), (("a", 1, 10**5000), ends), ((10**5000,), "")):
        with pytest.raises(RewardError, match=f"step returned .* on row 0; expected .*{wanted}"):
            check_answer(ENV, "row 0", answer)
    for text in (Mute(), np.ones((3, 3))):
        with pytest.raises(RewardError, match="reset returned .* expected a str$") as caught:
            check_text(ENV, "reset", "row 0", text)
        assert "\n" not in str(caught.value)


class MuteError(Mute, Exception):
    __str__ = Mute.__repr__


def test_an_error_that_cannot_be_shown_is_named():
    def step():
        raise MuteError

    with pytest.raises(RewardError, match="teller: step raised on row 0: MuteError$"):
        caller(ENV)("step", "row 0", step)


def test_a_dialogue_that_is_cut_off_has_not_ended(run, first, monkeypatch):
    """What it says at the cut is read, for the value of the state there."""
    monkeypatch.setattr(Teller, "fault", "cut")
    rollout, _, _ = iterate(run)
    assert not rollout.ended_B.any() and set(rollout.measures["turns"]) <= {1.0, 2.0}
    cut_B = rollout.measures["turns"] == 2
    assert cut_B.any()
    for ids_T, length in zip(rollout.response_ids_BT[cut_B], rollout.lengths_B[cut_B], strict=True):
        assert bytes(ids_T[length - 3 : length].tolist()) == b"..."


def test_all_calls_come_from_one_thread():
    call = caller(ENV)
    names = [call("make", "here", threading.get_ident) for _ in range(3)]
    assert len(set(names)) == 1 and names[0] != threading.get_ident()
    with pytest.raises(RewardError, match="step took more than 0.1 s on here"):
        slow = caller(ENV._replace(timeout=0.1))
        slow("step", "here", threading.Event().wait, 30)
    assert slow("step", "here", lambda: 5) == 5


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"rollout.max_new_tokens": 2}, "max_new_tokens=2: an action .* up to 3 .* valid: 3$"),
        ({"rollout.min_new_tokens": 1}, "min_new_tokens=1: .* nearest valid: 0$"),
    ],
)
def test_what_it_cannot_serve_is_refused(run, changes, line):
    with pytest.raises(ConfigError, match=line):
        check_host_environment(ENV, replace(run[0].config, **changes))


def test_gymnasium_environments_are_players():
    calls = []
    env = types.SimpleNamespace(
        reset=lambda *, seed: (calls.append(seed) or [seed], {}),
        step=lambda action: ([action], np.float32(0.5), False, action > 1, {}),
    )
    made = gymnasium_env(lambda: env, str, len, name="counter", max_turns=5)
    player = made.make()
    assert (made.name, made.max_turns, made.max_action_tokens) == ("counter", 5, 8)
    assert player.reset(7, {}) == "[7]" and calls == [7]
    assert player.step("a") == ("[1]", 0.5, False, False)
    assert player.step("ab") == ("[2]", 0.5, False, True)
