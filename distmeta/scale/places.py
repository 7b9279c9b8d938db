"""Placement groups, Ray's reservations for the workers of a run: listing them, naming their holders, and removing unneeded ones.

Ray Train leaves the group of a killed controller to a helper actor, and Ray itself removes it only when the whole job ends. A sweep stops
trials by killing them, so it removes their groups itself.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ray
from ray._private.state import actors, available_resources_per_node, jobs, state
from ray._raylet import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

_Row: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
_NOBODY = ray.ActorID.nil().binary()  # created it; a driver, such as Ray Tune's, did
_PLACE = "its place"


class Group(NamedTuple):
    """One placement group. `amounts` is its total reservation; `controller` is the id of the actor that created it."""

    id: str
    job: str
    controller: str
    orphaned: bool
    placed: bool
    amounts: Counter[str]


def groups() -> list[Group]:
    """Every group of the cluster, of any job, that has not been removed."""
    accessor = state._connect_and_get_accessor()
    rows = [_Row.FromString(row) for row in accessor.get_placement_group_table()]
    return [_group(row) for row in rows if row.state != _Row.REMOVED]


def _group(row: Any) -> Group:
    amounts: Counter[str] = Counter()
    for bundle in row.bundles:
        amounts.update(bundle.unit_resources)
    return Group(
        id=row.placement_group_id.hex(),
        job=row.creator_job_id.hex(),
        controller=row.creator_actor_id.hex(),
        orphaned=row.creator_actor_dead and not row.is_detached and row.creator_actor_id != _NOBODY,
        placed=row.state == _Row.CREATED,
        amounts=amounts,
    )


def remove(ids: Iterable[str]) -> None:
    """Remove these groups together with the workers that still run there. Groups that are already removed are skipped."""
    present = {group.id for group in groups()}
    for group_id in present.intersection(ids):
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def own_job() -> str:
    return ray.get_runtime_context().get_job_id()


def creators(job: str) -> dict[str, str]:
    """For each living actor of `job`, the id of the actor that created it, if an actor did."""
    table = actors(job_id=ray.JobID(bytes.fromhex(job)), actor_state_name="ALIVE")
    at = {_process(row["Address"]): actor_id for actor_id, row in table.items()}
    return {actor_id: at[owner] for actor_id, row in table.items() if (owner := _process(row["OwnerAddress"])) in at}


def _process(address: dict[str, Any]) -> tuple[str, int]:
    return address["IPAddress"], address["Port"]


def free_places(need: dict[str, float]) -> int:
    """The number of workers with these needs that fit into unreserved resources."""
    return sum(places_on(free, need) for free in available_resources_per_node().values())


def places_on(resources: dict[str, float], need: dict[str, float]) -> int:
    """The number of workers with these needs that fit into one node's resources."""
    return min(math.floor(resources.get(kind, 0) / amount + 1e-9) for kind, amount in need.items() if amount)


def holders(placed: Iterable[Group], names: dict[str, str], kinds: Iterable[str]) -> str:
    """The holders of these groups with their amounts, as text. `names` maps a controller to the name of its run; groups of other jobs are
    named by their drivers.
    """
    drivers = {job["JobID"]: f"job {job['JobID']} (process {job['DriverPid']} on {job['DriverIPAddress']})" for job in jobs()}
    held: dict[str, Counter[str]] = {}
    for group in placed:
        name = names.get(group.controller) or drivers.get(group.job) or f"job {group.job}"
        held.setdefault(name, Counter()).update({kind: group.amounts[kind] for kind in kinds})
    return ", ".join(f"{name} holds {amounts_text(amounts)}" for name, amounts in held.items() if any(amounts.values()))


def stage(mine: list[Group]) -> str:
    """What a run that does not train yet waits for, judged by its groups."""
    if not mine:
        return "Ray Train"
    return "its workers to start" if any(group.placed for group in mine) else _PLACE


def awaited(mine: list[Group], others: Iterable[Group], names: dict[str, str], needs: Mapping[str, float], workers: int) -> str:
    """What a run that does not train yet waits for, as text. Its groups are `mine`, and each of its `workers` needs `needs`.

    `others` are all groups of the cluster, `names` as in `holders`.
    """
    if (next_stage := stage(mine)) != _PLACE:
        return next_stage
    held = holders((group for group in others if group.placed), names, needs)
    return f"{amounts_text({kind: amount * workers for kind, amount in needs.items()})} ({held or 'nobody holds it'})"


def amounts_text(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in amounts.items() if amount)
