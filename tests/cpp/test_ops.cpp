// Ops against plain double arithmetic.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "base/errors.h"
#include "base/thread_pool.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "ops/attention.h"
#include "ops/bandwidth.h"
#include "ops/candidates.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/recode.h"
#include "ops/routing.h"
#include "ops/sample.h"
#include "quant/codec.h"

using namespace dllama;

namespace {

constexpr double kEps = 5.97e-8;  // half an ulp of 1 in F32: the relative error of one rounding

std::vector<float> random_values(size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

}  // namespace

// From any address, through chunks of any length, to the bytes of the codec.
TEST(recoding_gives_the_bytes_of_the_codec) {
  for (const size_t n : {size_t{32}, size_t{2048}, size_t{2080}, size_t{4096 + 96}}) {
    auto values = random_values(n, 3);
    for (float& v : values) v = std::bit_cast<float>(std::bit_cast<uint32_t>(v) & 0xffff0000u);  // as BF16 holds it
    values[n / 2] = -40.0f;
    std::vector<std::byte> wide(n * 4 + 1), narrow(n * 2 + 1);  // read from odd addresses
    std::memcpy(wide.data() + 1, values.data(), n * 4);
    for (size_t i = 0; i < n; ++i) {
      const auto half = static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
      std::memcpy(narrow.data() + 1 + 2 * i, &half, 2);
    }
    for (const DType type : {DType::F32, DType::F16, DType::Q40, DType::Q80}) {
      const check::Scope scope("n", n, "type", static_cast<int>(type));
      std::vector<std::byte> expected(row_bytes(type, n)), out(row_bytes(type, n));
      if (type == DType::F32) std::memcpy(expected.data(), values.data(), expected.size());
      if (type == DType::F16) f32_to_f16(values.data(), reinterpret_cast<uint16_t*>(expected.data()), n);
      if (type == DType::Q40) quantize_q40(values.data(), reinterpret_cast<BlockQ40*>(expected.data()), n / kBlockSize);
      if (type == DType::Q80) quantize_q80(values.data(), reinterpret_cast<BlockQ80*>(expected.data()), n / kBlockSize);
      CHECK_EQ(recode(kernels(), FloatType::F32, wide.data() + 1, type, out.data(), n), 40.0f);
      CHECK(out == expected);
      std::fill(out.begin(), out.end(), std::byte{0});
      CHECK_EQ(recode(kernels(), FloatType::BF16, narrow.data() + 1, type, out.data(), n), 40.0f);
      CHECK(out == expected);
    }
    values[n - 1] = std::nanf("");
    std::vector<std::byte> out(row_bytes(DType::Q40, n));
    CHECK(std::isnan(recode(kernels(), FloatType::F32, values.data(), DType::Q40, out.data(), n)));
  }
}

TEST(rms_norm_is_the_formula) {
  for (const size_t n : {2, 31, 64, 2048}) {
    const auto x = random_values(n, 1, 3.0f), w = random_values(n, 2);
    std::vector<float> out(n);
    rms_norm(kernels(), x.data(), w.data(), 1e-5f, out.data(), n);
    double squares = 0;
    for (const float v : x) squares += double{v} * v;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
    // The sum of n squares errs by at most n roundings, the root halves that; four more roundings follow.
    for (size_t i = 0; i < n; ++i) {
      const double expected = x[i] * scale * w[i];
      CHECK_NEAR(out[i], expected, (static_cast<double>(n) / 2 + 4) * kEps * std::abs(expected) + 1e-30);
    }
  }
}

// The two steps of a norm whose ranges lie on several nodes: the quants do not know of 1/rms, the scales do.
TEST(a_norm_in_two_steps_is_the_norm) {
  const size_t hidden = 96;
  const auto x = random_values(hidden, 1), weight = random_values(hidden, 3);
  std::vector<float> scratch(hidden), expected(hidden);
  rms_norm(kernels(), x.data(), weight.data(), 1e-6f, expected.data(), hidden);
  for (const bool quantized : {false, true}) {
    ActivationRows rows(quantized, 3, hidden), received(quantized, 3, hidden);
    float squares = 0.0f;
    for (const Range range : {Range{0, 32}, Range{32, 32}, Range{32, 96}}) {
      squares += kernels().sum_squares(x.data() + range.begin, range.size());
      store_weighted(kernels(), x.data(), weight.data(), range, scratch.data(), rows, 2);
      std::vector<std::byte> bytes(ActivationRows::wire_bytes(quantized, range.size()));
      rows.to_wire(2, range.begin, range.size(), bytes.data());
      received.from_wire(1, range.begin, range.size(), bytes.data());
    }
    const size_t row_size = ActivationRows::bytes(quantized, 1, hidden);
    CHECK(std::memcmp(rows.row(2), received.row(1), row_size) == 0);
    rows.scale(2, inverse_rms(squares, 1e-6f, hidden));
    for (size_t i = 0; i < hidden; ++i) {
      if (quantized) {
        const auto& block = static_cast<const ActivationQ80*>(rows.row(2))[i / kBlockSize];
        CHECK_NEAR(block.quants[i % kBlockSize] * block.scale, expected[i], 0.51 * block.scale);
      } else {
        // Three roundings in another order, and the sum of squares in another one.
        CHECK_NEAR(static_cast<const float*>(rows.row(2))[i], expected[i], 10 * kEps * std::abs(expected[i]));
      }
    }
  }
}

namespace {

// One head's pages filled with random keys and values, kept in F32 beside for the reference.
struct Sequence {
  size_t head_dim, positions;
  std::vector<float> k, v;  // [positions, head_dim]
  std::vector<std::byte> pool;
  std::vector<int32_t> table;
  KvPages pages;

  Sequence(DType type, size_t dim, size_t count) : head_dim(dim), positions(count) {
    const size_t position_bytes = type == DType::F16 ? 2 * dim : type == DType::Q80 ? dim + sizeof(float) : 4 * dim;
    const size_t half = kPageSize * position_bytes;
    const size_t num_pages = (count + kPageSize - 1) / kPageSize;
    k = random_values(count * dim, 11);
    v = random_values(count * dim, 12);
    pool.resize(2 * half * num_pages, std::byte{0xff});  // what no position has written must not matter: here NaNs
    for (size_t page = 0; page < num_pages; ++page) table.push_back(static_cast<int32_t>(num_pages - 1 - page));
    pages = {type, pool.data(), 2 * half, half, table.data()};
    std::vector<uint16_t> half_row(dim);
    for (size_t p = 0; p < count; ++p) {
      std::byte* page = pool.data() + static_cast<size_t>(table[p / kPageSize]) * 2 * half;
      float* key = k.data() + p * dim;
      float* value = v.data() + p * dim;
      if (type == DType::F16) {
        kernels().store_key_f16(key, dim, p % kPageSize, reinterpret_cast<uint16_t*>(page));
        kernels().f32_to_f16(value, reinterpret_cast<uint16_t*>(page + half) + p % kPageSize * dim, dim);
        for (float* row : {key, value}) {  // the reference sees the rounded numbers
          kernels().f32_to_f16(row, half_row.data(), dim);
          kernels().f16_to_f32(half_row.data(), row, dim);
        }
      } else if (type == DType::Q80) {
        kernels().store_key_q80(key, dim, p % kPageSize, reinterpret_cast<int8_t*>(page));
        kernels().store_value_q80(value, dim, p % kPageSize, reinterpret_cast<int8_t*>(page + half));
        for (float* row : {key, value}) {
          const RowScale scale = q80_row_scale(row, dim);
          for (size_t d = 0; d < dim; ++d) row[d] = static_cast<float>(q80_quant(row[d], scale.inverse)) * scale.scale;
        }
      } else {
        kernels().store_key_f32(key, dim, p % kPageSize, reinterpret_cast<float*>(page));
        std::copy_n(value, dim, reinterpret_cast<float*>(page + half) + p % kPageSize * dim);
      }
    }
  }

  std::vector<double> expected(const float* q, size_t last, size_t window = SIZE_MAX) const {
    const size_t first = last + 1 - std::min(window, last + 1);
    std::vector<double> scores(last + 1), out(head_dim);
    double largest = -1e300, total = 0;
    for (size_t p = first; p <= last; ++p) {
      for (size_t d = 0; d < head_dim; ++d) scores[p] += double{q[d]} * k[p * head_dim + d];
      largest = std::max(largest, scores[p]);
    }
    for (size_t p = first; p <= last; ++p) total += scores[p] = std::exp(scores[p] - largest);
    for (size_t p = first; p <= last; ++p) {
      for (size_t d = 0; d < head_dim; ++d) out[d] += scores[p] / total * v[p * head_dim + d];
    }
    return out;
  }
};

}  // namespace

TEST(attention_is_softmax_of_all_earlier_positions) {
  for (const DType type : {DType::F16, DType::F32, DType::Q80}) {
    for (const size_t head_dim : {2, 16, 64, 80, 128}) {
      const Sequence sequence(type, head_dim, 200);
      const std::vector<size_t> rows_at{0, 0, 5, 63, 64, 127, 130, 199};
      AttentionScratch scratch(rows_at.size(), head_dim);
      const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
      scratch.q = random_values(rows_at.size() * head_dim, 13, scale);
      scratch.positions = rows_at;
      attend(kernels(), sequence.pages, rows_at.size(), head_dim, scratch);
      for (size_t row = 0; row < rows_at.size(); ++row) {
        const check::Scope scope("type", static_cast<int>(type), "head_dim", head_dim, "row", row);
        const auto expected = sequence.expected(scratch.q.data() + row * head_dim, rows_at[row]);
        // Scores are sums of head_dim products of size ~1, so exp errs by head_dim roundings and its own 2 ulp; the
        // weighted mean of values (|v| < 5) by one rounding per position.
        double tolerance = 5 * (2.0 * static_cast<double>(head_dim) + 200 + 8) * kEps;
        // Q80 rounds each value of a query (|q| < 5 scale) by half a step, which moves scores, and so weights, by up to
        // the sum of that times |k| < 5; and each weight by half a step of the largest.
        if (type == DType::Q80) {
          const double score_error = static_cast<double>(head_dim) * 5 * (5.0 * scale / kMaxQueryQuant / 2);
          tolerance += 5 * (2 * score_error + 0.5 * static_cast<double>(rows_at[row] + 1) / kMaxWeightQuant);
        }
        for (size_t d = 0; d < head_dim; ++d) {
          CHECK_NEAR(scratch.acc[row * head_dim + d], expected[d], tolerance);
        }
      }
    }
  }
}

// Over segments, attended to at once or one by one: the same bits, and right.
TEST(attention_over_segments) {
  const size_t head_dim = 16, segment_size = kSegmentPages * kPageSize;
  const Sequence sequence(DType::F32, head_dim, 2 * segment_size + 100);
  const std::vector<size_t> rows_at{3, segment_size - 1, segment_size, 2 * segment_size + 99};
  const size_t rows = rows_at.size();
  AttentionScratch at_once(rows, head_dim), in_parts(rows, head_dim);
  at_once.q = random_values(rows * head_dim, 13, 0.25f);
  at_once.positions = rows_at;
  in_parts.q = at_once.q;
  in_parts.positions = rows_at;
  attend(kernels(), sequence.pages, rows, head_dim, at_once);
  CHECK_EQ(segment_of(rows_at.back()), size_t{2});
  attend_segment(kernels(), sequence.pages, 2, rows, head_dim, in_parts, in_parts.segment());  // in any order
  const auto last_max = in_parts.segment_max, last_sum = in_parts.segment_sum, last_acc = in_parts.segment_acc;
  attend_segment(kernels(), sequence.pages, 0, rows, head_dim, in_parts, in_parts.result());
  attend_segment(kernels(), sequence.pages, 1, rows, head_dim, in_parts, in_parts.segment());
  merge_segment(rows, head_dim, in_parts.segment(), in_parts.result());
  in_parts.segment_max = last_max;
  in_parts.segment_sum = last_sum;
  in_parts.segment_acc = last_acc;
  merge_segment(rows, head_dim, in_parts.segment(), in_parts.result());
  finish_rows(rows, head_dim, in_parts.result());
  CHECK(check::same_bits(in_parts.acc, at_once.acc));
  for (size_t row = 0; row < rows; ++row) {
    const auto expected = sequence.expected(at_once.q.data() + row * head_dim, rows_at[row]);
    const double tolerance = 5 * (2.0 * head_dim + static_cast<double>(rows_at[row]) + 16) * kEps;
    for (size_t d = 0; d < head_dim; ++d) CHECK_NEAR(at_once.acc[row * head_dim + d], expected[d], tolerance);
  }
}

// A window that begins in any page or segment: right, and the same bits alone as among rows that see earlier pages.
TEST(attention_over_windows) {
  const size_t head_dim = 16, segment_size = kSegmentPages * kPageSize;
  const Sequence sequence(DType::F32, head_dim, 2 * segment_size + 100);
  const std::vector<size_t> rows_at{3, 90, segment_size - 1, segment_size, segment_size + 40, 2 * segment_size + 99};
  const size_t rows = rows_at.size();
  for (const size_t window : {size_t{1}, size_t{64}, size_t{65}, segment_size, 3 * segment_size}) {
    AttentionScratch together(rows, head_dim), alone(1, head_dim);
    together.q = random_values(rows * head_dim, 13, 0.25f);
    together.positions = rows_at;
    const AttentionSpec spec{window, 0.0f};
    attend(kernels(), sequence.pages, rows, head_dim, together, spec);
    for (size_t row = 0; row < rows; ++row) {
      const check::Scope scope("window", window, "row", row);
      const float* q = together.q.data() + row * head_dim;
      std::copy_n(q, head_dim, alone.q.begin());
      alone.positions[0] = rows_at[row];
      attend(kernels(), sequence.pages, 1, head_dim, alone, spec);
      CHECK(std::equal(alone.acc.begin(), alone.acc.end(), together.acc.data() + row * head_dim));
      const auto expected = sequence.expected(q, rows_at[row], window);
      const double tolerance = 5 * (2.0 * head_dim + static_cast<double>(rows_at[row]) + 16) * kEps;
      for (size_t d = 0; d < head_dim; ++d) CHECK_NEAR(alone.acc[d], expected[d], tolerance);
    }
  }
}

// Pages that no row sees are not read: their numbers may be anything.
TEST(attention_skips_pages_before_a_window) {
  const size_t head_dim = 16;
  Sequence sequence(DType::F32, head_dim, 500);
  std::vector<int32_t> table = sequence.table;
  for (size_t page = 0; page < 5; ++page) table[page] = INT32_MAX;
  sequence.pages.table = table.data();
  AttentionScratch scratch(2, head_dim);
  scratch.q = random_values(2 * head_dim, 13, 0.25f);
  scratch.positions = {383, 390};
  attend(kernels(), sequence.pages, 2, head_dim, scratch, {64, 0.0f});
  const auto expected = sequence.expected(scratch.q.data(), 383, 64);
  for (size_t d = 0; d < head_dim; ++d) CHECK_NEAR(scratch.acc[d], expected[d], 1e-4);
}

// A row must not feel its neighbours: the same bits alone as among others.
TEST(attention_rows_do_not_depend_on_each_other) {
  const size_t head_dim = 64;
  const Sequence sequence(DType::F16, head_dim, 300);
  const size_t count = 13;
  AttentionScratch together(count, head_dim), alone(1, head_dim);
  together.q = random_values(count * head_dim, 17, 0.2f);
  for (size_t row = 0; row < count; ++row) together.positions[row] = 100 + 15 * row;
  const auto q = together.q;
  attend(kernels(), sequence.pages, count, head_dim, together);
  for (size_t row = 0; row < count; ++row) {
    std::copy_n(q.begin() + static_cast<std::ptrdiff_t>(row * head_dim), head_dim, alone.q.begin());
    alone.positions[0] = 100 + 15 * row;
    attend(kernels(), sequence.pages, 1, head_dim, alone);
    const std::vector<float> among(together.acc.begin() + static_cast<std::ptrdiff_t>(row * head_dim),
                                   together.acc.begin() + static_cast<std::ptrdiff_t>((row + 1) * head_dim));
    CHECK(check::same_bits(among, alone.acc));
  }
}

TEST(sampling_follows_the_distribution) {
  const auto logits = random_values(50, 21, 2.0f);
  double total = 0;
  for (const float l : logits) total += std::exp(l / 0.7);
  std::map<size_t, int> drawn;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const float coin = (static_cast<float>(i) + 0.5f) / kDraws;  // evenly spread coins: counts are exact to one draw
    ++drawn[sample(kernels(), logits.data(), logits.size(), {0.7f, 0, 1.0f, 0.0f}, coin)];
  }
  for (size_t t = 0; t < logits.size(); ++t) {
    CHECK_NEAR(drawn[t], kDraws * std::exp(logits[t] / 0.7) / total, 1.0 + kDraws * 50 * kEps);
  }
}

TEST(filters_cut_the_tail) {
  const std::vector<float> logits{std::log(0.1f), std::log(0.4f), std::log(0.05f), std::log(0.3f), std::log(0.15f)};
  const auto support = [&](const SamplingFilters& filters) {
    std::map<size_t, int> drawn;
    for (int i = 0; i < 1000; ++i) {
      ++drawn[sample(kernels(), logits.data(), logits.size(), filters, static_cast<float>(i) / 1000)];
    }
    std::vector<size_t> tokens;
    for (const auto& [token, count] : drawn) tokens.push_back(token);
    return tokens;
  };
  CHECK(support({1.0f, 2, 1.0f, 0.0f}) == (std::vector<size_t>{1, 3}));
  CHECK(support({1.0f, 0, 0.6f, 0.0f}) == (std::vector<size_t>{1, 3}));
  CHECK(support({1.0f, 0, 0.75f, 0.0f}) == (std::vector<size_t>{1, 3, 4}));
  CHECK(support({1.0f, 0, 1.0f, 0.3f}) == (std::vector<size_t>{1, 3, 4}));
  CHECK(support({1.0f, 1, 0.9f, 0.0f}) == (std::vector<size_t>{1}));
  CHECK(support({1.0f, 0, 0.0f, 0.0f}).size() == 5);
}

// Filters sort no more than they need; the draw must be that of the whole sorted list.
TEST(filters_draw_as_if_all_were_sorted) {
  const auto logits = random_values(3000, 41, 1.0f);
  std::vector<std::pair<double, size_t>> sorted;
  double total = 0;
  for (size_t t = 0; t < logits.size(); ++t) total += std::exp(double{logits[t]});
  for (size_t t = 0; t < logits.size(); ++t) sorted.push_back({-std::exp(double{logits[t]}) / total, t});
  std::sort(sorted.begin(), sorted.end());
  for (const auto& [top_k, top_p] : {std::pair<size_t, float>{500, 1.0f}, {0, 0.7f}, {900, 0.5f}, {10, 0.99f}}) {
    size_t kept = 0;
    double mass = 0;
    while (kept < logits.size() && (top_k == 0 || kept < top_k) && (top_p == 1.0f || mass <= double{top_p})) {
      mass -= sorted[kept++].first;
    }
    for (const double coin : {0.0, 0.013, 0.4, 0.77, 0.999}) {
      double cumulative = 0;
      size_t expected = 0;
      while (expected + 1 < kept && (cumulative -= sorted[expected].first) <= coin * mass) ++expected;
      const size_t token =
          sample(kernels(), logits.data(), logits.size(), {1.0f, top_k, top_p, 0.0f}, static_cast<float>(coin));
      CHECK_EQ(token, sorted[expected].second);
    }
  }
}

TEST(extreme_logits_do_no_harm) {
  const float inf = INFINITY;
  std::vector<float> logits{-inf, 3.0f, -inf};
  CHECK_EQ(argmax(kernels(), logits.data(), 3), size_t{1});
  CHECK_EQ(sample(kernels(), logits.data(), 3, {1.0f, 0, 0.9f, 0.0f}, 0.99f), size_t{1});
  CHECK_NEAR(log_sum_exp(kernels(), logits.data(), 3), 3.0, 1e-6);
  for (const float bad : {NAN, INFINITY}) {
    std::vector<float> broken(5, bad);
    CHECK_THROWS(argmax(kernels(), broken.data(), 5), InvalidArgument, "no usable probabilities");
    broken.assign(5, 1.0f);
    broken[2] = bad;
    CHECK_THROWS(sample(kernels(), broken.data(), 5, {1.0f, 0, 0.9f, 0.0f}, 0.5f), InvalidArgument, "no usable");
    CHECK_THROWS(sample(kernels(), broken.data(), 5, {1.0f, 3, 1.0f, 0.1f}, 0.5f), InvalidArgument, "no usable");
    CHECK_THROWS(sample(kernels(), broken.data(), 5, {1.0f, 0, 1.0f, 0.0f}, 0.5f), InvalidArgument, "no usable");
  }
  const std::vector<float> one{2.0f};
  CHECK_EQ(sample(kernels(), one.data(), 1, {1.0f, 5, 0.5f, 0.5f}, 0.9f), size_t{0});
}

TEST(argmax_takes_the_first_of_equals) {
  std::vector<float> logits(1000, 0.5f);
  CHECK_EQ(argmax(kernels(), logits.data(), logits.size()), size_t{0});
  logits[700] = logits[900] = 2.0f;
  CHECK_EQ(argmax(kernels(), logits.data(), logits.size()), size_t{700});
}

TEST(log_sum_exp_of_many_terms) {
  const auto logits = random_values(128256, 31, 4.0f);
  double total = 0;
  for (const float l : logits) total += std::exp(double{l});
  CHECK_NEAR(log_sum_exp(kernels(), logits.data(), logits.size()), std::log(total), 1e-5);
}

// --- slices of a row ---

namespace {

CandidateQuery make_query(size_t count, size_t limit, float temperature, std::vector<int32_t> ids) {
  return {count, limit, temperature, std::move(ids)};
}

// The answers of slices that end at `ends`, and what they say together.
struct Sliced {
  std::vector<Range> slices;
  std::vector<SliceAnswer> answers;
  SliceAnswer whole;

  Sliced(const CandidateQuery& query, const std::vector<float>& row, const std::vector<size_t>& ends) {
    size_t begin = 0;
    for (const size_t end : ends) {
      slices.push_back({begin, end});
      answers.push_back(answer(kernels(), query, slices.back(), row.data() + begin));
      begin = end;
    }
    whole = joined(query, slices, answers);
  }
};

}  // namespace

TEST(slices_say_what_the_row_says) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const check::Scope scope("seed", seed);
    auto row = random_values(500, seed, 4.0f);
    if (seed % 2 == 0) {  // many equals
      for (float& v : row) v = std::round(v);
    }
    const auto query = make_query(1 + seed % 20, seed % 3 == 0 ? 500 : 431, 0.7f, {0, 3, 77, 201, 430, 499});
    const Sliced sliced(query, row, {100, 101, 350, 500});
    std::vector<TokenLogit> candidates;
    double sum = 0, all = 0;
    const double max = static_cast<double>(kernels().max(row.data(), row.size()));
    for (int32_t id = 0; id < 500; ++id) {
      const auto i = static_cast<size_t>(id);
      all += std::exp(row[i] - max);
      if (i >= query.limit || std::binary_search(query.ids.begin(), query.ids.end(), id)) continue;
      candidates.push_back({row[i], id});
      sum += std::exp((row[i] - max) / 0.7);
    }
    std::sort(candidates.begin(), candidates.end(), is_better);
    CHECK(sliced.whole.best.size() >= query.count);
    for (size_t i = 0; i < sliced.whole.best.size(); ++i) CHECK_EQ(sliced.whole.best[i].id, candidates[i].id);
    for (size_t i = 0; i < query.ids.size(); ++i) {
      CHECK_EQ(sliced.whole.values[i], row[static_cast<size_t>(query.ids[i])]);
    }
    // Exponentials err by 2 units in the last place, which is far more than the sums in double add.
    const ExpSum& got = sliced.whole.candidates;
    CHECK_NEAR(got.sum * std::exp((got.max - max) / 0.7), sum, 1e-6 * sum);
    CHECK_NEAR(log_of(sliced.whole.all), max + std::log(all), 1e-6 * std::abs(max + std::log(all)));
  }
}

TEST(a_draw_over_slices_is_the_draw_from_the_row) {
  const auto row = random_values(500, 9, 3.0f);
  const auto query = make_query(1, 431, 0.9f, {});
  const Sliced sliced(query, row, {100, 101, 430, 460, 500});
  std::vector<double> cumulative{0.0};
  for (size_t i = 0; i < 431; ++i) cumulative.push_back(cumulative.back() + std::exp(row[i] / 0.9));
  for (double coin = 0.00371; coin < 1.0; coin += 0.01) {
    const SliceShare share = slice_at(query, sliced.answers, coin);
    const Range slice = sliced.slices[share.slice];
    const TokenLogit token = draw_from_slice(kernels(), query, slice, row.data() + slice.begin, share.fraction);
    const auto id = static_cast<size_t>(token.id);
    CHECK(cumulative[id] <= coin * cumulative.back() * (1 + 1e-6));
    CHECK(cumulative[id + 1] >= coin * cumulative.back() * (1 - 1e-6));
    CHECK_EQ(token.logit, row[id]);
  }
}

namespace {

// Logits of a large vocabulary, as models give them: few likely tokens, and many that share the rest.
std::vector<float> zipf_logits(size_t n, unsigned seed) {
  auto row = random_values(n, seed, 0.5f);
  std::vector<size_t> ranks(n);
  for (size_t i = 0; i < n; ++i) ranks[i] = i;
  std::shuffle(ranks.begin(), ranks.end(), std::mt19937(seed));
  for (size_t i = 0; i < n; ++i) row[i] -= std::log(static_cast<float>(ranks[i] + 1));
  return row;
}

// Whether `coin`, as a part of the whole, is so near a border of a token that rounding may decide.
bool is_at_border(const std::vector<double>& borders, double coin) {
  const auto above = std::lower_bound(borders.begin(), borders.end(), coin - 1e-6);
  return above != borders.end() && *above <= coin + 1e-6;
}

}  // namespace

// One node and several take the same sums: the same coin is the same token.
TEST(slices_draw_what_the_whole_row_draws) {
  constexpr size_t kTokens = 120'001;
  size_t compared = 0;
  for (unsigned seed = 0; seed < 3; ++seed) {
    const auto row = zipf_logits(kTokens, seed);
    const SamplingFilters filters{0.8f + 0.2f * static_cast<float>(seed), 0, 1.0f, 0.0f};
    const auto query = make_query(1, kTokens, filters.temperature, {});
    const Sliced sliced(query, row, {40'000, 80'000, kTokens});
    std::vector<double> borders;
    double total = 0;
    for (const float l : row) borders.push_back(total += std::exp(double{l} / filters.temperature));
    for (double& border : borders) border /= total;
    for (int i = 0; i < 100; ++i) {
      const float coin = static_cast<float>(i * 167'771 + 4099) / 16'777'216.0f;
      if (is_at_border(borders, coin)) continue;
      const SliceShare share = slice_at(query, sliced.answers, coin);
      const Range slice = sliced.slices[share.slice];
      const TokenLogit token = draw_from_slice(kernels(), query, slice, row.data() + slice.begin, share.fraction);
      CHECK_EQ(sample(kernels(), row.data(), kTokens, filters, coin), static_cast<size_t>(token.id));
      ++compared;
    }
  }
  CHECK(compared > 100);
}

// Where the sum of a large vocabulary is rounded, top-p must not end elsewhere.
TEST(the_best_of_a_large_vocabulary_are_enough_or_say_that_they_are_not) {
  constexpr size_t kTokens = 120'001, kBest = 400;
  const auto row = zipf_logits(kTokens, 7);
  std::vector<size_t> order(kTokens);
  for (size_t i = 0; i < kTokens; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return row[a] > row[b]; });
  double total = 0, mass = 0;
  for (const float l : row) total += std::exp(double{l});
  size_t drawn = 0;
  for (size_t kept = 1; kept < kBest; kept += 7) {
    // A top_p in the middle of a token, which no rounding of sums in double moves.
    mass = 0;
    for (size_t i = 0; i < kept; ++i) mass += std::exp(double{row[order[i]]}) / total;
    const double half = std::exp(double{row[order[kept]]}) / total / 2;
    const SamplingFilters filters{1.0f, 0, static_cast<float>(mass + half), 0.0f};
    const auto query = make_query(kBest, kTokens, 1.0f, {});
    const Sliced sliced(query, row, {40'000, 80'000, kTokens});
    std::vector<float> logits;
    std::vector<int32_t> ids;
    for (const TokenLogit& token : sliced.whole.best) {
      logits.push_back(token.logit);
      ids.push_back(token.id);
    }
    const float last = 16'777'215.0f / 16'777'216.0f;  // the coin that takes the last that is kept
    const auto token = sample_best(kernels(), logits, ids, sliced.whole.candidates.sum, kTokens, filters, last);
    if (!token) continue;
    ++drawn;
    CHECK_EQ(static_cast<size_t>(*token), order[kept]);
    CHECK_EQ(sample(kernels(), row.data(), kTokens, filters, last), order[kept]);
  }
  CHECK(drawn > 40);
}

TEST(what_cannot_be_is_never_drawn) {
  const float inf = std::numeric_limits<float>::infinity();
  const auto query = make_query(1, 5, 1.0f, {});
  for (int i = 0; i < 20; ++i) {  // in some the sum in double stays below the one that is rounded to F32
    const std::vector<float> row{-inf, 1.0f, 0.05f * static_cast<float>(i), -500.0f, -inf};
    CHECK_EQ(draw_from_slice(kernels(), query, {0, 5}, row.data(), 0.0).id, 1);
    CHECK_EQ(draw_from_slice(kernels(), query, {0, 5}, row.data(), 1.0).id, 2);
    CHECK_EQ(sample(kernels(), row.data(), 5, {1.0f, 0, 1.0f, 0.0f}, 0.0f), size_t{1});
    CHECK_EQ(sample(kernels(), row.data(), 5, {1.0f, 0, 1.0f, 0.0f}, std::nextafter(1.0f, 0.0f)), size_t{2});
  }
}

TEST(slices_of_extreme_logits) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto query = make_query(3, 8, 1.0f, {});
  std::vector<float> row(8, -infinity);
  const Sliced nothing(query, row, {4, 8});
  CHECK_THROWS(slice_at(query, nothing.answers, 0.5), InvalidArgument, "not finite");
  row[6] = 1.0f;
  const Sliced one(query, row, {4, 8});
  CHECK_EQ(one.whole.best[0].id, 6);
  CHECK_EQ(slice_at(query, one.answers, 0.0).slice, size_t{1});
  CHECK_EQ(slice_at(query, one.answers, 0.9999).slice, size_t{1});
  for (const float strange : {infinity, std::nanf("")}) {
    row[1] = strange;
    const Sliced broken(query, row, {4, 8});
    CHECK_THROWS(slice_at(query, broken.answers, 0.5), InvalidArgument, "not finite");
  }
}

// Drawn from the best alone: the same token as from all, or nothing.
TEST(the_best_are_enough_or_say_that_they_are_not) {
  size_t drawn = 0, refused = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    const check::Scope scope("seed", seed);
    auto row = random_values(200, seed, 1.0f + static_cast<float>(seed % 5));
    if (seed % 2 == 0) {
      for (float& v : row) v = std::round(v);
    }
    const std::vector<SamplingFilters> filters{{0.8f, 0, 0.9f, 0.0f}, {1.0f, 10, 1.0f, 0.0f}, {1.0f, 12, 0.5f, 0.0f},
                                               {1.3f, 0, 1.0f, 0.1f}, {0.5f, 0, 0.7f, 0.3f},  {1.0f, 0, 1.0f, 0.0f}};
    const SamplingFilters& filter = filters[seed % filters.size()];
    const auto query = make_query(18, 200, filter.temperature, {});
    const Sliced sliced(query, row, {70, 200});
    std::vector<float> logits;
    std::vector<int32_t> ids;
    for (const TokenLogit& token : sliced.whole.best) {
      logits.push_back(token.logit);
      ids.push_back(token.id);
    }
    const float coin = static_cast<float>(seed) / 300.0f;
    const auto token = sample_best(kernels(), logits, ids, sliced.whole.candidates.sum, 200, filter, coin);
    token ? ++drawn : ++refused;
    if (token) CHECK_EQ(static_cast<size_t>(*token), sample(kernels(), row.data(), 200, filter, coin));
  }
  CHECK(drawn > 100 && refused > 50);
}

TEST(the_bandwidth_probe_gives_a_rate) {
  const double rate = read_bandwidth(kernels(), size_t{8} << 20, 2, 0.01);
  CHECK(rate > 1e8 && rate < 1e13);
}

TEST(rows_of_activations_are_copied_scaled_in_part_and_read_as_floats) {
  const size_t cols = 96;
  const auto x = random_values(cols, 5);
  for (const bool quantized : {false, true}) {
    ActivationRows rows(quantized, 2, cols), other(quantized, 3, cols);
    rows.store(kernels(), 1, 0, x.data(), cols);
    std::vector<float> before(cols), after(cols);
    rows.to_floats(1, before.data());
    for (size_t i = 0; i < cols; ++i) CHECK_NEAR(before[i], x[i], quantized ? 0.02 : 0.0);
    other.copy(2, rows, 1);
    other.scale(2, 32, 32, 0.5f);  // exact
    other.to_floats(2, after.data());
    for (size_t i = 0; i < cols; ++i) CHECK_EQ(after[i], before[i] * (i / 32 == 1 ? 0.5f : 1.0f));
  }
}

// Softmax over those chosen, or over all; ascending by expert; of equals the first.
TEST(experts_are_chosen_by_their_logits) {
  const std::vector<float> logits{0.5f, 2.0f, -1.0f, 2.0f, 0.5f, 1.0f};
  std::vector<ExpertChoice> out(4);
  for (const bool norm : {false, true}) {
    choose_experts(logits.data(), logits.size(), norm, out);
    double total = 0;
    for (const size_t expert : {0, 1, 2, 3, 4, 5}) {
      if (!norm || (expert != 2 && expert != 4)) total += std::exp(double{logits[expert]});
    }
    for (size_t i = 0; i < out.size(); ++i) {
      const size_t expected[] = {0, 1, 3, 5};
      CHECK_EQ(out[i].expert, expected[i]);
      CHECK_NEAR(out[i].weight, std::exp(double{logits[expected[i]]}) / total, 1e-6);
    }
  }
}

TEST(experts_are_chosen_whatever_the_logits_are) {
  const float nan = std::nanf(""), inf = INFINITY;
  const std::vector<std::vector<float>> cases{std::vector<float>(5, nan),
                                              {1.0f, nan, 2.0f, nan, 3.0f},
                                              {-inf, -inf, -inf, -inf, -inf},
                                              {inf, 1.0f, inf, -inf, nan}};
  for (const auto& logits : cases) {
    for (const size_t count : {1, 3, 5}) {
      std::vector<ExpertChoice> out(count);
      choose_experts(logits.data(), logits.size(), true, out);
      for (size_t i = 0; i < count; ++i) {
        CHECK(out[i].expert < logits.size());
        CHECK(i == 0 || out[i - 1].expert < out[i].expert);
      }
    }
  }
}

// Every choice becomes one row, behind those of lower experts and of the same expert's lower tokens.
TEST(routing_lays_tokens_out_by_expert) {
  constexpr size_t kExperts = 7, kTokens = 50, kPerToken = 3, kTile = 8;
  std::mt19937 engine(4);
  Routing routing(kExperts, kTokens * kPerToken, kTile);
  CHECK_EQ(Routing::bytes(kExperts, kTokens * kPerToken, kTile),
           kExperts * 8 + kTokens * kPerToken * 8 + routing.tiles().capacity() * sizeof(ExpertTile));
  for (const size_t tokens : {kTokens, size_t{1}, size_t{17}}) {
    std::vector<ExpertChoice> choices;
    for (size_t t = 0; t < tokens; ++t) {
      const size_t first = engine() % (kExperts - kPerToken + 1);  // the last expert is rare, others may be left out
      for (size_t i = 0; i < kPerToken; ++i) {
        choices.push_back({static_cast<uint32_t>(first + i), static_cast<float>(t * kPerToken + i)});
      }
    }
    routing.set(choices, kPerToken);
    std::vector<std::tuple<size_t, size_t, float>> expected, found;
    for (size_t i = 0; i < choices.size(); ++i)
      expected.emplace_back(choices[i].expert, i / kPerToken, choices[i].weight);
    std::sort(expected.begin(), expected.end());
    for (const ExpertTile& tile : routing.tiles()) {
      CHECK(tile.rows.size() >= 1 && tile.rows.size() <= kTile);
      CHECK_EQ(tile.rows.begin, found.size());
      const Range some{tokens / 3, tokens / 2 + 1}, rows = routing.rows_of(tile, some);
      for (size_t row = tile.rows.begin; row < tile.rows.end; ++row) {
        found.emplace_back(tile.expert, routing.token(row), routing.weight(row));
        const bool is_in = routing.token(row) >= some.begin && routing.token(row) < some.end;
        CHECK_EQ(row >= rows.begin && row < rows.end, is_in);
      }
    }
    CHECK(found == expected);
  }
}

CHECK_MAIN()
