"""Leases: the driver that writes a stage's folder owns it, and a second driver is refused.

    with Lease(storage):
        ...  # write

A driver writes a claim, `lease-TOKEN.json`, into the folder and then looks for other claims. Of two drivers
that start at once, at least one sees the other's claim, so at most one becomes the owner. The store must only
list every file written before the listing, which local disks, S3 and GCS guarantee. The owner touches its
claim every HEARTBEAT_S. A claim is dead, and is taken over, when its process has ended (if on the same
machine), else when it has not been touched for DEAD_AFTER_S. Ages are differences of the store's own time
stamps, so clocks of hosts may differ. The cost is a claim, two listings and a deletion: some milliseconds on
a local disk and about 0.5 s on S3.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import pyarrow.fs as pafs

from degla_ray.errors import DataError, DeglaError, SettingError
from degla_ray.stage import is_complete
from degla_ray.storage import Storage

HEARTBEAT_S = 10.0
"""Seconds between two touches of an owner's claim."""
DEAD_AFTER_S = 120.0
"""Seconds without a touch after which an owner counts as dead, if its process cannot be inspected."""
_TIE_S = 0.2
_LONGEST_TIE_S = 5.0
"""First and longest interval in seconds between checks while several drivers compete for the folder."""
_PREFIX, _SUFFIX = "lease-", ".json"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A driver that has claimed a folder.

    Attributes:
        host: name of the machine.
        pid: the driver's process id on that host.
        since: UTC, ISO 8601.
        machine: boot id and process namespace within which `pid` is unique.
        started: start of the process in clock ticks after boot, which reveals a reused pid.
        owns: False while the driver is only competing for ownership.
    """

    host: str
    pid: int
    since: str
    machine: str
    started: str
    owns: bool = False

    def dead(self, age: float) -> bool:
        """Return whether the owner has ended: by its process on this machine, else by its claim's age (s)."""
        if self.machine == _machine() != "":
            return _started(self.pid) != self.started
        return age > DEAD_AFTER_S

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


class LeaseHeld(DataError):
    """A folder that another live driver is writing.

    Attributes:
        owner: that driver.
    """

    def __init__(self, where: str, owner: Owner) -> None:
        self.owner = owner
        expected = f"no other writer: wait for it or end it (a silent one is dead after {DEAD_AFTER_S:.0f} s)"
        super().__init__(where, f"a folder that another driver writes ({owner})", expected)


class LeaseLost(DeglaError):
    """The loss of a lease by a driver that counted as dead; another may already be writing the folder."""


class Lease:
    """Ownership of a folder while a `with` block lasts.

    Args:
        storage: the folder; created if it does not exist, and removed again if nothing is written to it.

    Raises:
        LeaseHeld: at entry, another driver owns the folder.
        LeaseLost: at exit; the main thread is interrupted as soon as the loss is detected.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.lost = False
        self._made = not storage.exists()
        self._name = f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        self._me = Owner(
            host=socket.gethostname(), pid=pid, since=now, machine=_machine(), started=_started(pid)
        )
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._interrupts = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Lease:
        try:
            self._acquire()
        except DeglaError:
            self._withdraw()
            raise
        except OSError as error:
            expected = f"a folder that can be written ({error})"
            raise SettingError("output", self.storage.uri, expected) from error
        except BaseException:
            self._withdraw()
            raise
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join()
        self._withdraw()
        if self.lost and kind in (None, KeyboardInterrupt, SystemExit):  # Ray Train makes one of the other
            found = f"the lease of {self.storage.uri} was taken over: this driver was silent for too long"
            raise LeaseLost(f"{found}; run the same command again to continue") from error

    def _acquire(self) -> None:
        wait = _TIE_S
        self._claim(owns=False)
        while rivals := self._rivals():
            for rival in rivals.values():
                if rival.owns:
                    raise LeaseHeld(self.storage.uri, rival)
            if min(rivals) < self._name:  # of the competing drivers, the one with the smallest name stays
                self._withdraw()
                wait = min(2 * wait, _LONGEST_TIE_S)  # so that the drivers do not keep colliding
            time.sleep(wait)
            self._claim(owns=False)
        self._claim(owns=True)

    def _claim(self, *, owns: bool) -> None:
        content = asdict(self._me) | {"owns": owns}
        try:
            self.storage.write_json(content, self._name)
        except FileNotFoundError:  # another driver has just removed the empty folder
            self.storage.write_json(content, self._name)

    def _withdraw(self) -> None:
        with contextlib.suppress(OSError, DataError):  # unreachable store: the claim expires
            self.storage.delete_file(self._name)
            if self._made and self.storage.is_local:
                os.rmdir(self.storage.path())  # fails unless the folder is empty

    def _rivals(self) -> dict[str, Owner]:
        """Return the other living claims by name, and delete dead ones."""
        stamps = _stamps(self.storage)
        if self._name not in stamps:  # another driver took this claim for dead
            self._claim(owns=False)
            return self._rivals()
        living = {}
        for name, stamp in stamps.items():
            owner = None if name == self._name else self._read(name)
            if owner is None:
                continue
            if owner.dead(stamps[self._name] - stamp):
                print(f"{self.storage.uri}: taken over from a driver that is dead ({owner})")
                self.storage.delete_file(name)
            else:
                living[name] = owner
        return living

    def _read(self, name: str) -> Owner | None:
        try:
            return Owner(**self.storage.read_json(name))
        except OSError:
            if self.storage.is_file(name):
                raise
            return None  # withdrawn in the meantime

    def _beat(self) -> None:
        """Touch the claim until the lease ends; report an unreachable store and retry."""
        touched = time.monotonic()
        while not self._stop.wait(HEARTBEAT_S):
            try:
                if not self._touch():
                    break
                touched = time.monotonic()
            except Exception as error:
                silent = time.monotonic() - touched
                print(f"{self.storage.uri}: the lease's heartbeat failed: {error}", file=sys.stderr)
                if silent > DEAD_AFTER_S:
                    break
        else:
            return
        self.lost = True
        print(f"{self.storage.uri}: the lease is lost; this driver stops", file=sys.stderr)
        if self._interrupts:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # ends a blocking call too

    def _touch(self) -> bool:
        """Renew the claim's time stamp; return False if the claim was taken over."""
        others = [name for name in _stamps(self.storage) if name != self._name]
        owners = [owner for owner in map(self._read, others) if owner is not None and owner.owns]
        if owners or not self.storage.is_file(self._name):
            return False
        if self.storage.is_local:
            os.utime(self.storage.path(self._name))
        else:
            self._claim(owns=True)
        return True


def owned(uri: str) -> AbstractContextManager[object]:
    """Return the lease of a stage's folder; a null context if the stage has finished."""
    return contextlib.nullcontext() if is_complete(uri) else Lease(Storage(uri))


def _stamps(storage: Storage) -> dict[str, float]:
    """Return the time stamp of every claim in a folder, in seconds of the store's clock."""
    selector = pafs.FileSelector(storage.path(), allow_not_found=True)
    return {
        info.base_name: info.mtime.timestamp()
        for info in storage.filesystem.get_file_info(selector)
        if info.is_file and info.base_name.startswith(_PREFIX) and info.base_name.endswith(_SUFFIX)
    }


def _machine() -> str:
    """Return this machine's boot id and process namespace; empty if the system does not provide them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks after boot; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
