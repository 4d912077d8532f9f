#include "model/answers.h"

#include <algorithm>
#include <cmath>

#include "base/errors.h"

namespace dllama {

namespace {

// As answers travel: no padding.
struct WireSums {
  double sum;
  double all_sum;
  float max;
  float all_max;
};
struct WireScore {
  double sum;
  float max;
  float target;
};
static_assert(sizeof(WireSums) == 24 && sizeof(WireScore) == 16);

// The largest of the values adds 1 to their sum, each other one at most that.
bool can_be(const ExpSum& sum, size_t num_values) {
  if (std::isnan(sum.sum)) return true;
  if (!std::isfinite(sum.max)) return sum.max > 0.0f || sum.sum == 0.0;
  return sum.sum >= 0.5 && sum.sum <= 2.0 * static_cast<double>(num_values);
}

void check_sums(const CandidateQuery& query, Range slice, const SliceAnswer& answer) {
  require(can_be(answer.candidates, candidates_in(query, slice)) && can_be(answer.all, slice.size()),
          "sums that cannot be");
  const float best = answer.best.empty() ? -std::numeric_limits<float>::infinity() : answer.best.front().logit;
  const bool is_number = !std::isnan(answer.candidates.sum);
  require(is_number ? answer.candidates.max == best : !(answer.candidates.max > best),
          "sums that are not those of its candidates");
}

}  // namespace

size_t answer_bytes(const CandidateQuery& query, Range slice) {
  return sizeof(WireSums) + listed_in(query, slice) * sizeof(TokenLogit) + ids_in(query, slice).size() * sizeof(float);
}

size_t score_bytes() {
  return sizeof(WireScore);
}

void put_answer(const SliceAnswer& answer, ByteWriter& out) {
  out.put_one(WireSums{answer.candidates.sum, answer.all.sum, answer.candidates.max, answer.all.max});
  out.put(answer.best);
  out.put(answer.values);
}

void put_score(const ScoreAnswer& answer, ByteWriter& out) {
  out.put_one(WireScore{answer.all.sum, answer.all.max, answer.target});
}

SliceAnswer take_answer(const CandidateQuery& query, Range slice, ByteReader& data) {
  const auto sums = data.take_one<WireSums>();
  SliceAnswer answer;
  answer.best = data.take<TokenLogit>(listed_in(query, slice));
  answer.values = data.take<float>(ids_in(query, slice).size());
  answer.candidates = {sums.max, sums.sum};
  answer.all = {sums.all_max, sums.all_sum};
  for (size_t i = 0; i < answer.best.size(); ++i) {
    check_token(query, slice, answer.best[i]);
    require(i == 0 || is_better(answer.best[i - 1], answer.best[i]), "candidates out of order");
  }
  check_sums(query, slice, answer);
  return answer;
}

ScoreAnswer take_score(Range slice, int32_t target, ByteReader& data) {
  const auto score = data.take_one<WireScore>();
  const ScoreAnswer answer{{score.max, score.sum}, score.target};
  require(can_be(answer.all, slice.size()), "sums that cannot be");
  const auto token = static_cast<size_t>(target);
  const bool is_own = token >= slice.begin && token < slice.end;
  require(!is_own || std::isnan(score.sum) || score.target <= score.max, "a score above the largest");
  return answer;
}

void check_token(const CandidateQuery& query, Range slice, const TokenLogit& token) {
  const auto id = static_cast<size_t>(token.id);
  require(token.id >= 0 && id >= slice.begin && id < std::min(slice.end, query.limit) && !std::isnan(token.logit) &&
              !std::binary_search(query.ids.begin(), query.ids.end(), token.id),
          "a token that is no candidate");
}

}  // namespace dllama
