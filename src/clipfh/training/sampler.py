"""Batch samplers: P identities x K images, and random batches. Both resume in the middle of an epoch.

A pass over the images is planned as a whole from (seed, its number), alike in every process of a run: each takes its
own rows of every batch (`clipfh.core.processes`). An epoch is a pass, or several where images are few. N: images,
I: identities, P: identities a batch, K: images of each, T: batches of a pass.
"""

import hashlib
import heapq
from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from clipfh.core.errors import InputError
from clipfh.training.planned_batches import PlannedBatches

PLAN = 2  # raise it whenever the same seed plans other batches: a run is continued with those that it began with


class PKSampler(PlannedBatches):
    """Batches of P distinct identities with K images each; a batch lists the K images of an identity side by side.

    What holds:
    - Every image is drawn at least once a pass, and a pass is as short as that allows:
      T = max(max over identities of ceil(n / K), ceil(sum of ceil(n / K) / P)).
    - An identity whose images were all drawn comes again in the same pass only where fewer than P identities
      have images left, which is at the pass's end; then the identities drawn least so far, for their size, fill up.
    - Within an identity, no image is drawn for the (m + 1)-th time before each was drawn m times. This holds at any
      moment, over all epochs: what fills an identity's last, incomplete K in one pass is drawn least in the next ones.
    - The K images are distinct where the identity has K. Where it has fewer, all of them are drawn, and drawn again
      in turn until there are K; such identities are counted in `num_resampled_identities`, and never dropped.
    - Which identities meet in a batch is random, in proportion to the images that they have left.
    With equal sizes that K divides, and P dividing the number of groups, a pass is every image exactly once.

    Args:
        labels: N identities, integers or strings (a list, an array or a tensor).
        p: distinct identities a batch.
        k: images of each.
        seed: 0 or more.
        min_batches: of an epoch, which takes as many passes as that needs.

    Attributes:
        num_identities: I.
        num_resampled_identities: identities with fewer than K images.

    Raises:
        InputError: P or K under 1, fewer than P identities, or K > 1 where every identity has one image.
    """

    def __init__(self, labels: Sequence[int | str], p: int, k: int, seed: int, *, min_batches: int = 1) -> None:
        labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        digest = hashlib.sha256("\n".join(map(repr, labels)).encode()).hexdigest()[:16]
        settings = {"p": p, "k": k, "num_images": len(labels), "labels": digest, "plan": PLAN}
        super().__init__(seed, settings)
        self._p, self._k = p, k
        self._members = _group_by_label(labels)
        self._sizes = np.array([len(members) for members in self._members], dtype=np.int64)  # (I,)
        self.num_identities = len(self._members)
        self.num_resampled_identities = int((self._sizes < k).sum())
        self._check()
        if self.num_resampled_identities:
            self._notes.append(
                f"{self.num_resampled_identities:,} identities have fewer than {k} photos: drawn repeatedly"
            )
        self._num_groups = -(-self._sizes // k)  # (I,): how many times K images cover an identity
        self._set_length(max(int(self._num_groups.max()), -(-int(self._num_groups.sum()) // p)), min_batches)
        self._first_group = np.cumsum(self._num_groups) - self._num_groups  # (I,): among the groups of all
        self._order = np.concatenate(self._members)  # (N,): the images, identity by identity
        self._draws_before = {0: np.zeros(len(labels), dtype=np.int64)}  # pass: how often each image was drawn before

    def _check(self) -> None:
        p, k, num_identities = self._p, self._k, self.num_identities
        if p < 1 or k < 1:
            raise InputError(f"a batch of P x K = {p} x {k} is empty; choose --p and --k of 1 or more")
        if num_identities < p:
            raise InputError(
                f"a batch has P = {p} distinct identities, but there are only {num_identities}; "
                f"choose --p {max(num_identities, 1)} or fewer, or train on more identities"
            )
        if k > 1 and self._sizes.max() == 1:
            raise InputError(
                f"K = {k} images an identity are impossible: each of the {num_identities} identities has one image; "
                "choose --k 1, or add photos"
            )

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Return the position, as for both samplers, with how often each image was drawn before the epoch."""
        state = super().state_dict(batches_done)
        number = state["epoch"] * self._passes
        if number not in self._draws_before:
            self._plan(number)
        return {**state, "draws_before_epoch": self._draws_before[number].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, as for both samplers."""
        super().load_state_dict(state)
        self._draws_before = {self._epoch * self._passes: np.array(state["draws_before_epoch"], dtype=np.int64)}

    def _plan(self, number: int) -> np.ndarray:
        """Return the batches of pass `number`, (T, P, K). One that was jumped over is planned for its draws alone."""
        start = max((known for known in self._draws_before if known <= number), default=0)
        draws = self._draws_before.get(start, np.zeros(int(self._sizes.sum()), dtype=np.int64))
        for one in range(start, number + 1):
            before, draws = draws, draws.copy()
            batches = self._plan_next(one, draws)
        self._draws_before = {number: before, number + 1: draws}
        return batches

    def _plan_next(self, number: int, draws: np.ndarray) -> np.ndarray:
        """Plan pass `number`, (T, P, K), and count its draws in `draws` (N,)."""
        rng = np.random.default_rng([self._seed, number])
        identities = rng.permuted(self._choose_identities(rng, draws), axis=1).ravel()  # (T * P,)
        turn = _turns(identities)  # (T * P,): how often the identity came before in this pass
        is_new = turn < self._num_groups[identities]  # the others come again, after all of their images
        groups = np.empty((len(identities), self._k), dtype=np.int64)
        groups[is_new] = self._groups_of_all(rng, draws)[self._first_group[identities[is_new]] + turn[is_new]]
        np.add.at(draws, groups[is_new], 1)
        for place in np.flatnonzero(~is_new):
            members = self._members[identities[place]]
            order = np.lexsort((rng.random(len(members)), draws[members]))  # least drawn first
            groups[place] = np.resize(members[order], self._k)
            np.add.at(draws, groups[place], 1)
        return groups.reshape(self._num_batches, self._p, self._k)

    def _groups_of_all(self, rng: np.random.Generator, draws: np.ndarray) -> np.ndarray:
        """Groups of K images that hold every image once, side by side for each identity, (sum of ceil(n / K), K).

        An identity's images come in the order of their `draws` (N,), then in a random one. Its last group is filled up
        with the images of its other groups that were drawn least; where it has none, with its images in turn.
        """
        k, sizes, num_groups = self._k, self._sizes, self._num_groups
        labels = np.repeat(np.arange(self.num_identities), sizes)  # (N,), of `images`
        images = self._order[np.lexsort((rng.random(len(labels)), draws[self._order], labels))]
        number = np.arange(len(images)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within the identity
        groups = np.empty((int(num_groups.sum()), k), dtype=np.int64)
        groups[self._first_group[labels] + number // k, number % k] = images
        missing = num_groups * k - sizes  # (I,), of the last group
        may_fill = (number < (num_groups - 1)[labels] * k) | (sizes < k)[labels]
        labels, number, images = labels[may_fill], number[may_fill], images[may_fill]
        again = np.where(sizes[labels] < k, number, draws[images] + rng.random(len(images)))
        fillers = images[np.lexsort((again, labels))]
        count = np.bincount(labels, minlength=self.num_identities)  # (I,): how many may fill
        first = np.cumsum(count) - count
        owner = np.repeat(np.arange(self.num_identities), missing)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(missing) - missing, missing)
        last = self._first_group[owner] + num_groups[owner] - 1
        groups[last, k - missing[owner] + number] = fillers[first[owner] + number % count[owner]]
        return groups

    def _choose_identities(self, rng: np.random.Generator, draws: np.ndarray) -> np.ndarray:
        """The P identities of each batch, (T, P), in time that grows with their number alone.

        An identity stands in a shuffled pile as often as it has groups. The next batch takes from the top of it; what
        it has already goes back somewhere into the pile. So it is drawn in proportion to the groups that are left.
        """
        p, left = self._p, self._num_groups.tolist()
        pile = rng.permutation(np.repeat(np.arange(self.num_identities), self._num_groups)).tolist()
        out_of_turn = [0] * self.num_identities  # groups that were taken, but not from the pile
        with_left: dict[int, set[int]] = {}  # identities by the groups that they have left
        for identity, groups in enumerate(left):
            with_left.setdefault(groups, set()).add(identity)
        identity_draws = np.add.reduceat(draws[self._order], np.cumsum(self._sizes) - self._sizes).tolist()
        sizes, num_open = self._sizes.tolist(), self.num_identities
        finished: list[tuple[float, float, int]] = []  # a heap of the others: draws for their size, a tie-break
        batches = np.empty((self._num_batches, p), dtype=np.int64)
        for number in range(self._num_batches):
            # who must be in every batch from here on, or the pass ends too early; where few are open, all of them
            forced = with_left.get(self._num_batches - number, ())
            chosen = set(forced if num_open > p else chain.from_iterable(with_left.values()))
            for identity in chosen:
                out_of_turn[identity] += 1
            aside = []
            while len(chosen) < min(p, num_open):
                identity = pile.pop()
                if out_of_turn[identity]:
                    out_of_turn[identity] -= 1
                elif identity in chosen:
                    aside.append(identity)
                else:
                    chosen.add(identity)
            for identity in aside:
                place = int(rng.random() * (len(pile) + 1))
                pile.append(identity)
                pile[place], pile[-1] = pile[-1], pile[place]
            repeated = [heapq.heappop(finished)[2] for _ in range(p - len(chosen))]
            batches[number] = [*chosen, *repeated]
            for identity in chosen:
                with_left[left[identity]].discard(identity)
                if not with_left[left[identity]]:
                    del with_left[left[identity]]
                left[identity] -= 1
                if left[identity]:
                    with_left.setdefault(left[identity], set()).add(identity)
            num_open -= sum(left[identity] == 0 for identity in chosen)
            for identity in batches[number].tolist():
                identity_draws[identity] += self._k
                if left[identity] == 0:
                    heapq.heappush(finished, (identity_draws[identity] / sizes[identity], rng.random(), identity))
        return batches


class RandomBatchSampler(PlannedBatches):
    """Batches of `batch_size` items from a new random permutation every pass, each item at most once in it.

    The items that do not fill a batch are left out of the pass (others in every pass), and counted in
    `num_left_out`. Where there are fewer items than `batch_size`, the one batch holds all of them.

    Args:
        num_items: N, at least 1.
        batch_size: items a batch.
        seed: 0 or more.
        min_batches: of an epoch, which takes as many passes as that needs.

    Attributes:
        num_left_out: items that a pass leaves out.

    Raises:
        InputError: no items, or a batch size under 1.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, *, min_batches: int = 1) -> None:
        super().__init__(seed, {"num_items": num_items, "batch_size": batch_size})
        if num_items < 1 or batch_size < 1:
            raise InputError(f"cannot make batches of {batch_size} from {num_items} images; both must be 1 or more")
        self._num_items, self._batch_size = num_items, min(batch_size, num_items)
        self._set_length(num_items // self._batch_size, min_batches)
        self.num_left_out = num_items - self._num_batches * self._batch_size
        if self.num_left_out:
            self._notes.append(
                f"{self.num_left_out:,} images do not fill a batch: other ones are left out of each pass"
            )

    def _plan(self, number: int) -> np.ndarray:
        """Return the batches of pass `number`, (T, batch_size)."""
        order = np.random.default_rng([self._seed, number]).permutation(self._num_items)
        return order[: self._num_batches * self._batch_size].reshape(self._num_batches, self._batch_size)


def _turns(identities: np.ndarray) -> np.ndarray:
    """How often each of `identities` (M,) came before in them, (M,)."""
    order = np.argsort(identities, kind="stable")
    _, first, count = np.unique(identities[order], return_index=True, return_counts=True)
    turns = np.empty(len(identities), dtype=np.int64)
    turns[order] = np.arange(len(identities)) - np.repeat(first, count)
    return turns


def _group_by_label(labels: Sequence[Hashable]) -> list[np.ndarray]:
    """Return the image indices of each identity, identities in the order of their first image."""
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in members.values()]
