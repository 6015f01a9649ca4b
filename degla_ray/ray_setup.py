"""Join the Ray cluster that a job runs in, or start Ray on this machine.

Every job calls `start` before it uses Ray. Which of the two happens is the only difference between a laptop
and a cluster. A locally started Ray has a private temporary folder (a file left by a dead
cluster in the shared one breaks later ones), a token made for this process, and no dashboard: it starts in
3 s, and progress is on the console and in MLflow. It listens on loopback only; docs/security.md lists what.

This is the one file that reads and sets Ray's environment variables.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from degla_ray.errors import DeglaError, SettingError
from degla_ray.ray_address import usable
from degla_ray.remote_store import ANSWERED_ENV

if TYPE_CHECKING:
    from degla_ray.config import RayConfig

REPO_ROOT = Path(__file__).resolve().parent.parent

MIN_LOCAL_CPUS = 8
"""Logical CPUs of a local Ray, at least. Tasks here mostly wait for each other; with 2, resume hangs."""

WORKER_ENV = {
    # glibc hands freed blocks back to the kernel at once; a training step on a small CPU machine spent up
    # to all of its time there (11.3-12.2 s a step with these, 13.4-17.4 s without). In bytes.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
    # OMP_NUM_THREADS is Ray's to set: one thread for each CPU that a worker has reserved.
    ANSWERED_ENV: "1",
}

_PROCESS_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # read at import, which may come before a store is opened
    # Google takes a machine away 30 s after its notice: Ray Train looks for one every second, not every five.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Tune's new console output prints a box of settings and TensorBoard's command at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial answers before its first score is known, and what it finds is in the sweep's own files.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ray 2.60 warns once a worker about how it will treat CUDA_VISIBLE_DEVICES; "0" is its new behaviour.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Lines from workers that alarm without cause: Train's cleaner asks a State API that only runs with the
    # dashboard, and its preemption watcher is started with an argument that Ray's own core complains of. What
    # the watcher and the core say of a lost node, training/recovery.py says in one line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "State API may be temporarily unavailable|'PreemptionWatcher' and ID"
    "|PreemptionWatcher: preemption detected|Failed to remove .* bundle.* for placement group",
}

# An actor beside every training that looks for notices of preemption, which no machine gives itself.
_LOCAL_ENV = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

LOOPBACK = "127.0.0.1"

_PREFIX, _LOCK = "degla-", "owner.lock"

_temp_dir: Path | None = None
_lock: IO[str] | None = None


def set_environment() -> None:
    """Set Ray's variables unless the user has; some are read at `import ray`, so jobs call this first."""
    for name, value in _PROCESS_ENV.items():
        os.environ.setdefault(name, value)


def start(config: RayConfig, *, include_dashboard: bool = False) -> None:
    """Join `config.address` or the cluster of this submitted job, else start Ray locally.

    Does nothing if Ray is already initialised in this process.

    Args:
        config: where Ray runs.
        include_dashboard: start the dashboard with a local Ray.

    Raises:
        SettingError: the cluster cannot be joined.
    """
    set_environment()
    given = config.address or os.environ.get("RAY_ADDRESS")
    if given and given != "local":
        setting = "ray.address" if config.address else "RAY_ADDRESS"
        _check_address(given, setting)
        import ray

        if not ray.is_initialized():
            _join(given, setting, in_job=in_submitted_job())
        _configure_data()
        return
    import ray

    if not ray.is_initialized():
        _demand_token()
        _start_local(config, include_dashboard)
    _configure_data()  # also inside a worker that runs a stage, such as a sweep's trial


def in_submitted_job() -> bool:
    """Return whether `ray job submit` started this process, in a temporary copy of the submitted files."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def is_local() -> bool:
    """Return whether `start` started Ray in this process; a local Ray cannot grow."""
    return _temp_dir is not None


def loopback_folder() -> Path | None:
    """Return the session folder of a Ray whose nodes are all on this machine; None for any other.

    Also right inside a worker, such as a sweep's trial.
    """
    import ray

    node: Any = ray._private.worker._global_node
    return Path(node.get_session_dir_path()) if node.node_ip_address == LOOPBACK else None


def stop() -> None:
    """Leave the cluster, or end the Ray that `start` started and remove its temporary folder."""
    global _temp_dir, _lock
    import ray

    ray.shutdown()
    if _temp_dir is not None and _lock is not None:
        shutil.rmtree(_temp_dir, ignore_errors=True)
        _lock.close()
        _temp_dir = _lock = None


def _check_address(address: str, setting: str) -> None:
    if address.startswith(("http://", "https://")):
        raise SettingError(
            setting, address, "host:port of a head, such as 127.0.0.1:6379 (http:// is for `ray job submit`)"
        )


def _join(address: str, setting: str, *, in_job: bool) -> None:
    if not in_job:  # Ray itself gave a submitted job its address
        address = usable(address, setting)
    runtime_env: dict[str, Any] = {"env_vars": WORKER_ENV}
    if not in_job:  # a submitted job's files are already on every node
        runtime_env["env_vars"] = WORKER_ENV | {"PYTHONPATH": _python_path()}
    try:
        _init(address=address, runtime_env=runtime_env)
    except Exception as error:  # Ray raises many classes here, Exception itself among them
        expected = (
            "a cluster that this machine is a node of, or a job submitted to it (`ray job submit`); Ray"
        )
        raise SettingError(setting, address, f"{expected} says: {_first_line(error)}") from error


def _init(**arguments: Any) -> None:
    """Initialise Ray, and keep the job's handler of SIGTERM, which Ray replaces by one of its own."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, **arguments)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _demand_token() -> None:
    """Restrict the local Ray to this process and its children, unless the user set RAY_AUTH_MODE."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    raylet: Any = importlib.import_module("ray._raylet")  # compiled, and its type stub lacks these names

    os.environ["RAY_AUTH_MODE"] = "token"
    # A token of our own, or Ray writes one to ~/.ray, which then switches tokens on for every later cluster.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    raylet.Config.initialize("")  # read at `import ray`; this reads it again, as ray.init does itself
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _start_local(config: RayConfig, include_dashboard: bool) -> None:
    global _temp_dir, _lock
    import ray

    # Under /tmp and not $TMPDIR where that is long: a socket's path may not exceed 107 bytes.
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 20 else "/tmp"
    remove_abandoned(Path(parent))
    _temp_dir = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    starting = _temp_dir / "starting"
    _lock = starting.open("w")
    fcntl.flock(_lock, fcntl.LOCK_EX)
    starting.rename(_temp_dir / _LOCK)  # under this name only once it is held
    # Ray opens the folder that it is given to everybody (0777); the one around it stays its owner's (0700).
    inside = _temp_dir / "ray"
    # Handed down by inheritance: a runtime_env would cost every kind of worker a start of its own.
    changed = WORKER_ENV | _loopback_env() | _LOCAL_ENV | {"PYTHONPATH": _python_path()}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    atexit.register(stop)  # also where the start fails half-way
    constants, clusters = ray._private.ray_constants, ray._private.ray_constants.ENABLE_RAY_CLUSTER
    try:
        # As Ray does on macOS and Windows: the node's address is 127.0.0.1, and its processes listen there.
        constants.ENABLE_RAY_CLUSTER = False
        _init(
            address="local",
            num_cpus=config.num_cpus or max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
            include_dashboard=include_dashboard,
            _temp_dir=str(inside),
        )
    except Exception as error:  # Ray raises this very class where a node does not come up
        found = f"Ray did not start on this machine: {_first_line(error)}"
        raise DeglaError(
            f"{found}; expected free memory, space in {parent} and CPUs that are not all busy "
            f"(run it again, or join a running Ray with --ray.address)"
        ) from error
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _loopback_env() -> dict[str, str]:
    """Return the variables that keep the workers' collectives on loopback."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return {variable: name for name in names for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders of killed processes, recognised by a lock that nobody holds.

    Args:
        parent: folder that contains the temporary folders.
    """
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # in use, or another user's, or gone in the meantime: none of ours to remove
            continue


def _configure_data() -> None:
    """Configure Ray Data to raise original errors and log warnings, without plans and progress bars."""
    import ray.data  # sets up its logging when it is imported

    context = ray.data.DataContext.get_current()
    # Else it replaces an exception by a generic one, whose cause is lost on the way to the driver.
    context.raise_original_map_exception = True
    # An engine may be killed while it starts, as any process; one that dies at every start is told of.
    context.max_consecutive_actor_init_deaths = 3
    context.enable_progress_bars = False  # jobs report their own progress
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for name in ("exceptions", "_internal.execution.streaming_executor_state", "_internal.progress"):
        # What these log, the exception that reaches us says again (or they advertise progress bars).
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)


def _python_path() -> str:
    """Return the PYTHONPATH with which workers import this copy of degla_ray."""
    rest = os.environ.get("PYTHONPATH")
    return f"{REPO_ROOT}{os.pathsep}{rest}" if rest else str(REPO_ROOT)
