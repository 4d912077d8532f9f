#include "model/results.h"

#include <algorithm>

#include "base/errors.h"
#include "model/layer.h"

namespace dllama {

namespace {

size_t results_bytes(const Outputs& outputs, Range slice) {
  size_t bytes = outputs.scores.size() * score_bytes();
  for (const CandidateQuery& query : outputs.queries) bytes += answer_bytes(query, slice);
  return bytes;
}

std::vector<std::byte> pack_results(const Outputs& outputs, Range slice, size_t rank) {
  std::vector<std::byte> packed(results_bytes(outputs, slice));
  ByteWriter out(packed);
  for (const auto& answers : outputs.answers) put_answer(answers[rank], out);
  for (const ScoreAnswer& answer : outputs.score_answers[rank]) put_score(answer, out);
  return packed;
}

void unpack_results(std::span<const std::byte> packed, const Wanted& wanted, Range slice, size_t rank,
                    Outputs& outputs) {
  ByteReader data(packed);
  for (size_t i = 0; i < outputs.queries.size(); ++i) {
    outputs.answers[i][rank] = take_answer(outputs.queries[i], slice, data);
  }
  auto& scores = outputs.score_answers[rank];
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = take_score(slice, wanted.targets[i], data);
}

void receive_results(Step& step, const Wanted& wanted, Outputs& outputs) {
  std::vector<std::vector<std::byte>> packed(step.group.world_size());
  for (size_t rank = 1; rank < packed.size(); ++rank) {
    packed[rank].resize(results_bytes(outputs, vocab_slice(step.config, rank)));
  }
  step.group.begin_exchange();
  for (size_t rank = 1; rank < packed.size(); ++rank) step.group.receive(rank, FrameType::Results, packed[rank]);
  step.group.wait();
  for (size_t rank = 1; rank < packed.size(); ++rank) {
    try {
      unpack_results(packed[rank], wanted, vocab_slice(step.config, rank), rank, outputs);
    } catch (const InvalidArgument& error) {
      step.group.reject(rank, step.group.name_of(rank) + " sent " + error.what());
    }
  }
}

void send_results(Step& step, const Outputs& outputs) {
  const size_t rank = step.group.rank();
  const auto packed = pack_results(outputs, vocab_slice(step.config, rank), rank);
  step.group.begin_exchange();
  step.group.send(0, FrameType::Results, packed);
  step.group.wait();
}

float join_scores(const NodeConfig& config, const Outputs& outputs, size_t score, int32_t target) {
  ExpSum total;
  float logit = 0.0f;
  for (size_t rank = 0; rank < config.shards.size(); ++rank) {
    const ScoreAnswer& answer = outputs.score_answers[rank][score];
    const Range slice = vocab_slice(config, rank);
    total = joined(total, answer.all, 1.0f);
    if (static_cast<size_t>(target) >= slice.begin && static_cast<size_t>(target) < slice.end) logit = answer.target;
  }
  return static_cast<float>(logit - log_of(total));
}

// The root plans for nodes of other levels, so memory is counted with groups of rows that hold those of any.
constexpr size_t kPlannedGroup = 64;

// Values of a row with room for whole row groups, and at least one more.
size_t padded(const Kernels& kernels, size_t width) {
  return (width + kernels.row_group) / kernels.row_group * kernels.row_group;
}

void grow(Buffer& buffer, size_t bytes) {
  if (buffer.size() >= bytes) return;
  buffer = Buffer();  // first, so that never both are held
  buffer = Buffer(bytes);
}

// Brings the rows' slices together on the root, where its own stand in `rows` already; the others send theirs.
void gather(Group& group, const NodeConfig& config, size_t num_rows, float* rows, size_t stride) {
  group.begin_exchange();
  for (size_t row = 0; row < num_rows; ++row) {
    float* logits = rows + row * stride;
    if (!group.is_root()) {
      group.send(0, FrameType::Logits, std::as_bytes(std::span(logits, vocab_slice(config, group.rank()).size())));
      continue;
    }
    for (size_t rank = 1; rank < group.world_size(); ++rank) {
      const Range slice = vocab_slice(config, rank);
      group.receive(rank, FrameType::Logits, std::as_writable_bytes(std::span(logits + slice.begin, slice.size())));
    }
  }
  group.wait();
}

// Times the multiplier and under the cap that the model has for logits, if it has any. Ends in a barrier, too.
void scale_and_cap_logits(Step& step, size_t thread, size_t num_rows, float* logits, size_t stride) {
  const float multiplier = step.config.logits_multiplier, cap = step.config.logits_softcap;
  if (multiplier == 1.0f && cap == 0.0f) return;
  const Range own = part_of(step, {0, step.shard.vocab_size()}, thread);
  for (size_t row = 0; row < num_rows; ++row) {
    step.kernels.scale_and_cap(logits + row * stride + own.begin, multiplier, cap, own.size());
  }
  step.pool.barrier();
}

// This rank's slice of the logits of `num_rows` rows of buffers.normed from `first_row` on. Ends in a barrier.
void project_logits(Step& step, size_t thread, size_t first_row, size_t num_rows, float* out, size_t stride) {
  project_chunks(step, thread, step.weights.lm_head, step.buffers.normed, first_row, num_rows, out, stride);
  step.pool.barrier();
  scale_and_cap_logits(step, thread, num_rows, out, stride);
}

void compute_logits(Step& step, size_t thread, const Wanted& wanted, Outputs& outputs) {
  if (wanted.num_logits == 0) return;
  auto* logits = outputs.logits->as<float>();
  project_logits(step, thread, 0, wanted.num_logits, logits, outputs.stride);
  if (step.is_alone()) return;
  on_links(step, thread, [&] { gather(step.group, step.config, wanted.num_logits, logits, outputs.stride); });
  step.pool.barrier();
}

void compute_candidates(Step& step, size_t thread, const Wanted& wanted, Outputs& outputs) {
  if (wanted.num_candidates == 0) return;
  const Range slice = vocab_slice(step.config, step.group.rank());
  project_logits(step, thread, wanted.num_logits, wanted.num_candidates, outputs.kept.as<float>(),
                 outputs.slice_stride);
  const Range own = part_of(step, {0, wanted.num_candidates}, thread);
  for (size_t i = own.begin; i < own.end; ++i) {
    outputs.answers[i][step.group.rank()] = answer(step.kernels, outputs.queries[i], slice, outputs.kept_slice(i));
  }
}

ScoreAnswer answer_score(const Step& step, const float* logits, int32_t target) {
  const Range slice = vocab_slice(step.config, step.group.rank());
  const auto token = static_cast<size_t>(target);
  const bool is_own = token >= slice.begin && token < slice.end;
  return {exp_sum(step.kernels, logits, slice.size(), 1.0f), is_own ? logits[token - slice.begin] : 0.0f};
}

// Scores in tiles of kScoreRows, so that a long text never needs all its logits at once.
void compute_scores(Step& step, size_t thread, const Wanted& wanted, Outputs& outputs) {
  auto& answers = outputs.score_answers[step.group.rank()];
  const size_t first_row = wanted.num_logits + wanted.num_candidates;
  for (size_t first = 0; first < answers.size(); first += kScoreRows) {
    const size_t rows = std::min(kScoreRows, answers.size() - first);
    auto* logits = outputs.scored.as<float>();
    project_logits(step, thread, first_row + first, rows, logits, outputs.slice_stride);
    const Range own = part_of(step, {0, rows}, thread);
    for (size_t i = own.begin; i < own.end; ++i) {
      answers[first + i] = answer_score(step, logits + i * outputs.slice_stride, wanted.targets[first + i]);
    }
    step.pool.barrier();
  }
}

}  // namespace

Wanted::Wanted(const Batch& batch) {
  for (const WantKind kind : {WantKind::Logits, WantKind::Candidates, WantKind::Score}) {
    for (const Want& want : batch.wants) {
      if (want.kind != kind) continue;
      tokens.push_back(static_cast<size_t>(want.row));
      if (kind == WantKind::Logits) ++num_logits;
      if (kind == WantKind::Candidates) ++num_candidates;
      if (kind == WantKind::Score) targets.push_back(want.value);
    }
  }
}

Range vocab_slice(const NodeConfig& config, size_t rank) {
  return {config.shards[rank].vocab_begin, config.shards[rank].vocab_end};
}

void size_outputs(const Step& step, const Batch& batch, const Wanted& wanted, Outputs& outputs) {
  outputs.slice_stride = padded(step.kernels, step.shard.vocab_size());
  outputs.stride = step.group.is_root() ? padded(step.kernels, step.config.vocab_size) : outputs.slice_stride;
  outputs.num_logits = wanted.num_logits;
  outputs.scores.assign(wanted.targets.size(), 0.0f);
  outputs.queries = batch.queries;
  outputs.candidates.clear();  // of an earlier step
  outputs.answers.assign(batch.queries.size(), std::vector<SliceAnswer>(step.group.world_size()));
  outputs.score_answers.assign(step.group.world_size(), std::vector<ScoreAnswer>(wanted.targets.size()));
  const size_t logits_bytes = wanted.num_logits * outputs.stride * sizeof(float);
  if (outputs.logits->size() < logits_bytes) {
    outputs.logits = std::make_shared<Buffer>();  // whoever still holds the old one keeps it
    *outputs.logits = Buffer(logits_bytes);
  }
  grow(outputs.kept, wanted.num_candidates * outputs.slice_stride * sizeof(float));
  grow(outputs.scored, std::min(kScoreRows, wanted.targets.size()) * outputs.slice_stride * sizeof(float));
}

size_t Outputs::bytes(const NodeConfig& config, size_t rank) {
  const auto width = [](size_t values) { return (values / kPlannedGroup + 1) * kPlannedGroup; };
  const size_t slice = width(config.shards[rank].vocab_size());
  const size_t row = rank == 0 ? width(config.vocab_size) : slice;
  const size_t values = config.max_rows * row + kScoreRows * slice;
  if (config.shards.size() == 1) return values * sizeof(float);  // queries are for rows that lie on several
  // Answers as they travel and as they are, and on the root those of all ranks put together.
  const size_t ranks = config.shards.size();
  const size_t candidates = kMaxCandidates * sizeof(TokenLogit) * (rank == 0 ? 3 * ranks - 1 : 2);
  const size_t ids = kMaxQueryIds * sizeof(float) * (rank == 0 ? 3 : 2);
  return (values + config.max_rows * slice) * sizeof(float) + candidates + ids;
}

void compute_results(Step& step, size_t thread, const Wanted& wanted, Outputs& outputs) {
  compute_logits(step, thread, wanted, outputs);
  compute_scores(step, thread, wanted, outputs);
  compute_candidates(step, thread, wanted, outputs);  // last: it takes memory, and must not throw before a barrier
}

void gather_results(Step& step, const Wanted& wanted, Outputs& outputs) {
  if (outputs.queries.empty() && wanted.targets.empty()) return;
  if (!step.group.is_root()) return send_results(step, outputs);
  if (!step.is_alone()) receive_results(step, wanted, outputs);
  std::vector<Range> slices;
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) slices.push_back(vocab_slice(step.config, rank));
  for (size_t i = 0; i < outputs.queries.size(); ++i) {
    outputs.candidates.push_back(joined(outputs.queries[i], slices, outputs.answers[i]));
  }
  for (size_t i = 0; i < outputs.scores.size(); ++i) {
    outputs.scores[i] = join_scores(step.config, outputs, i, wanted.targets[i]);
  }
}

void gather_row(Group& group, const NodeConfig& config, const Outputs& outputs, size_t query, float* out) {
  float* own = outputs.kept_slice(query);
  if (group.is_root()) std::copy_n(own, vocab_slice(config, 0).size(), out);
  gather(group, config, 1, group.is_root() ? out : own, 0);
}

}  // namespace dllama
