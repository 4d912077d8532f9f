// What a rank says of its slices of a step's rows, as it travels to the root, which believes only what can be.
#pragma once

#include <cstddef>
#include <cstdint>

#include "net/bytes.h"
#include "ops/candidates.h"

namespace dllama {

// Of a row that is scored; `target` counts on the rank that owns the token.
struct ScoreAnswer {
  ExpSum all;
  float target = 0.0f;
};

// Bytes of an answer to a query, and of one about a score.
size_t answer_bytes(const CandidateQuery& query, Range slice);
size_t score_bytes();

void put_answer(const SliceAnswer& answer, ByteWriter& out);
void put_score(const ScoreAnswer& answer, ByteWriter& out);

// Throw InvalidArgument unless the best are candidates of the slice, in order, and all sums can be those of a slice
// with these values. Sums may be no numbers: logits that are none make them so.
SliceAnswer take_answer(const CandidateQuery& query, Range slice, ByteReader& data);
ScoreAnswer take_score(Range slice, int32_t target, ByteReader& data);

// Throws InvalidArgument unless `token`, which another rank names, is a candidate of its slice.
void check_token(const CandidateQuery& query, Range slice, const TokenLogit& token);

}  // namespace dllama
