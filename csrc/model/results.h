// What becomes of the last layer's output: logits, candidates and scores of the rows that are wanted. Each rank
// computes its slice of the vocabulary. Whole rows of logits travel only where logits are wanted as such; of the others
// the root gets each slice's answer, some bytes of known length.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "base/os_memory.h"
#include "model/answers.h"
#include "model/batch.h"
#include "model/step.h"
#include "ops/candidates.h"

namespace dllama {

// The wants of a batch in the order their rows are laid out behind the final norm: logits, candidates, scores.
struct Wanted {
  explicit Wanted(const Batch& batch);

  std::vector<size_t> tokens;    // rows of the batch, of all wants
  std::vector<int32_t> targets;  // of the scores
  size_t num_logits = 0;
  size_t num_candidates = 0;
};

// What a step leaves on the root; the next one overwrites it. The logits' memory lives as long as someone holds it.
// Other ranks keep what later questions about the step's queries need.
struct Outputs {
  std::shared_ptr<Buffer> logits =
      std::make_shared<Buffer>();  // [num_logits, stride], the vocabulary first in each row
  size_t num_logits = 0;
  size_t stride = 0;
  std::vector<float> scores;  // [number of scores wanted]

  std::vector<CandidateQuery> queries;
  // Of all ranks on the root, elsewhere of this one alone.
  std::vector<std::vector<SliceAnswer>> answers;        // [query, rank]
  std::vector<std::vector<ScoreAnswer>> score_answers;  // [rank, score]
  std::vector<SliceAnswer> candidates;                  // [query] of the whole row, on the root
  Buffer kept;                                          // [query, slice_stride] this rank's slice of each row
  Buffer scored;                                        // [kScoreRows, slice_stride] rows being scored
  size_t slice_stride = 0;

  // The most that a rank's take: buffers are kept from step to step.
  static size_t bytes(const NodeConfig& config, size_t rank);

  float* kept_slice(size_t query) const { return kept.as<float>() + query * slice_stride; }
};

// Before a step's threads run: room for all that is wanted. Rows are padded to whole row groups.
void size_outputs(const Step& step, const Batch& batch, const Wanted& wanted, Outputs& outputs);

// Fills all of `outputs` that this rank can know from buffers.normed, with all threads.
void compute_results(Step& step, size_t thread, const Wanted& wanted, Outputs& outputs);

// Once the threads are done: brings the ranks' answers together on the root. Throws GroupFailed.
void gather_results(Step& step, const Wanted& wanted, Outputs& outputs);

// The whole row of query `query` of the last step, [vocab_size], gathered on the root into `out`; called on every rank.
void gather_row(Group& group, const NodeConfig& config, const Outputs& outputs, size_t query, float* out);

// The slice of a rank as a range of the vocabulary.
Range vocab_slice(const NodeConfig& config, size_t rank);

}  // namespace dllama
