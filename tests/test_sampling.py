import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama import _native
from dllama.engine.params import SamplingParams
from dllama.engine.rows import RowQuery, SlicedRow
from dllama.engine.sampling import Coin, Sampler, log_probs
from dllama.errors import UsageError


class PeerSampler:
    """distributed-llama's sampler as its behaviour is described: float32 throughout, one coin per sampled token."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p, self.state = np.float32(temperature), np.float32(top_p), seed

    def coin(self) -> np.float32:
        self.state ^= self.state >> 12
        self.state = (self.state ^ (self.state << 25)) % 2**64
        self.state ^= self.state >> 27
        out = (self.state * 0x2545F4914F6CDD1D % 2**64) >> 32
        return np.float32(out >> 8) / np.float32(2**24)

    def choose(self, logits: np.ndarray) -> int:
        if self.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits / self.temperature
        weights = np.exp(scaled - scaled.max())
        probs = weights / weights.sum(dtype=np.float32)
        coin = self.coin()
        if not 0 < self.top_p < 1:
            return min(int(np.searchsorted(np.cumsum(probs), coin, side="right")), len(probs) - 1)
        kept = np.flatnonzero(probs >= (1 - self.top_p) / np.float32(len(probs) - 1))
        kept = kept[np.argsort(-probs[kept], kind="stable")]
        sums = np.cumsum(probs[kept])
        last = min(int(np.searchsorted(sums, self.top_p, side="right")), len(kept) - 1)
        chosen = int(np.searchsorted(sums[: last + 1], coin * sums[last], side="right"))
        return int(kept[min(chosen, last)])


def random_logits(rng: np.random.Generator, size: int) -> np.ndarray:
    return (rng.standard_normal(size) * rng.uniform(0.5, 6)).astype(np.float32)


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.8, 1.5])
@pytest.mark.parametrize("size", [32, 1000, 20000])
def test_tokens_are_those_of_distributed_llama(size, temperature, top_p):
    rng = np.random.default_rng(size)
    seed = 12345 + size
    ours = Sampler(SamplingParams(temperature=temperature, top_p=top_p, seed=seed), 0, size)
    peer = PeerSampler(temperature, top_p, seed)
    rows = [random_logits(rng, size) for _ in range(40 if size < 20000 else 10)]
    assert [ours.choose(row, []) for row in rows] == [peer.choose(row) for row in rows]


@given(st.integers(0, 2**64 - 1))
def test_coins_are_those_of_distributed_llama(seed):
    ours, peer = Coin(seed), PeerSampler(1, 1, seed)
    for _ in range(20):
        coin = ours.flip()
        assert coin == peer.coin()
        assert 0 <= coin < 1
        assert coin * 2**24 == int(coin * 2**24)


def test_known_coins_of_seed_1():
    # By hand: 1 -> 1 ^ 1<<25 = 0x2000001; times 0x2545F4914F6CDD1D, bits 40 and up, over 2**24.
    assert Coin(1).flip() == (0x2000001 * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24


def test_seed_0_always_draws_0():
    coin = Coin(0)
    assert [coin.flip() for _ in range(3)] == [0.0, 0.0, 0.0]


def test_without_a_seed_every_request_draws_differently():
    assert Coin(None).state != Coin(None).state


def test_greedy_takes_the_first_of_equals_and_no_coin():
    sampler = Sampler(SamplingParams(temperature=0.0, seed=7), 0, 5)
    assert sampler.choose(np.array([0, 3, 1, 3, 2], np.float32), []) == 1
    assert sampler._coin.state == 7


def test_tokens_without_text_are_never_chosen():
    logits = np.array([0, 1, 2, 9, 9], np.float32)
    assert Sampler(SamplingParams(temperature=0.0), 0, 3).choose(logits, []) == 2
    sampler = Sampler(SamplingParams(temperature=2.0, top_p=1.0, seed=1), 0, 3)
    assert {sampler.choose(logits, []) for _ in range(50)} <= {0, 1, 2}


def greedy(logits: list[float], token_ids: list[int], num_prompt: int = 0, **params) -> np.ndarray:
    """Logits as they are after penalties and bias."""
    row = np.array(logits, np.float32)
    before = row.copy()
    adjusted = Sampler(SamplingParams(temperature=0.0, **params), num_prompt, len(row))._adjusted(row, token_ids)
    np.testing.assert_array_equal(row, before)
    return adjusted


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits():
    adjusted = greedy([2, -2, 2, -2], [0, 1, 1, 0], repeat_penalty=2.0)
    assert adjusted.tolist() == [1, -4, 2, -2]


@pytest.mark.parametrize(("last_n", "expected"), [(0, [4, 4, 4]), (1, [4, 4, 2]), (2, [4, 2, 2]), (-1, [2, 2, 2])])
def test_repeat_last_n(last_n, expected):
    assert greedy([4, 4, 4], [0, 1, 2], repeat_penalty=2.0, repeat_last_n=last_n).tolist() == expected


def test_presence_and_frequency_count_what_was_generated():
    token_ids = [0, 0, 0, 1, 2, 2]  # 0 in the prompt only
    assert greedy([0, 0, 0], token_ids, 3, presence_penalty=1.0).tolist() == [0, -1, -1]
    assert greedy([0, 0, 0], token_ids, 3, frequency_penalty=0.5).tolist() == [0, -0.5, -1]
    assert greedy([0, 0, 0], token_ids, 3, presence_penalty=1.0, frequency_penalty=0.5).tolist() == [0, -1.5, -2]


def test_bias_comes_after_penalties():
    adjusted = greedy([2, 2, 2], [0], repeat_penalty=2.0, logit_bias={0: 10.0, 2: -5.0})
    assert adjusted.tolist() == [11, 2, -3]


def test_without_penalties_the_row_is_not_copied():
    row = np.zeros(4, np.float32)
    assert Sampler(SamplingParams(), 0, 4)._adjusted(row, [1, 2]) is row


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {3, 2}),
        ({"min_p": 1.0}, {3}),
        ({"min_p": 0.3}, {3, 2}),
        ({"top_p": 0.01}, {3}),
    ],
)
def test_filters(params, allowed):
    row = np.array([0, 1, 2, 3, -1], np.float32)  # each e times less likely than the next
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "seed": 3} | params), 0, 5)
    assert {sampler.choose(row, []) for _ in range(200)} == allowed


def test_frequencies_follow_the_probabilities():
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=5), 0, 3)
    counts = np.bincount([sampler.choose(row, []) for _ in range(4000)], minlength=3)
    # Four standard deviations of a binomial count, at most sqrt(4000) / 2 each.
    np.testing.assert_allclose(counts, [2000, 1200, 800], atol=2 * math.sqrt(4000))


def test_log_probs_are_of_the_models_own_distribution():
    rng = np.random.default_rng(0)
    row = random_logits(rng, 500)
    expected = row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64))
    logprob, top = log_probs(row, 17, 5)
    assert logprob == pytest.approx(expected[17], abs=1e-5)
    assert [token for token, _ in top] == np.argsort(-expected, kind="stable")[:5].tolist()
    assert [value for _, value in top] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-5)


def test_log_probs_of_equals_come_by_id():
    row = np.array([1, 2, 2, 2, 0], np.float32)
    assert [token for token, _ in log_probs(row, 0, 2)[1]] == [1, 2]
    assert len(log_probs(row, 0, 100)[1]) == 5


def test_native_argmax():
    assert _native.argmax(np.array([-5, -1, -1], np.float32)) == 1


class FakeNodes:
    """Nodes that hold slices of a row, in numpy; counts how often they sent the whole row."""

    def __init__(self, logits: np.ndarray, cuts: list[int]) -> None:
        self.query: RowQuery | None = None
        self.logits, self.num_fetched = logits, 0
        bounds = [0, *sorted(cuts), len(logits)]
        self.slices = list(pairwise(bounds))

    def row(self, query: RowQuery) -> SlicedRow:
        """What the nodes answer."""
        self.query = query
        allowed = self.allowed()
        listed, bounds = [], []
        for begin, end in self.slices:
            ids = allowed[(allowed >= begin) & (allowed < end)]
            best = self.ordered(ids)[: query.count]
            listed.append(best)
            bounds += [best[-1]] if len(best) < len(ids) else []
        ids = self.ordered(np.concatenate(listed))
        if bounds:
            ids = ids[: np.flatnonzero(ids == self.ordered(np.array(bounds))[0])[0] + 1]
        wide = self.logits.astype(np.float64)
        top = wide[allowed].max() if allowed.size else -math.inf
        candidates = SimpleNamespace(
            ids=ids.astype(np.int32),
            logits=self.logits[ids],
            values=self.logits[query.ids],
            max=top,
            sum_exp=np.exp((wide[allowed] - top) / query.temperature).sum(),
            log_sum_exp=np.logaddexp.reduce(wide),
        )
        return SlicedRow(query, candidates, self, 0)  # type: ignore[arg-type]

    def allowed(self) -> np.ndarray:
        assert self.query
        return np.setdiff1d(np.arange(self.query.limit), self.query.ids)

    def ordered(self, ids: np.ndarray) -> np.ndarray:
        return ids[np.lexsort((ids, -self.logits[ids]))].astype(np.int64)

    def full_logits(self, index: int) -> np.ndarray:
        self.num_fetched += 1
        return self.logits

    def draw(self, index: int, coin: float) -> tuple[int, float]:
        assert self.query
        allowed = self.allowed()
        token = allowed[_native.sample(self.logits[allowed], self.query.temperature, 0, 1.0, 0.0, coin)]
        return int(token), float(self.logits[token])


ANY_PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_p": st.sampled_from([0.0, 0.5, 0.9, 0.999]),
        "top_k": st.sampled_from([0, 1, 5, 40, 1000]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5]),
        "repeat_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, 0.2]),
        "logit_bias": st.sampled_from([{}, {7: 5.0, 3: -100.0, 11: 20.0}]),
        "logprobs": st.sampled_from([0, 1, 20]),
        "seed": st.integers(1, 2**64 - 1),
    }
)


@given(ANY_PARAMS, st.integers(0, 2**32), st.lists(st.integers(0, 600), max_size=4), st.booleans(), st.booleans())
def test_rows_on_several_nodes_give_the_tokens_of_whole_rows(values, seed, cuts, has_ties, is_padded):
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, 600)
    if has_ties:
        logits = np.round(logits)
    params, token_ids = SamplingParams(**values), rng.integers(0, 590, 30).tolist()
    whole, sliced = (Sampler(params, 10, 590 if is_padded else 600, 600) for _ in range(2))
    nodes = FakeNodes(logits, cuts)
    for _ in range(3):
        query = sliced.query(token_ids)
        row = nodes.row(query) if query else logits
        token = whole.choose(logits, token_ids)
        assert sliced.choose(row, token_ids) == token
        if params.logprobs:
            (logprob, top), (expected, expected_top) = (log_probs(r, token, params.logprobs) for r in (row, logits))
            assert logprob == pytest.approx(expected, abs=1e-4)
            assert [pair[0] for pair in top] == [pair[0] for pair in expected_top]
            assert [pair[1] for pair in top] == pytest.approx([pair[1] for pair in expected_top], abs=1e-4)
        token_ids.append(token)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repeat_penalty": 1.2, "logit_bias": {5: 3.0}, "logprobs": 5},
        {"top_k": 40},
        {"top_k": 1},
        {"top_p": 0.9},
        {"top_p": 0.9, "repeat_penalty": 1.1},
        {"min_p": 0.05, "top_p": 1.0},
        {"top_p": 1.0},
        {"top_p": 1.0, "logprobs": 3},
    ],
)
def test_usual_settings_need_no_whole_row(params):
    logits = (np.random.default_rng(5).standard_normal(20000) * 3).astype(np.float32)
    logits[:50] += 8
    sampler = Sampler(SamplingParams(seed=2, **params), 0, 20000)
    nodes = FakeNodes(logits, [7000, 14000])
    for token in range(20):
        query = sampler.query([token, 5])
        assert query
        row = nodes.row(query)
        chosen = sampler.choose(row, [token, 5])
        log_probs(row, chosen, max(1, sampler._params.logprobs))
    assert nodes.num_fetched == 0


def test_a_flat_row_is_fetched_once_and_drawn_from():
    logits = np.zeros(5000, np.float32)
    params = SamplingParams(temperature=1.0, top_p=0.5, seed=3)
    nodes, sampler = FakeNodes(logits, [2500]), Sampler(params, 0, 5000)
    query = sampler.query([1])
    assert query
    assert sampler.choose(nodes.row(query), [1]) == Sampler(params, 0, 5000).choose(logits, [1])
    assert nodes.num_fetched == 1


def test_what_cannot_be_asked_for_is_sent_whole():
    assert Sampler(SamplingParams(top_p=1.0, repeat_penalty=1.5), 0, 9000).query([1]) is None
    many = dict.fromkeys(range(5000), 1.0)
    assert Sampler(SamplingParams(temperature=0.0, logit_bias=many), 0, 9000).query([1]) is None


@pytest.mark.parametrize("strange", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 3}])
def test_logits_that_are_no_numbers_end_in_the_same_error(params, strange):
    sampler = Sampler(SamplingParams(**params), 0, 8)
    query = sampler.query([1])
    assert query
    largest = -math.inf if math.isnan(strange) else strange
    candidates = SimpleNamespace(
        ids=np.array([2], np.int32),
        logits=np.array([largest], np.float32),
        values=np.empty(0, np.float32),
        max=largest,
        sum_exp=math.nan,
        log_sum_exp=math.nan,
    )
    with pytest.raises(ValueError, match="logits are not finite numbers"):
        sampler.choose(SlicedRow(query, candidates, FakeNodes(np.zeros(8), []), 0), [1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 2),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("presence_penalty", math.inf),
        ("frequency_penalty", 1e9),
        ("seed", -1),
        ("seed", 2**64),
        ("logprobs", -1),
        ("logprobs", 101),
        ("stop_token_ids", (1, -1)),
        ("stop_token_ids", ("a",)),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {3: math.nan}),
    ],
)
def test_params_out_of_range_name_field_and_range(field, value):
    with pytest.raises(UsageError, match=rf"^{field}.*: expected a.* number from .* to .*, found "):
        SamplingParams(**{field: value})


def test_params_take_whole_numbers_and_lists():
    params = SamplingParams(temperature=1, top_p=0, stop_token_ids=[4, 5], logit_bias={1: -100})
    assert params.stop_token_ids == (4, 5)
    assert not params.is_greedy
    assert SamplingParams(temperature=1e-7).is_greedy
