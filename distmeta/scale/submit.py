"""Jobs on a remote Ray cluster: ship this package and a config over Ray Jobs, follow the log, and return the job's exit code.

A job's runtime environment is metadata that everybody on the cluster can read: nothing of this process's environment goes into it.
"""

import asyncio
import logging
import math
import os
import re
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from getpass import getuser
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any, TextIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass, urlopen

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from distmeta.config import Config, is_relative, locations, secrets_of
from distmeta.errors import ClusterError, ConfigError, Stopped
from distmeta.masking import masked, printable, printable_lines
from distmeta.scale.cluster import TOKEN
from distmeta.scale.shipment import pack_job, shipped_name

_CONNECT_S = 8.0
_STOP_S = 60
_TRACKING = {"tracking.uri", "--tracking-uri"}
_WRITTEN = _TRACKING | {"run_folder", "--out"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it is part of URLs, and of the name of the log
_NOT_YET = r"(?s).*No available agent"  # a head that has just started
_UNKNOWN = "distmeta jobs list --address … names the jobs"
for _told in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_told}").setLevel(logging.WARNING)  # log lines of each upload and closed connection


def client(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address` (http://HEAD:8265). Raises ClusterError within ten seconds."""
    check = (
        f"is the head running, with ray[default] and its dashboard at {address} (often port 8265), and is the port open to this machine?"
    )
    if not _is_http(address):
        raise ConfigError(
            f"--address {address} is not a dashboard's address", "write http://HEAD:8265, the address of the head's dashboard"
        )
    try:
        urlopen(f"{address.rstrip('/')}/api/version", timeout=_CONNECT_S).close()
    except HTTPError as error:
        if error.code not in (401, 403) and (remedy := _proxy_remedy(address)) is not None:  # the proxy answered
            raise ClusterError(f"no Ray cluster answers at {address}: {error}", remedy) from None
    except (URLError, OSError, ValueError, HTTPException) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {getattr(error, 'reason', error)}", _proxy_remedy(address) or check
        ) from None
    with _answers(address), _without("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would prefer them to its arguments
        return JobSubmissionClient(address)


def _is_http(address: str) -> bool:
    try:
        return urlsplit(address).scheme in ("http", "https")
    except ValueError:  # an unclosed bracket
        return False


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """This process's environment without these variables."""
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


@contextmanager
def _answers(address: str, job_id: str | None = None) -> Iterator[None]:
    """Convert errors of the job server inside the block into ClusterError."""
    try:
        yield
    except AuthenticationError:
        raise ClusterError(f"the Ray cluster at {address} wants its token", TOKEN) from None
    except (RuntimeError, ConnectionError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if job_id is not None and "does not exist" in reason:
            raise ClusterError(f"there is no job {job_id} at {address}", _UNKNOWN) from None
        raise ClusterError(f"the Ray cluster at {address}: {reason}", "ray job list and the head's log may say more") from None


def _proxy_remedy(address: str) -> str | None:
    """The remedy if requests to the cluster go through a proxy."""
    parts = urlsplit(address)
    proxy, host = getproxies().get(parts.scheme), parts.hostname or ""
    if proxy is None or proxy_bypass(host):
        return None
    return f"{parts.scheme}_proxy={masked(proxy)} was asked for it; set no_proxy={host} if this machine reaches the head itself"


def check_locations(places: dict[str, str], includes: Iterable[Path] = ()) -> None:
    """Raises ConfigError if a location that the job reads or writes (its key or option → path or URL) is only on this machine. It may read
    files that are shipped with it.
    """
    shipped = {shipped_name(path) for path in includes}
    for key, place in places.items():
        if is_relative(place) and (key in _WRITTEN or Path(place).parts[:1] not in {(name,) for name in shipped}):
            raise ConfigError(
                f"{key}={place} is relative: in a job it would be in a folder that is removed with the job",
                f"give an absolute path that all nodes share, or a URL, as {key}",
            )


def check_secrets(arguments: list[str], config: Config | None) -> None:
    """Raises ConfigError if the config or an argument holds a secret: everybody on the cluster can read a job's description."""
    places = [*(secrets_of(config) if config else ()), *(argument for argument in arguments if masked(argument) != argument)]
    if places:
        raise ConfigError(
            f"{places[0]} holds a secret, which a job would show to everybody on the cluster",
            "keep credentials on the nodes: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_… for s3, ~/.netrc for curl -n",
        )


def submit(
    address: str,
    arguments: list[str],
    config: Config | None,
    includes: list[Path],
    job_id: str | None = None,
    places: dict[str, str] | None = None,
) -> str:
    """Start `distmeta ARGUMENTS` as a job and return its id; a config is shipped as config.yaml.

    `places`: the paths and URLs among the arguments, by option. Raises ClusterError or ConfigError.
    """
    places = (places or {}) | (locations(config) if config is not None else {})
    if job_id is not None and not _ID.fullmatch(job_id):
        raise ConfigError(
            f"--name {job_id!r} cannot be a job's id", "use at most 100 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    check_secrets(arguments, config)
    check_locations(places, includes)
    jobs = client(address)
    entrypoint = f"python -m distmeta.scale.job {shlex.join(arguments)}"
    runtime_env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S)}}  # Ray's 3 s are too short for a last checkpoint
    with tempfile.TemporaryDirectory(prefix="distmeta-job-") as folder, _answers(address, None):
        pack_job(Path(folder), config, includes, needs_tracking=arguments[0] != "pack" and not places.keys() & _TRACKING)
        metadata = _metadata(arguments[0], places)
        try:
            for attempt in Retrying(
                retry=retry_if_exception_message(match=_NOT_YET), stop=stop_after_delay(30), wait=wait_fixed(1), reraise=True
            ):
                with attempt:
                    started = jobs.submit_job(
                        entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env | {"working_dir": folder}, metadata=metadata
                    )
            return started
        except RuntimeError as error:
            if "already exists" in str(error):
                raise ClusterError(f"there is a job {job_id} at {address} already", "choose another --name, or remove it") from None
            raise


def _metadata(verb: str, places: dict[str, str]) -> dict[str, str]:
    """The metadata of a job for `jobs list`. Everybody on the cluster can read it."""
    try:
        who = getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        who = str(os.getuid())
    folder = places.get("run_folder") or places.get("--out") or ""
    return {"distmeta": version("distmeta"), "verb": verb, "run_folder": folder, "who": f"{who}@{gethostname()}"}


def follow(address: str, job_id: str, out: TextIO, ask: Callable[[], bool]) -> int:
    """Copy the job's log to `out` until the job ends, and return its exit code. Ctrl-C calls `ask`, which decides whether to stop the job.
    If not, the log is no longer followed, and the exit code is 0.
    """
    jobs = client(address)
    copier = threading.Thread(target=_copy_log, args=(jobs, job_id, out), daemon=True)
    asked = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        copier.start()
        while not (status := _details(jobs, address, job_id).status).is_terminal():
            if asked.wait(1.0):
                asked.clear()
                if not ask():
                    return 0
                stop(address, job_id)
        copier.join(10)
    finally:
        signal.signal(signal.SIGINT, previous)
    details = _details(jobs, address, job_id)
    if status is JobStatus.STOPPED:
        raise Stopped(f"job {job_id} was stopped", "submit it again with --resume to continue")
    if status is JobStatus.SUCCEEDED:
        return 0
    if details.driver_exit_code is None:
        reason = " ".join((details.message or "").split())[:300]
        raise ClusterError(
            f"job {job_id} {status.value.lower()} before it ran: {reason}", "ray job logs, and the head's runtime_env_setup logs, say more"
        )
    return details.driver_exit_code or 1


def _copy_log(jobs: JobSubmissionClient, job_id: str, out: TextIO) -> None:
    async def copy() -> None:
        rest = ""
        async for chunk in jobs.tail_job_logs(job_id):  # cut anywhere
            lines, end, rest = (rest + chunk).rpartition("\n")
            out.write(printable_lines(lines + end))
            out.flush()
        out.write(printable(rest))

    try:
        asyncio.run(copy())
    except (RuntimeError, OSError, ClientError):  # the connection failed, or the job ended before it had a log; its status decides
        time.sleep(0)


def _details(jobs: JobSubmissionClient, address: str, job_id: str) -> JobDetails:
    with _answers(address, job_id):
        return jobs.get_job_info(job_id)


def list_jobs(address: str) -> list[dict[str, Any]]:
    """One row for each job that has an id, the newest first: id, status, verb, run_folder, began, ended, who, command.

    began and ended are seconds since 1970, None if the job has not;
    verb, run_folder and who are empty for a job that `distmeta submit` did not start.
    """
    with _answers(address):
        listed = client(address).list_jobs()
    rows = [
        {"id": job.submission_id, "status": job.status.value}
        | {key: (job.metadata or {}).get(key, "") for key in ("verb", "run_folder")}
        | {"began": _seconds(job.start_time), "ended": _seconds(job.end_time)}
        | {"who": (job.metadata or {}).get("who", ""), "command": job.entrypoint}
        for job in listed
        if job.submission_id
    ]
    return sorted(rows, key=lambda row: row["began"] or math.inf, reverse=True)


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def run_folder_of(address: str, job_id: str) -> str:
    """The run folder that a job writes. Raises ClusterError if there is no such job, or if it writes none."""
    folder = (_details(client(address), address, job_id).metadata or {}).get("run_folder")
    if not folder:
        raise ClusterError(
            f"job {job_id} at {address} writes no run folder", f"read its log: distmeta jobs logs {job_id} --address {address}"
        )
    return folder


def logs(address: str, job_id: str) -> str:
    jobs = client(address)
    with _answers(address, job_id):
        return printable_lines(jobs.get_job_logs(job_id))


def stop(address: str, job_id: str) -> None:
    jobs = client(address)
    with _answers(address, job_id):
        jobs.stop_job(job_id)
