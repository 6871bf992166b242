"""A workload's whole step compiled for a chip that need not be here: kernels, copies, memory.

    python experiments/bench/_compile_for.py g1 --device h200 [--section.key VALUE ...]

Nothing runs, so nothing is timed. The chip's compiler comes from PyPI (`README.md`, "Compiled for
chips that are not here"). Writes results/<workload>-compiled-<device>-<time>.json.
"""

import os

from ppo_jax.xla_flags import with_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no metadata server to wait for
# Without a device nothing can be tuned, and untuned Triton products of float32 do not compile.
os.environ["XLA_FLAGS"] = with_flags(
    os.environ.get("XLA_FLAGS", "")
    + " --xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
)

import argparse
import time
from pathlib import Path
from typing import Any

from _hlo import collectives, decode_loops, phase_launches
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from ppo_jax.abstract_step import lower_step
from ppo_jax.bench_report import SCHEMA, save_result
from ppo_jax.config import Config
from ppo_jax.config_io import diff
from ppo_jax.decoder import Decoder, lora_scale
from ppo_jax.experiment import WORKLOADS, Experiment, load_experiment
from ppo_jax.loading import Source, open_source
from ppo_jax.main import parse_config
from ppo_jax.memory import Case, memory_of
from ppo_jax.phase_times import SCOPES
from ppo_jax.plan import settle
from ppo_jax.programs import largest_memory
from ppo_jax.run_folder import environment
from ppo_jax.sharding import make_mesh
from ppo_jax.workload import dataset_of, workload_of

RESULTS = Path(__file__).resolve().parent / "results"
CUDNN = 92800  # 9.28, as in the description below
TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}
# The figures XLA asks of a GPU; NVIDIA's data sheet and CUDA's table of compute capability 9.0.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 28 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description="A workload's step compiled for a chip")
    parser.add_argument("workload", help="a name in experiments/bench/, or an experiment file")
    parser.add_argument("--device", choices=("h200", *TOPOLOGIES), default="h200")
    parser.add_argument("--devices", type=int, default=1, help="how many of the chips")
    parser.add_argument("--note", default="", help="kept in the result")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--hlo", type=Path, help="file for the program's text")
    return parser.parse_known_args()


def chips_of(device: str) -> list:
    if device == "h200":
        # JAX asks the device for it, and there is none.
        fused_attention_stablehlo.check_cudnn_version = lambda: CUDNN
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=H200, topology="1x1x1"
        )
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[device])
    return list(topology.devices)


def lower(config: Config, experiment: Experiment, source: Source, devices: list):
    """(the step lowered for shapes alone, what it is planned to hold)."""
    width = max(len(ids) for ids in dataset_of(workload_of(experiment), config, source).prompt_ids)
    separate = config.model.critic == "separate"
    platform = devices[0].platform
    case = Case(source.config, source.config if separate else None, width, len(devices), platform)
    mesh, options = make_mesh(config.parallel, devices), config.model
    decoder = Decoder(
        source.config,
        options.compute_dtype,
        options.remat,
        options.attention,
        lora_scale(options.lora),
        mesh,
    )
    return lower_step(config, case, mesh, decoder), memory_of(config, case).peak


def reading(arguments: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    experiment = load_experiment(arguments.workload, WORKLOADS)
    config = parse_config("_compile_for.py", words, experiment)
    source = open_source(config.model.path, config.model.shape, seed=config.run.seed)
    devices = chips_of(arguments.device)[: arguments.devices]
    platform = "gpu" if arguments.device == "h200" else "tpu"
    config = settle(config, source, platform, arguments.devices)
    clock = time.monotonic()
    lowered, planned = lower(config, experiment, source, devices)
    traced = time.monotonic() - clock
    compiled = lowered.compile()
    text = compiled.as_text()
    if arguments.hlo is not None:
        arguments.hlo.write_text(text, encoding="utf-8")
    return {
        "schema": SCHEMA,
        "kind": "compiled",
        "workload": f"{experiment.name}-compiled",
        "note": arguments.note,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "xla_flags": os.environ["XLA_FLAGS"],
        "environment": environment() | {"device_kind": arguments.device, "platform": platform},
        "devices": arguments.devices,
        "overrides": diff(experiment.base, config),
        "seconds": {"trace": traced, "compile": time.monotonic() - clock - traced},
        "memory": {**largest_memory({"train_step": compiled}), "planned_peak": planned},
        "decode_loops": decode_loops(text),
        "phases": phase_launches(text, tuple(SCOPES)),
        "collectives": collectives(text),
    }


def main() -> None:
    arguments, words = parse_arguments()
    result = reading(arguments, words)
    for name in ("overrides", "seconds", "memory", "decode_loops", "phases", "collectives"):
        print(f"{name}: {result[name]}")
    print(save_result(arguments.out, result))


if __name__ == "__main__":
    main()
