"""Noise streams: all 64 bits of a seed count, and a row's noise is its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from synthaug._noise import _Twister, counter_rng, randn, stream, streams

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x0123456789ABCDEF]


def words(generator: torch.Generator, count: int) -> np.ndarray:
    """The first `count` 32-bit outputs; a 64-bit draw joins two, the first one on top."""
    drawn = torch.empty(count // 2, dtype=torch.int64).random_(generator=generator).numpy()
    return np.stack([drawn >> 32, drawn & 0xFFFFFFFF], 1).ravel()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_is_the_mersenne_twister_keyed_with_both_halves_of_the_seed(seed):
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    expected = np.random.RandomState(key).randint(0, 2**32, 3000, np.uint32).astype(np.int64)
    expected[::2] &= 0x7FFFFFFF  # torch's `random_` leaves out the sign bit
    np.testing.assert_array_equal(words(stream(seed), 3000), expected)


def test_a_numpy_that_lays_its_twister_out_otherwise_is_read_the_slow_way():
    quick, slow = _Twister(), _Twister()
    assert quick._memory is not None
    slow._memory = None
    for seed in SEEDS:
        np.testing.assert_array_equal(quick.keyed(seed), slow.keyed(seed))


def test_threads_do_not_disturb_each_others_streams():
    expected = [randn([stream(seed)], (9,)) for seed in SEEDS]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda seed: randn([stream(seed)], (9,)), SEEDS * 100))
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected * 100, strict=True))


def test_seeds_that_agree_in_the_low_32_bits_have_different_streams():
    seeds = [7 + (high << 32) for high in (0, 1, 2, 2**31, 2**32 - 1)]
    noise = randn(streams(seeds), (64,))
    assert len(torch.unique(noise, dim=0)) == len(seeds)
    correlation = torch.corrcoef(randn(streams(seeds), (4096,))) - torch.eye(len(seeds))
    assert correlation.abs().max() < 6 / 64  # six standard errors


def test_seeds_that_agree_in_the_high_32_bits_have_different_streams():
    seeds = [(7 << 32) + low for low in (0, 1, 2, 2**31, 2**32 - 1)]
    assert len(torch.unique(randn(streams(seeds), (64,)), dim=0)) == len(seeds)


def test_equal_seeds_have_equal_streams_in_any_integer_type():
    expected = torch.randn(9, generator=stream(2**63 + 5))
    for seed in np.array([2**63 + 5], np.uint64), [2**63 + 5]:
        assert torch.equal(torch.randn(9, generator=streams(seed)[0]), expected)


def test_torch_keeps_a_generators_state_as_we_write_it():
    # `manual_seed` is Knuth's initialization from the low 32 bits; numpy's plain seed is the same.
    for seed in (0, 5489, 2**32 - 1):
        state = torch.Generator().manual_seed(seed).get_state()
        state_words = state[24 : 24 + 8 * 624].numpy().view(np.uint64)
        expected = np.random.RandomState(seed).get_state(legacy=False)["state"]["key"]
        np.testing.assert_array_equal(state_words, expected.astype(np.uint64))
    # Besides the words and the recorded seed, fresh states are all alike.
    a, b = (torch.Generator().manual_seed(s).get_state() for s in (0, 5489))
    differing = np.flatnonzero((a != b).numpy())
    assert set(differing[differing >= 8]) <= set(range(24, 24 + 8 * 624))
    assert len(stream(1).get_state()) == len(a)


def test_a_stream_is_not_disturbed_by_torchs_global_generator_and_does_not_disturb_it():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = torch.randn(8, generator=stream(11))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(torch.randn(8, generator=stream(11)), first)


def test_noise_is_standard_normal():
    noise = randn(streams(range(200)), (1, 20, 20)).double()
    n = noise.numel()
    assert noise.dtype == torch.float64
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((noise**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert randn(streams([0]), (2, 3)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 8, 8), (3, 5, 7)], ids=str)
def test_the_noise_of_a_row_does_not_depend_on_the_batch_or_its_order(shape):
    def three_draws(seeds: list[int]) -> torch.Tensor:
        generators = streams(seeds)
        return torch.stack([randn(generators, shape) for _ in range(3)], 1)

    together = three_draws(SEEDS)
    assert together.shape == (len(SEEDS), 3, *shape)
    alone = torch.cat([three_draws([seed]) for seed in SEEDS])
    assert torch.equal(alone, together)
    order = [5, 0, 7, 2, 2, 1]
    assert torch.equal(three_draws([SEEDS[i] for i in order]), together[order])


def test_successive_draws_of_a_row_differ():
    generators = streams([1])
    assert not torch.equal(randn(generators, (64,)), randn(generators, (64,)))


def test_a_counter_makes_any_choice_without_those_before_it():
    keys = [(s, *c) for s in (0, 1, 7, 2**100) for c in ((), (1,), (0, 1), (1, 2, 3), (3, 2, 1))]
    draws = {key: tuple(counter_rng(*key).integers(2**63, size=3)) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert all(tuple(counter_rng(*key).integers(2**63, size=3)) == draws[key] for key in keys)


def test_neighboring_counters_do_not_share_their_draws():
    # A counter that advanced where the draws advance would repeat its neighbor, a few words later.
    for place in range(3):
        counters = [[*[1] * place, i] for i in range(20)]
        draws = np.stack([counter_rng(0, *c).integers(2**63, size=1000) for c in counters])
        assert len(np.unique(draws)) == draws.size


def test_a_counter_takes_no_negative_seed_and_at_most_three_words():
    with pytest.raises(ValueError, match="`seed` must not be negative, got -1"):
        counter_rng(-1)
    with pytest.raises(ValueError, match="holds 4 values"):
        counter_rng(0, 1, 2, 3, 4)
