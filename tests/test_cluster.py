"""Connecting to a Ray cluster: what is said, and how soon, if there is none."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.cluster_utils import Cluster
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceServicer, add_NodeInfoGcsServiceServicer_to_server

from distmeta.config import TrainConfig
from distmeta.errors import ClusterError
from distmeta.scale import cluster, places
from distmeta.scale.cluster import await_nodes, check_capacity, connected


@pytest.fixture
def silent() -> Iterator[str]:
    """HOST:PORT where connections are taken and nothing is ever said."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(5)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_an_address_where_no_cluster_is_says_so_and_names_what_gave_it(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 1.0)
    for address in ("127.0.0.1:9", silent):
        with pytest.raises(
            ClusterError, match=f"no Ray cluster answers at --address={address}: .*\nstart that cluster, or correct --address"
        ):
            connected(address).__enter__()
        with monkeypatch.context() as patched:
            patched.setenv("RAY_ADDRESS", address)
            with pytest.raises(ClusterError, match=f"no Ray cluster answers at RAY_ADDRESS={address}: .*\nunset RAY_ADDRESS, or set it"):
                connected(None).__enter__()


class _Guarded(NodeInfoGcsServiceServicer):
    """Answers as the head of a cluster does that wants a token."""

    def CheckAlive(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")


def test_a_forgotten_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(_Guarded(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr(cluster, "canonicalize_bootstrap_address_or_die", lambda address: address)  # it asks for this node's address
    try:
        with pytest.raises(
            ClusterError, match=rf"the Ray cluster at --address=127.0.0.1:{port} wants its token\nset RAY_AUTH_MODE=token and"
        ):
            connected(f"127.0.0.1:{port}").__enter__()
    finally:
        server.stop(None)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "somewhere", "ray://127.0.0.1:10001"])
def test_what_is_not_the_address_of_a_head_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=f"--address={address} is not the address of a Ray head.*\nwrite HOST:PORT"):
        connected(address).__enter__()


def test_a_stale_address_is_found_out_within_20_s(silent: str) -> None:
    assert cluster._ANSWER_S == 20
    began = time.monotonic()
    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        connected(silent).__enter__()
    assert time.monotonic() - began < 25


def test_a_machine_too_busy_to_start_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception then, in these words."""

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because the GCS has become overloaded.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(ClusterError, match=r"did not start on this machine in time\ntry again when the machine is less busy"):
        connected(None).__enter__()


def test_a_managed_cluster_is_asked_for_nodes_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoscaler here is this test: it adds a node when a placement group waits for one."""
    said: list[str] = []
    train = TrainConfig(workers=2, start_timeout_s=60)
    small = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=small)
    try:
        with connected(nodes.address):
            await_nodes(train, said.append)
            assert said == []
            monkeypatch.setattr(cluster, "_MANAGED", "ray.io/node-id")  # a label that every node has
            with ThreadPoolExecutor(1) as threads:
                waiting = threads.submit(await_nodes, train, said.append)
                while not places.groups():
                    assert not waiting.done(), waiting.result()
                    time.sleep(0.05)
                nodes.add_node(num_cpus=2, object_store_memory=80 << 20)
                waiting.result()
            assert check_capacity(train, "cpu") == 2
            assert places.groups() == [], "the group holds places that the run needs"
            await_nodes(train, said.append)
    finally:
        nodes.shutdown()
    assert said == ["the nodes hold 0 of 2 workers; asked the autoscaler for 2 CPU (train.start_timeout_s=60)"]


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    code = "from distmeta.scale.cluster import connected; connected(None).__enter__()"
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    refused = subprocess.run([sys.executable, "-c", code], env=environment | {"TMPDIR": str(folder)}, capture_output=True, text=True)
    assert f"Ray's temporary folder is too long for sockets: {folder}/ray\nset RAY_TMPDIR=/tmp" in refused.stderr
