"""What a run is put together from: rewards that do not fit, a critic with a checkpoint."""

import errno
import functools
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ppo_jax import book, checkpoint, manifest
from ppo_jax.config import replace
from ppo_jax.errors import CheckpointError, ConfigError, Preempted, RewardError, StorageError
from ppo_jax.experiment import Experiment
from ppo_jax.loading import open_source
from ppo_jax.metrics import read_metrics
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import open_critic
from ppo_jax.restore import Unreadable, abstract_like, restore, restore_params
from ppo_jax.run_folder import read_status, run_folder
from ppo_jax.train import train
from tiny_runs import CONFIG, ascii_share, write_prompts

# One program a test: what is shown is a matter of shapes and names, not of many iterations.
SMALL = {"reward.reference": "fixed", "hparams.reference_decay": None, "run.iterations": 2}


def launch(folder, reward, preemption=None, **changes):
    fixed = {"run.dir": str(folder), "data.path": write_prompts(folder)}
    config = replace(CONFIG, **(SMALL | fixed | changes))
    train(config, Experiment("case", config, reward, folder, ""), preemption=preemption)
    return run_folder(folder / "case" / config.run.cell / "seed0")


@pytest.mark.parametrize("shape", ["column", "scalar", "too long"])
def test_a_score_of_another_shape_is_refused(tmp_path, shape):
    def crooked(rollout, columns):
        score_B = ascii_share(rollout, columns)
        return {"column": score_B[:, None], "scalar": score_B.sum(), "too long": score_B.repeat(2)}[
            shape
        ]

    with pytest.raises(RewardError, match=r"reward crooked: returned shape \[.*\], expected .*\[8"):
        launch(tmp_path, crooked)


def test_a_device_reward_that_fails_names_itself_and_the_columns(tmp_path):
    def absent(rollout, columns):
        return columns["bost"]

    with pytest.raises(RewardError, match=r"reward absent: KeyError: 'bost' \(numeric.*: boost\)"):
        launch(tmp_path, absent)


def test_a_host_reward_must_keep_its_names(tmp_path):
    calls = []

    def moody(prompts, responses):
        calls.append(1)
        return {"first" if len(calls) == 1 else "second": [0.0] * len(prompts)}

    with pytest.raises(RewardError, match="moody/second.*in the first batch.*moody/first"):
        launch(tmp_path, moody)


def test_critic_goes_on_from_the_run_it_was_trained_in(tmp_path):
    """With no step taken, the second run's critic is the first run's, head and trunk."""
    separate = {"model.critic": "separate"}
    first = launch(tmp_path, ascii_share, **separate)
    still = {"hparams.learning_rate": 1e-30, "run.cell": "next", "run.iterations": 1}
    second = launch(
        tmp_path, ascii_share, **(separate | still), **{"model.critic_path": str(first.root)}
    )
    old, new = (restore_params(folder.checkpoints)["value"] for folder in (first, second))
    assert np.abs(old["head"]["kernel"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_unusable_critic_is_named_before_anything_is_loaded(tmp_path):
    separate = {"model.critic": "separate", "model.critic_path": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match="none"):
        launch(tmp_path, ascii_share, **separate)
    assert [p.name for p in (tmp_path / "case").rglob("*") if p.is_file()] == ["lock"]
    first = launch(tmp_path, ascii_share)
    config = replace(CONFIG, **separate, **{"rollout.max_new_tokens": 600})
    config = replace(config, **{"model.critic_path": str(first.root)})
    with pytest.raises(ConfigError, match=r"model\.critic_path=.*512 positions"):
        open_critic(config, open_source(None, config.model.shape))


def test_fixed_coefficient_is_the_hyper_parameter_from_the_first_iteration_on(tmp_path):
    changes = {"reward.kl_controller": "fixed", "hparams.kl_target": None, "hparams.kl_coef": 0.37}
    run = launch(tmp_path, ascii_share, **changes)
    coefs = [row["objective/kl_coef"] for row in read_metrics(run.metrics)]
    np.testing.assert_allclose(coefs, 0.37, rtol=1e-6)


def test_old_checkpoints_that_stay_do_not_make_a_saved_step_an_error(tmp_path, monkeypatch, capsys):
    def stays(path, step):
        raise PermissionError(errno.EACCES, "not yours")

    def asks(prompts, responses, **columns):
        calls.append(preemption.asked.set() if len(calls) == 2 else None)
        return [0.0] * len(prompts)

    calls, preemption = [], Preemption()
    monkeypatch.setattr(checkpoint, "remove", stays)
    changes = {"run.iterations": 9, "run.checkpoint_every": 1, "run.keep": 1, "reward.workers": 0}
    with pytest.raises(Preempted, match="saved step 3"):
        launch(tmp_path, asks, preemption, **changes)
    assert "older checkpoints cannot be removed" in capsys.readouterr().err.splitlines()[-1]
    steps = manifest.steps(run_folder(tmp_path / "case" / "base" / "seed0").checkpoints)
    assert steps == [1, 2, 3]
    run = launch(tmp_path, asks, **changes | {"run.iterations": 4})  # nor a run that is complete
    assert manifest.steps(run.checkpoints) == [1, 2, 3, 4] and read_status(run)["status"] == "done"


@pytest.fixture(name="saved")
def _saved(tmp_path):
    """A run of two checkpoints that is to go on."""
    changes = {"run.checkpoint_every": 1, "reward.workers": 0}
    run = launch(tmp_path, ascii_share, **changes)
    assert manifest.steps(run.checkpoints) == [1, 2]
    again = functools.partial(launch, tmp_path, ascii_share, **changes | {"run.iterations": 3})
    return run, again


def test_what_no_checkpoint_can_be_restored_for_moves_none(saved, monkeypatch):
    """It may be the machine: a device whose memory another program holds."""
    run, again = saved

    def fails(path, step, abstract):
        raise Unreadable(f"step {step} cannot be restored (RESOURCE_EXHAUSTED)")

    with monkeypatch.context() as patched:
        patched.setattr("ppo_jax.train.restore", fails)
        with pytest.raises(CheckpointError, match="step 2 cannot.*; step 1 cannot"):
            again()
    assert manifest.steps(run.checkpoints) == [1, 2] and not list(run.checkpoints.glob("*.corr*"))
    again()
    assert [row["step"] for row in read_metrics(run.metrics)] == [0, 1, 2]


def test_one_that_cannot_be_read_is_put_aside_for_the_one_before_it(saved, monkeypatch, capsys):
    run, again = saved

    def fails(path, step, abstract):
        if step == 2:
            raise Unreadable("step 2 cannot be restored")
        return restore(path, step, abstract)

    monkeypatch.setattr("ppo_jax.train.restore", fails)
    again()
    assert "put aside as 2.corrupt, going on from step 1" in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(run.metrics)] == [0, 1, 2]


def test_there_is_one_state_on_the_devices_while_another_is_restored(saved, monkeypatch):
    _, again = saved
    first, gone = [], []

    def seen(state):
        first.extend(jax.tree.leaves(state))
        return abstract_like(state)

    def restored(path, step, abstract):
        gone.extend(x.is_deleted() for x in first)
        return restore(path, step, abstract)

    monkeypatch.setattr("ppo_jax.train.abstract_like", seen)
    monkeypatch.setattr("ppo_jax.train.restore", restored)
    again()
    assert len(gone) > 20 and all(gone)


def test_the_status_names_a_save_once_it_is_there(saved, monkeypatch):
    _, again = saved
    said = []
    monkeypatch.setattr(
        "ppo_jax.book.write_status",
        lambda folder, status, step, saved: said.append(
            (saved, manifest.latest_step(folder.checkpoints))
        ),
    )
    again(**{"run.iterations": 6})
    assert said and all(saved == newest for saved, newest in said)


def _book(finishing):
    return SimpleNamespace(saver=SimpleNamespace(finishing=finishing))


def test_a_line_is_written_after_the_save_that_filled_the_disk():
    room = threading.Event()
    save = threading.Thread(target=lambda: (time.sleep(0.2), room.set()))
    save.start()
    tries = []

    def write():
        tries.append(room.is_set())
        if not room.is_set():
            raise StorageError("no space")

    book._log(_book(save), write)
    assert tries == [False, True]


def test_a_line_that_cannot_be_written_without_a_save():
    tries = []

    def write():
        tries.append(1)
        raise StorageError("no space")

    with pytest.raises(StorageError, match="no space"):
        book._log(_book(None), write)
    assert len(tries) == 1
