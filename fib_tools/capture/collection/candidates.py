"""What is kept of the calls of one Definition: each Workload once with its count, and how lengths are distributed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fib_tools.capture.collection.dumps import read_rows
from fib_tools.capture.collection.matching import Match, Target
from fib_tools.capture.collection.observation import Seen
from fib_tools.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["Candidate", "Share", "Tally", "choose_diverse", "hash_tensors"]

_SPARE = 4
"""Candidates that are held for each one that is wanted: memory is bounded, whatever the length of the run."""
_ROWS = 256
"""Rows that a scale is taken over, of pages a quarter."""
_PAGES = 64


@dataclass(kw_only=True, slots=True)
class Candidate:
    """A Workload in the making."""

    axes: Mapping[str, int]
    tensors: Mapping[str, torch.Tensor]
    scalars: Mapping[str, float | int | bool]
    scales: Mapping[str, float]
    features: tuple[float, ...]
    """Its sizes as logarithms, and its head-room: what makes Workloads different to a kernel."""
    count: int = 1
    """Calls that it stands for: those that say the same, and those of the Workloads that were dropped for it."""
    folders: list[Path] = field(default_factory=list)
    """Of these calls, where they are to be removed."""


@dataclass(kw_only=True)
class Share:
    """What of a tally was judged and written before, where it is written in steps."""

    reasons: dict[str, str] = field(default_factory=dict)
    """By uuid: why the reference did not accept it; empty where it did."""
    counts: dict[str, int] = field(default_factory=dict)
    """By uuid: the calls that are in the dataset's count."""
    blobs: set[Path] = field(default_factory=set)
    """Those that were new."""


@dataclass(kw_only=True)
class Tally:
    """The calls of one Definition."""

    target: Target
    limit: int
    """Workloads that are wanted."""
    calls: int = 0
    distinct: int = 0
    """Different Workloads among them; when more come than are held, one that comes again may count twice."""
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    """Of every var axis, over all calls."""
    notes: dict[str, None] = field(default_factory=dict)
    held: dict[str, Candidate] = field(default_factory=dict)
    experts: Counter[int] = field(default_factory=Counter)
    """Tokens that each expert got, over all calls."""
    is_made_up: bool = False
    """Something of the calls is not what the engine did."""
    share: Share = field(default_factory=Share)

    def add(self, match: Match, calls: int = 1, *, folders: Sequence[Path] = ()) -> None:
        """Take in calls that say the same; their folders, if they are to be removed."""
        self.calls += calls
        self.notes |= dict.fromkeys(match.notes)
        for name, length in match.axes.items():
            self.lengths.setdefault(name, Counter())[length] += calls
        self.is_made_up |= match.is_made_up
        if match.experts is not None:
            ids, tokens = match.experts.unique(return_counts=True)
            self.experts.update(dict(zip(ids.tolist(), (tokens * calls).tolist(), strict=True)))
        key = _identify(match)
        if key in self.held:
            self.held[key].count += calls
            self.held[key].folders.extend(folders)
            return
        self.distinct += 1
        self.held[key] = replace(_make_candidate(match), count=calls, folders=list(folders))
        if len(self.held) > _SPARE * self.limit:
            self._thin()

    def choose(self) -> list[Candidate]:
        """Choose the Workloads to keep; every call is counted with one of them."""
        return list(choose_diverse(self.held, self.limit).values())

    def forget_folders(self) -> None:
        """Take note that the calls are gone."""
        for candidate in self.held.values():
            candidate.folders.clear()

    def _thin(self) -> None:
        self.held = choose_diverse(self.held, max(1, _SPARE * self.limit // 2))


def _identify(match: Match) -> str:
    return hash_tensors(match.tensors, begin=repr((sorted(match.axes.items()), sorted(match.scalars.items()))))


def hash_tensors(tensors: Mapping[str, torch.Tensor], *, begin: str = "") -> str:
    """Hash names, types, shapes and values of tensors; `begin` stands before them."""
    hashed = hashlib.sha256(begin.encode())
    for name, values in sorted(tensors.items()):
        hashed.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        hashed.update(values.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _make_candidate(match: Match) -> Candidate:
    measured = {name: _measure(seen, match.tensors) for name, seen in match.values.items()}
    return Candidate(
        axes=match.axes,
        tensors=match.tensors,
        scalars=match.scalars,
        scales={name: scale for name, scale in measured.items() if scale is not None},
        features=_find_features(match),
    )


def _measure(seen: Seen, structure: Mapping[str, torch.Tensor]) -> float | None:
    """Measure the root mean square of an input, over some rows; None where its values are not in the dump."""
    import torch

    if seen.source is None or not seen.source.shape:
        return None
    if seen.source.scale is not None:
        return _round(seen.source.scale)
    pages = structure.get("kv_indices")
    try:
        if seen.is_paged and pages is not None:
            drawn = read_rows(seen.source, sorted(set(pages[:_PAGES].tolist())))
        else:
            drawn = read_rows(seen.source, range(_ROWS))
    except FormatError:
        return None
    if not drawn.is_floating_point() or not drawn.numel():
        return None
    return _round(float(drawn.to(torch.float32).square().mean().sqrt()))


def _round(scale: float) -> float | None:
    return float(f"{scale:.3g}") if math.isfinite(scale) else None


def _find_features(match: Match) -> tuple[float, ...]:
    """Describe a Workload: every length, the longest and the mean of its sequences, and how full its cache is."""
    found = [math.log2(1 + length) for length in match.axes.values()]
    for name, values in sorted(match.tensors.items()):
        if name.endswith("indptr") and len(values) > 1:
            lengths = values.diff().double()
            found += [math.log2(1 + float(lengths.max())), math.log2(1 + float(lengths.mean()))]
    if {"num_kv_indices", "num_pages"} <= match.axes.keys():
        found.append(4 * match.axes["num_kv_indices"] / match.axes["num_pages"])
    return tuple(found)


def choose_diverse(candidates: Mapping[str, Candidate], limit: int) -> dict[str, Candidate]:
    """Choose those that lie farthest from one another, the most frequent first; counts of the others go to the nearest."""
    ordered = sorted(candidates, key=lambda key: (-candidates[key].count, key))
    if len(ordered) <= limit:
        return {key: candidates[key] for key in ordered}
    chosen, nearest = _spread([candidates[key].features for key in ordered], limit)
    groups: dict[int, list[Candidate]] = {place: [] for place in chosen}
    for place, key in enumerate(ordered):
        groups[place if place in groups else nearest[place]].append(candidates[key])
    return {ordered[place]: _stand_for(candidates[ordered[place]], groups[place]) for place in chosen}


def _stand_for(chosen: Candidate, group: Sequence[Candidate]) -> Candidate:
    folders = [folder for item in group for folder in item.folders]
    return replace(chosen, count=sum(item.count for item in group), folders=folders)


def _spread(features: Sequence[tuple[float, ...]], limit: int) -> tuple[list[int], list[int]]:
    """Choose places one after the other, each the farthest from those before; and give the nearest chosen of all."""
    import torch

    points = torch.tensor(features, dtype=torch.float64).reshape(len(features), -1)
    chosen = [0]
    nearest = torch.zeros(len(features), dtype=torch.int64)
    distances = (points - points[0]).square().sum(dim=1)
    distances[0] = -1.0
    while len(chosen) < limit:
        place = int(distances.argmax())
        apart = (points - points[place]).square().sum(dim=1)
        closer = apart < distances
        nearest[closer] = place
        distances = torch.where(closer, apart, distances)
        chosen.append(place)
        distances[chosen] = -1.0
    return chosen, [int(place) for place in nearest]
