"""The graphs of relations over grids of nodes, kept for the next call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

import torch

from deepcrf_ext.nn.relations import RelationConfig, relation_box
from deepcrf_ext.ops.graph import EdgeGraph


class GraphCache:
    """The graphs used last, as many as `max_bytes` hold, but always the newest."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._graphs: OrderedDict[Hashable, EdgeGraph] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: Hashable) -> EdgeGraph | None:
        """The graph of a key, or None."""
        with self._lock:
            if key in self._graphs:
                self._graphs.move_to_end(key)
            return self._graphs.get(key)

    def put(self, key: Hashable, graph: EdgeGraph) -> None:
        """Adds a graph and lets the ones unused longest go."""
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = graph
                self.num_bytes += graph.num_bytes
            while self.num_bytes > self.max_bytes and len(self._graphs) > 1:
                self.num_bytes -= self._graphs.popitem(last=False)[1].num_bytes


_CACHE = GraphCache(max_bytes=256 << 20)


def relation_graph(
    relation: RelationConfig, batch: int, height: int, width: int, device: torch.device
) -> EdgeGraph:
    """The edges of a batch of equal grids; nodes are numbered image by image, row by row.

    Graphs are kept for the next call with the same arguments, up to 256 MB of them.
    """
    key = (relation, batch, height, width, device)
    graph = _CACHE.get(key)
    if graph is None:
        box = relation_box(relation, height, width)
        with torch.inference_mode(False):  # training may be the next to use it
            one = EdgeGraph.from_range_box(height, width, box)
            graph = EdgeGraph.batch([one] * batch).to(device)
        _CACHE.put(key, graph)
    return graph
