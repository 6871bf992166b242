"""What the README shows works as pasted: its example, its commands, its file table."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from ppo_jax.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example_run(tmp_path_factory):
    """The README's example file, trained for two iterations on a tiny random model."""
    folder = tmp_path_factory.mktemp("readme")
    (source,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (folder / "mine.py").write_text(source)
    (row,) = re.findall(r"# lines like (\{.*\})", source)
    rows = [json.loads(row) | {"prompt": f"Tell me about {name}."} for name in ("Rome", "Oslo")]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = "--model.path None --run.iterations 2 --run.compile_cache None".split()
        assert main(["train", "mine.py", *flags]) == 0
    return folder / "runs" / "mine" / "base" / "seed0"


def test_example_trains_as_pasted(example_run):
    lines = (example_run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert all(json.loads(line)["val/ratio_first_max_dev"] <= 1e-5 for line in lines)


def test_commands_on_a_run(example_run, tmp_path):
    """`generate`, `score` and `export` with the README's flags, RUN being the example's run."""
    commands = re.findall(r"^    ppo-jax (.*?)(?:  +#.*)?$", README, re.M)
    assert [command.split()[0] for command in commands] == ["generate", "score", "export"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "bcd"}\n')
    names = {"RUN": str(example_run), "my-model": str(tmp_path / "my-model")}
    names |= {n: str(tmp_path / n) for n in re.findall(r"\w+\.jsonl", " ".join(commands))}
    for command in commands:
        assert main([names.get(word, word) for word in command.split()]) == 0
    rows = [json.loads(line) for line in (tmp_path / "continuations.jsonl").open()]
    scored = [json.loads(line) for line in (tmp_path / "logprobs.jsonl").open()]
    assert [row["prompt"] for row in rows] == ["a", "bcd"]
    assert [row["ids"] for row in scored] == [row["response_ids"] for row in rows]
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_make_targets_exist():
    targets = set(re.findall(r"`?make ([a-z-]+)", README)) - {"and"}
    assert {"train", "test", "smoke", "lint"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_file_table_names_files_that_exist():
    table = README[README.index("| file |") : README.index("## Your own model")]
    names = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(names) > 20
    assert [name for name in names if not (ROOT / "ppo_jax" / name).exists()] == []


def test_step_is_the_one_in_the_code():
    body = lambda text: [line.split("#")[0].split() for line in text.splitlines()]
    shown = re.search(r"    def train_step\(.*?(?=\n\n)", README, re.S)[0]
    code = (ROOT / "ppo_jax" / "step.py").read_text(encoding="utf-8")
    calls = body(shown)[1:]
    assert all(call in body(code) for call in calls)


def test_length():
    assert README.count("\n") <= 150
