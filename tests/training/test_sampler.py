import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from clipfh.core.errors import InputError
from clipfh.training.sampler import PKSampler, RandomBatchSampler

quick = settings(max_examples=60, deadline=None)


@st.composite
def pk_cases(draw):
    """Shuffled labels of identities with 1 to 9 images, and a P and K that fit them."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    k = draw(st.integers(1, 4))
    assume(k == 1 or max(sizes) > 1)
    p = draw(st.integers(1, len(sizes)))
    labels = [identity for identity, size in enumerate(sizes) for _ in range(size)]
    return draw(st.permutations(labels)), p, k, draw(st.integers(0, 2**31))


def shortest_epoch(labels, p, k):
    groups = [-(-n // k) for n in Counter(labels).values()]
    return max(max(groups), -(-sum(groups) // p))


@quick
@given(pk_cases())
def test_a_batch_is_p_identities_with_k_images_each(case):
    labels, p, k, seed = case
    sizes = Counter(labels)
    sampler = PKSampler(labels, p, k, seed)
    assert sampler.num_resampled_identities == sum(n < k for n in sizes.values())
    batches = list(sampler)
    assert len(batches) == len(sampler) == shortest_epoch(labels, p, k)
    for batch in batches:
        assert len(batch) == p * k
        groups = [batch[start : start + k] for start in range(0, p * k, k)]
        identities = [labels[group[0]] for group in groups]
        assert len(set(identities)) == p
        for identity, group in zip(identities, groups, strict=True):
            assert {labels[index] for index in group} == {identity}
            assert len(set(group)) == min(k, sizes[identity])


@quick
@given(pk_cases())
def test_what_holds_of_the_order_of_draws(case):
    """Every image once an epoch; identities repeat at the end alone; an identity's images are drawn equally often."""
    labels, p, k, seed = case
    images_of = {identity: [i for i, label in enumerate(labels) if label == identity] for identity in labels}
    sampler = PKSampler(labels, p, k, seed)
    draws = Counter()
    for _ in range(4):
        left = {identity: set(images) for identity, images in images_of.items()}
        for batch in sampler:
            num_open = sum(bool(images) for images in left.values())
            repeated = {labels[index] for index in batch if not left[labels[index]]}
            assert not repeated or num_open < p
            assert len(repeated) == max(0, p - num_open)
            for index in batch:
                left[labels[index]].discard(index)
            draws.update(batch)
            for images in images_of.values():
                counts = [draws[index] for index in images]
                assert max(counts) - min(counts) <= 1
        assert not any(left.values())


def test_an_epoch_that_fits_is_every_image_once():
    labels = [identity for identity in range(12) for _ in range(4)]
    batches = list(PKSampler(labels, p=4, k=2, seed=0))
    assert sorted(index for batch in batches for index in batch) == list(range(48))


def test_identities_meet_others_in_every_epoch():
    labels = [identity for identity in range(12) for _ in range(4)]
    sampler = PKSampler(labels, p=4, k=2, seed=0)
    met = {frozenset(labels[index] for index in batch) for _ in range(5) for batch in sampler}
    assert len(met) > 25  # of 30 batches


@quick
@given(pk_cases(), st.integers(0, 3), st.integers(1, 40), st.data())
def test_resumes_batch_for_batch(case, epoch, min_batches, data):
    labels, p, k, seed = case
    uninterrupted, interrupted = (PKSampler(labels, p, k, seed, min_batches=min_batches) for _ in range(2))
    expected = [list(uninterrupted) for _ in range(epoch + 2)]
    for _ in range(epoch):
        list(interrupted)
    interrupted.set_epoch(epoch)
    batches_done = data.draw(st.integers(0, len(interrupted)))
    used = list(islice(iter(interrupted), batches_done))
    state = json.loads(json.dumps(interrupted.state_dict()))
    assert state == json.loads(json.dumps(interrupted.state_dict(batches_done)))
    resumed = PKSampler(labels, p, k, seed, min_batches=min_batches)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(epoch)  # as a training loop does; it keeps the position
    assert used + list(resumed) == expected[epoch]
    assert list(resumed) == expected[epoch + 1]


@quick
@given(pk_cases(), st.integers(0, 4), st.integers(0, 4))
def test_an_epoch_depends_on_seed_and_number_alone(case, before, epoch):
    labels, p, k, seed = case
    in_turn, jumping = PKSampler(labels, p, k, seed), PKSampler(labels, p, k, seed)
    expected = [list(in_turn) for _ in range(5)]
    jumping.set_epoch(before)
    assert list(jumping) == expected[before]
    jumping.set_epoch(epoch)
    assert list(jumping) == expected[epoch]


@quick
@given(pk_cases(), st.integers(1, 40))
def test_few_images_are_passed_over_until_an_epoch_has_enough_batches(case, min_batches):
    labels, p, k, seed = case
    one_pass, several = PKSampler(labels, p, k, seed), PKSampler(labels, p, k, seed, min_batches=min_batches)
    passes = -(-min_batches // len(one_pass))
    assert len(several) == passes * len(one_pass) >= min_batches
    for _ in range(2):
        assert list(several) == [batch for _ in range(passes) for batch in one_pass]
    assert ("passes over them" in several.note) == (passes > 1)


def test_finished_epochs_given_up_iterations_and_states_between():
    labels = [identity for identity in range(6) for _ in range(5)]
    sampler, reference = PKSampler(labels, 2, 2, seed=3), PKSampler(labels, 2, 2, seed=3)
    first, second, third = (list(reference) for _ in range(3))
    assert first != second
    next(iter(sampler))  # a look at one batch costs nothing
    assert list(sampler) == first
    between = sampler.state_dict()
    assert (between["epoch"], between["batches_done"]) == (1, 0)
    assert sampler.state_dict(batches_done=len(first))["epoch"] == 0
    assert list(sampler) == second
    resumed = PKSampler(labels, 2, 2, seed=3)
    resumed.load_state_dict(between)
    assert [list(resumed), list(resumed)] == [second, third]
    resumed.set_epoch(0)
    assert list(resumed) == first


def test_the_position_is_the_training_loops_where_workers_fetch_ahead():
    labels = [identity for identity in range(6) for _ in range(5)]
    sampler = PKSampler(labels, 2, 2, seed=3)
    loader = DataLoader(torch.arange(30), batch_sampler=sampler, num_workers=1, prefetch_factor=4)
    expected = list(PKSampler(labels, 2, 2, seed=3))
    iterator = iter(loader)
    used = [next(iterator).tolist() for _ in range(2)]
    state = sampler.state_dict(batches_done=2)
    assert sampler.state_dict()["batches_done"] > 2
    resumed = PKSampler(labels, 2, 2, seed=3)
    resumed.load_state_dict(state)
    assert used + list(resumed) == expected


@pytest.mark.parametrize("convert", [np.array, torch.tensor, tuple, lambda labels: [f"id_{label}" for label in labels]])
def test_labels_of_any_kind_give_the_same_batches(convert):
    labels = [3, 1, 3, 1, 7, 7, 7, 2]
    assert list(PKSampler(convert(labels), 2, 2, seed=5)) == list(PKSampler(labels, 2, 2, seed=5))


def test_seeds_differ():
    labels = [identity for identity in range(12) for _ in range(4)]
    assert list(PKSampler(labels, 4, 2, seed=0)) != list(PKSampler(labels, 4, 2, seed=1))


@pytest.mark.parametrize(
    "labels, p, k, message",
    [
        ([0, 0, 1, 1], 3, 2, "only 2; choose --p 2 or fewer"),
        ([], 1, 1, "only 0"),
        ([0, 0], 0, 2, "1 or more"),
        ([0, 0], 1, 0, "1 or more"),
        ([0, 1, 2], 2, 2, "choose --k 1"),
    ],
)
def test_impossible_batches_say_the_way_out(labels, p, k, message):
    with pytest.raises(InputError, match=message):
        PKSampler(labels, p, k, seed=0)


def test_a_state_of_other_data_or_settings_is_refused():
    state = PKSampler([0, 0, 1, 1], 2, 2, seed=0).state_dict()
    with pytest.raises(InputError, match="passes = None, this run has 3"):
        PKSampler([0, 0, 1, 1], 2, 2, seed=0, min_batches=3).load_state_dict(state)
    with pytest.raises(InputError, match="labels"):
        PKSampler([0, 1, 0, 1], 2, 2, seed=0).load_state_dict(state)
    with pytest.raises(InputError, match="k = 2, this run has 1"):
        PKSampler([0, 0, 1, 1], 2, 1, seed=0).load_state_dict(state)
    with pytest.raises(InputError, match="was saved with"):
        PKSampler([0, 0, 1, 1], 2, 2, seed=0).load_state_dict({"epoch": 0})
    with pytest.raises(InputError, match="0 or more"):
        PKSampler([0, 0, 1, 1], 2, 2, seed=-1)


@quick
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9))
def test_random_batches_are_disjoint(num_items, batch_size, seed):
    size = min(batch_size, num_items)
    sampler = RandomBatchSampler(num_items, batch_size, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    drawn = [index for batch in batches for index in batch]
    assert all(len(batch) == size for batch in batches)
    assert len(set(drawn)) == len(drawn) == num_items - sampler.num_left_out
    assert sampler.num_left_out < size
    assert set(drawn) <= set(range(num_items))


def test_random_batches_come_in_several_passes_too():
    one_pass, several = RandomBatchSampler(23, 5, seed=1), RandomBatchSampler(23, 5, seed=1, min_batches=7)
    assert len(several) == 8 and list(several) == [*one_pass, *one_pass]
    assert several.note == (
        "all photos make 4 batches: an epoch is 2 passes over them; 3 images do not fill a batch: other ones are left "
        "out of each pass"
    )


def test_random_batches_resume_and_reshuffle():
    uninterrupted, interrupted = RandomBatchSampler(23, 5, seed=1), RandomBatchSampler(23, 5, seed=1)
    first, second = list(uninterrupted), list(uninterrupted)
    assert first != second
    assert uninterrupted.num_left_out == 3
    used = list(islice(iter(interrupted), 2))
    resumed = RandomBatchSampler(23, 5, seed=1)
    resumed.load_state_dict(interrupted.state_dict())
    assert used + list(resumed) == first
    assert list(resumed) == second


@pytest.mark.parametrize("num_items, batch_size", [(0, 4), (4, 0)])
def test_impossible_random_batches_say_the_way_out(num_items, batch_size):
    with pytest.raises(InputError):
        RandomBatchSampler(num_items, batch_size, seed=0)
