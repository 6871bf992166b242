"""Whether a cluster has started this process as one of several, where the others are (which JAX
finds), and which of the GPUs are this one's.

Looked up in the environment, and only where there are TPUs in Google's metadata server: a process
by itself must not wait for anything.
"""

import glob
import importlib.util
import math
import re
from collections.abc import Mapping

from ppo_jax.errors import ConfigError
from ppo_jax.joining import host_port

SLURM = "SLURM_JOB_ID SLURM_STEP_NODELIST SLURM_NTASKS SLURM_PROCID SLURM_LOCALID".split()
# What JAX reads as numbers.
NUMBERS = {
    "Open MPI": "OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK".split(),
    "Slurm": "SLURM_JOB_ID SLURM_NTASKS SLURM_PROCID".split(),
    "Cloud TPU": "TPU_WORKER_ID MEGASCALE_NUM_SLICES MEGASCALE_SLICE_ID".split(),
    "Kubernetes": ["JOB_COMPLETION_INDEX"],
}
METADATA_SECONDS = 5.0
OTHERWISE = (
    "give --coordinator HOST:PORT --processes N --process K, or --distributed off for a run of "
    "this process alone"
)


def detect(environ: Mapping[str, str]) -> str | None:
    """What has started several processes of which this is one; None: it is alone.

    Raises ConfigError where there are others that JAX could not find, naming the variable that no
    cluster would have set so.
    """
    found = _find(environ)
    if found is None:
        return None
    for name in NUMBERS[found]:
        _number(environ, name, 0)
    if (address := environ.get("JAX_COORDINATOR_ADDRESS")) is not None:
        try:
            host_port(address)
        except ValueError as error:
            raise ConfigError(f"JAX_COORDINATOR_ADDRESS={address}: {error}") from None
    if not 0 < (port := _number(environ, "JAX_COORDINATOR_PORT", 1)) < 65536:
        raise ConfigError(f"JAX_COORDINATOR_PORT={port}: must be 1 to 65535")
    return found


def place(
    environ: Mapping[str, str], cluster: str, seconds: float
) -> tuple[tuple[str, int], int, int]:
    """((host, port) of the first process, number of processes, which one this is) in a cluster that
    `detect` has found. Raises OSError where JAX does not find them."""
    from jax._src.clusters import ClusterEnv  # as `jax.distributed.initialize()` does

    given = environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        address, total, own, _ = ClusterEnv.auto_detect_unset_distributed_params(
            given, None, None, [], None, math.ceil(seconds)
        )
    except Exception as error:  # of the packages requests and kubernetes among others
        raise OSError(f"{type(error).__name__}: {error}") from None
    if address is None or total is None or own is None:
        raise OSError(f"JAX does not know this {cluster}; {OTHERWISE}")
    host, _, port = address.rpartition(":")  # no brackets in what it makes of Open MPI's
    if not host or not 0 <= own < total:
        raise OSError(f"process {own} of {total}, the first at {address!r}")
    return (host.strip("[]"), int(port)), total, own


def local_devices(environ: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that this process sees are its own, where others beside it on this machine
    see the same ones; None: all of them.

    Raises ConfigError naming the variable that does not say so.
    """
    ids = environ.get("JAX_LOCAL_DEVICE_IDS")
    if ids:
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", ids):
            raise ConfigError(f"JAX_LOCAL_DEVICE_IDS={ids}: must be numbers with commas")
        return [int(number) for number in ids.split(",")]
    own, beside = _beside(environ)
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    seen = len(glob.glob("/dev/nvidia[0-9]*") if shown is None else shown.split(","))
    if beside < 2 or seen == 1:
        return None
    share = max(1, (seen or beside) // beside)
    return list(range(own * share, (own + 1) * share))


def _beside(environ: Mapping[str, str]) -> tuple[int, int]:
    """(which one, of how many) this process is of those on this machine that see the same GPUs."""
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        own = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", 0)
        return own, _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    if not all(name in environ for name in SLURM) or "SLURM_GPUS_PER_TASK" in environ:
        return 0, 1
    name = "SLURM_STEP_TASKS_PER_NODE"
    name = name if name in environ else "SLURM_NTASKS_PER_NODE"
    tasks = environ.get(name, "1")  # `2(x3),1`: two on each of three nodes, one on the fourth
    counts: list[int] = []
    for part in tasks.split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([1-9][0-9]{0,5})\))?", part)
        if found is None:
            raise ConfigError(f"{name}={tasks}: must be numbers of tasks; {OTHERWISE}")
        counts += [int(found[1])] * int(found[2] or 1)
    node = min(_number(environ, "SLURM_NODEID", 0), len(counts) - 1)
    return _number(environ, "SLURM_LOCALID", 0), counts[node]


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """A variable's number, from 0; ConfigError naming one that has another value."""
    text = environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ConfigError(f"{name}={text}: must be a number; {OTHERWISE}")
    return int(text)


def _find(environ: Mapping[str, str]) -> str | None:
    if _number(environ, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        uri = environ.get("OMPI_MCA_orte_hnp_uri")
        if uri is None:  # since Open MPI 5
            raise ConfigError(f"OMPI_COMM_WORLD_SIZE: this Open MPI names no address; {OTHERWISE}")
        if not re.match(r"[0-9]+\..*tcp6?://.", uri):
            raise ConfigError(f"OMPI_MCA_orte_hnp_uri={uri}: no address is in it; {OTHERWISE}")
        return "Open MPI"
    if all(name in environ for name in SLURM) and _number(environ, "SLURM_NTASKS", 1) > 1:
        return "Slurm"
    workers = tpu_workers(environ)
    if workers > 0:
        return "Cloud TPU" if workers > 1 else None
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(
                "JOB_COMPLETION_INDEX: to find the other pods of an indexed Job the package "
                f"kubernetes is needed: pip install 'jax[k8s]'; or {OTHERWISE}"
            )
        return "Kubernetes"
    return None


def tpu_workers(environ: Mapping[str, str]) -> int:
    """How many machines with TPUs work together, this one included; 0: it has none."""
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu") or not _has_tpus():
        return 0
    names = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    slices = _number(environ, "MEGASCALE_NUM_SLICES", 0)  # 0: not said
    if names is None and "TPU_SKIP_MDS_QUERY" not in environ:
        server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
        names = _metadata(server, "worker-network-endpoints")
        if not slices:
            said = re.search(r"MEGASCALE_NUM_SLICES: '?(\d+)", _metadata(server, "tpu-env") or "")
            slices = int(said[1]) if said else 0
    return (1 if not names else len(names.split(","))) * (slices or 1)


def _has_tpus() -> bool:
    if importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _metadata(server: str, key: str) -> str | None:
    """An attribute of this machine; None where there is none, or nobody to ask."""
    import urllib.request  # not for the many that have no TPUs

    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=METADATA_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return None
