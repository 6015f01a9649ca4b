"""Tell Ray that the cloud takes this machine back, so that a training run saves and goes on without it.

    python spot_notice.py &

Runs on a worker beside Ray until the notice comes. Neither Ray nor its autoscaler hears of it: AWS gives two
minutes' notice and Google 30 seconds', both through the machine's metadata server, which is asked every two
seconds. Needs no package but Ray; `ray up` mounts it (cluster.yaml, deploy/gcp.yaml).
"""

from __future__ import annotations

import time
import urllib.request
from http.client import HTTPException

ASK_S = 2.0
AWS_GRACE_S, GOOGLE_GRACE_S = 110.0, 25.0
"""Seconds from the notice to the end of the machine, less a few to see it."""


def on_aws(server: str = "http://169.254.169.254/latest") -> bool:
    """Return whether AWS announces the end of this machine; without a notice its answer is an error 404."""
    token = _answer(f"{server}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    path = f"{server}/meta-data/spot/instance-action"
    return bool(token) and bool(_answer(path, {"X-aws-ec2-metadata-token": token}))


def on_google(server: str = "http://metadata.google.internal/computeMetadata/v1") -> bool:
    """Return whether Google announces the end of this machine."""
    return _answer(f"{server}/instance/preempted", {"Metadata-Flavor": "Google"}) == "TRUE"


def _answer(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """Return what a metadata server answers; nothing if it is not there or answers with an error."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=1.0) as answer:
            return str(answer.read().decode()).strip()
    except (OSError, HTTPException):
        return ""


def drain(seconds: float) -> bool:
    """Tell Ray that this node ends in so many seconds; return whether it was accepted."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    context = ray.init(address="auto", log_to_driver=False)
    client = GcsClient(address=context.address_info["gcs_address"])
    node, end_ms = ray.get_runtime_context().get_node_id(), int(1000 * (time.time() + seconds))
    accepted, _ = client.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "the machine is taken back", end_ms)
    return bool(accepted)


def main() -> None:
    """Wait for a notice, and pass it on."""
    while True:
        if on_aws():
            return print("drains:", drain(AWS_GRACE_S))
        if on_google():
            return print("drains:", drain(GOOGLE_GRACE_S))
        time.sleep(ASK_S)


if __name__ == "__main__":
    main()
