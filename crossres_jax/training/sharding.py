"""Where arrays live: batches are cut along their first axis, the state is everywhere.

Under `jax.jit` a loss sees the global batch, so batch normalisation and the mining of
hard triplets do not depend on the number of devices.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "data", over the given or all local devices."""
    devices = devices or jax.local_devices()
    # Auto axes: with the default, Explicit, `f @ f.T` of a sharded f raises.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Every device holds an equal part of the first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_divisible(batch_size: int, mesh: Mesh, option: str) -> None:
    """Raises ValueError if the devices cannot share a batch of this size equally."""
    if batch_size % mesh.size:
        raise ValueError(
            f"{option} is {batch_size}, which {mesh.size} devices cannot share "
            f"equally. Choose a multiple of {mesh.size}, or show fewer devices "
            "(CUDA_VISIBLE_DEVICES)."
        )


def prefetch(batches: Iterable[dict], mesh: Mesh, size: int = 2) -> Iterator[dict]:
    """Batches on the devices, `size` of them ahead of the one in use."""
    batches = iter(batches)
    queue = collections.deque()
    while True:
        for batch in itertools.islice(batches, size + 1 - len(queue)):
            queue.append(jax.device_put(batch, sharded(mesh)))
        if not queue:
            return
        yield queue.popleft()
