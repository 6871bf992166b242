"""XLA's flags: set once, for this process and its children, and never against the user's own."""

import os
import subprocess
import sys

import pytest

from ppo_jax.xla_flags import FLAGS, set_flags, with_flags

NAME, VALUE = next(iter(FLAGS["cpu"].items()))


@pytest.mark.parametrize("before", ["", "--xla_dump_to=/nowhere"])
def test_flags_are_added_once(monkeypatch, before):
    monkeypatch.setenv("XLA_FLAGS", before)
    set_flags()
    set_flags()
    words = os.environ["XLA_FLAGS"].split()
    assert words.count(f"--{NAME}={VALUE}") == 1
    assert [word for word in words if word in before.split()] == before.split()


@pytest.mark.parametrize("own", [f"--{NAME}=true", f"--{NAME}"])  # alone it means true
def test_the_users_own_flag_wins(own):
    words = with_flags(own).split()
    assert own in words and f"--{NAME}={VALUE}" not in words


def test_this_jax_knows_all_of_them():
    # An unknown flag ends the process with the first array.
    code = "from ppo_jax.xla_flags import set_flags; set_flags(); import jax; jax.numpy.ones(1)"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-400:]


def test_the_command_line_sets_them():
    code = (
        "import sys, os; from ppo_jax.main import main; main(['--version']);"
        f"sys.exit('{NAME}={VALUE}' not in os.environ['XLA_FLAGS'] or 'jax' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
