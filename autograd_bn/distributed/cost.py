"""A model of when the exchanges of batch norm over several ranks cost more than the work that they share out.

One training step of `batch_norm` on a batch of N rows over p ranks takes

    step(p) = overhead + N * row / p + exchanges(p)

and each of its two exchanges is an allgather,

    software + ceil(log2 p) * latency + (p - 1) * bytes / bandwidth,

where `bytes` is one rank's message. Assumed is

- that the rows lie evenly on the ranks, and that all ranks arrive at the same time: waiting is not counted;
- that every rank has a core to itself, and that a row costs the same whatever the size of the shard, which
  holds until a shard fits a faster cache than the batch did;
- that the allgather takes ceil(log2 p) rounds (recursive doubling, Bruck) and that a rank receives every other
  rank's message through its one link, at full bandwidth: no congestion in the network;
- that nothing is computed while a message travels.

`software` is what Python and the pickling of a message cost, `overhead` what a call costs without any rows;
neither shrinks with p. Exchanges overtake computing at the first p where exchanges(p) >= N * row / p.

R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH", 2005,
section 4, has the formula of the allgather.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_RANKS = 4096


@dataclass(frozen=True)
class Network:
    """What connects the ranks: seconds for a message without content, and bytes a second."""

    name: str
    latency: float
    bandwidth: float


# Round figures for MPI between two nodes, assumed and not measured.
CLUSTERS = (
    Network("InfiniBand HDR", latency=1.5e-6, bandwidth=20e9),
    Network("10 Gbit Ethernet, TCP", latency=30e-6, bandwidth=1.1e9),
)


@dataclass(frozen=True)
class Step:
    """A training step of batch norm: rows, seconds a row, bytes of a message, the software's seconds for each."""

    rows: int
    row: float
    message: int
    software: float

    def compute(self, ranks: int) -> float:
        """Seconds for a rank's share of the rows."""
        return self.rows * self.row / ranks

    def exchanges(self, ranks: int, network: Network) -> float:
        """Seconds for both exchanges; none on a single rank.

        >>> network = Network("slow", latency=1e-3, bandwidth=1e6)
        >>> Step(rows=100, row=1e-4, message=1000, software=0).exchanges(4, network)
        0.01
        """
        if ranks == 1:
            return 0.0
        rounds = math.ceil(math.log2(ranks))
        return 2 * (self.software + rounds * network.latency + (ranks - 1) * self.message / network.bandwidth)

    def overtaken_at(self, network: Network) -> int | None:
        """The first number of ranks whose exchanges take as long as their computing, `None` beyond `MOST_RANKS`.

        >>> Step(rows=100, row=1e-4, message=1000, software=0).overtaken_at(Network("slow", 1e-3, 1e6))
        3
        """
        return next((p for p in range(2, MOST_RANKS + 1) if self.exchanges(p, network) >= self.compute(p)), None)

    def fastest_at(self, network: Network) -> int:
        """The number of ranks, up to `MOST_RANKS`, with the shortest step.

        >>> Step(rows=100, row=1e-4, message=1000, software=0).fastest_at(Network("slow", 1e-3, 1e6))
        2
        """
        return min(range(1, MOST_RANKS + 1), key=lambda p: self.compute(p) + self.exchanges(p, network))
