"""Whether a cluster has started this process as one of several; JAX then finds the others.

Looked up in the environment, and only where there are TPUs in Google's metadata server: a process
by itself must not wait for anything.
"""

import glob
import importlib.util
import re
from collections.abc import Mapping

from ppo_jax.errors import ConfigError

SLURM = "SLURM_JOB_ID SLURM_STEP_NODELIST SLURM_NTASKS SLURM_PROCID SLURM_LOCALID".split()
METADATA_SECONDS = 5.0
OTHERWISE = (
    "give --coordinator HOST:PORT --processes N --process K, or --distributed off for a run of "
    "this process alone"
)


def detect(environ: Mapping[str, str]) -> str | None:
    """What has started several processes of which this is one; None: it is alone.

    Raises ConfigError where there are others that JAX could not find.
    """
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:  # since Open MPI 5
            raise ConfigError(f"OMPI_COMM_WORLD_SIZE: this Open MPI names no address; {OTHERWISE}")
        return "Open MPI"
    if all(name in environ for name in SLURM) and int(environ["SLURM_NTASKS"]) > 1:
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
    slices = environ.get("MEGASCALE_NUM_SLICES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in environ:
        server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
        names = _metadata(server, "worker-network-endpoints")
        if slices is None:
            said = re.search(r"MEGASCALE_NUM_SLICES: '?(\d+)", _metadata(server, "tpu-env") or "")
            slices = said[1] if said else None
    return (1 if not names else len(names.split(","))) * int(slices or 1)


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
