#include "model/sync.h"

#include <algorithm>
#include <cstring>

#include "net/wire.h"
#include "ops/norm.h"

namespace dllama {

namespace {

// Fewer are sent at once: their exchange costs more time in messages than in bytes.
constexpr size_t kPieceTokens = 64;

// The hidden values whose sums a rank adds up.
Range summed_range(const Step& step, size_t rank) {
  return step.scatter ? hidden_range(step.config, rank) : Range{0, step.config.hidden_size};
}

size_t sums_bytes(const Step& step, size_t values) {
  return wire_bytes(step.config.wire_type, values);
}

// This rank's sums of a piece for `rank`: [tokens, values], those of all ranks one behind the other.
std::span<std::byte> sums_for(const Step& step, size_t rank, Range tokens) {
  std::byte* piece = step.buffers.sums_out.data() + tokens.begin * sums_bytes(step, step.config.hidden_size);
  const Range values = summed_range(step, rank);
  return {piece + tokens.size() * sums_bytes(step, values.begin), tokens.size() * sums_bytes(step, values.size())};
}

// What came from another rank for this one: [tokens, values].
std::span<std::byte> sums_from(const Step& step, size_t rank, Range tokens) {
  const size_t row = sums_bytes(step, summed_range(step, step.group.rank()).size());
  return {step.buffers.sums_in[rank].data() + tokens.begin * row, tokens.size() * row};
}

void pack_sums(Step& step, Range tokens, size_t token) {
  const float* sums = step.buffers.update.as<float>() + token * step.config.hidden_size;
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    const Range values = summed_range(step, rank);
    std::byte* out = sums_for(step, rank, tokens).data() + (token - tokens.begin) * sums_bytes(step, values.size());
    to_wire(step.kernels, step.config.wire_type, sums + values.begin, values.size(), out);
    if (!step.scatter) return;  // the same for all ranks
  }
}

void queue_sums(Step& step, size_t piece) {
  const Range tokens = piece_tokens(step, piece);
  step.sums_exchange[piece] = step.group.begin_exchange();
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    if (rank == step.group.rank()) continue;
    step.group.send(rank, FrameType::Sums, sums_for(step, rank, tokens));
    step.group.receive(rank, FrameType::Sums, sums_from(step, rank, tokens));
  }
}

// The sum over ranks of this rank's summed range, for one token of a piece.
const float* sum_up(Step& step, size_t thread, Range tokens, size_t token) {
  ThreadBuffers& own = step.buffers.threads[thread];
  const size_t size = summed_range(step, step.group.rank()).size();
  const size_t offset = (token - tokens.begin) * sums_bytes(step, size);
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    const auto sums = rank == step.group.rank() ? sums_for(step, rank, tokens) : sums_from(step, rank, tokens);
    float* target = rank == 0 ? own.sum.data() : own.scratch.data();
    from_wire(step.kernels, step.config.wire_type, sums.data() + offset, size, target);
    if (rank != 0) step.kernels.add(own.sum.data(), target, size);
  }
  return own.sum.data();
}

// A rank's range of a row on its way: the sum of its squares, then its columns.
std::span<std::byte> range_record(const Step& step, size_t rank, Range rows) {
  const size_t bytes = range_record_bytes(step.config, rank);
  return {step.buffers.ranges[rank].data() + rows.begin * bytes, rows.size() * bytes};
}

void queue_ranges(Step& step, Range rows) {
  step.group.begin_exchange();
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    if (rank == step.group.rank()) continue;
    step.group.send(rank, FrameType::Activations, range_record(step, step.group.rank(), rows));
    step.group.receive(rank, FrameType::Activations, range_record(step, rank, rows));
  }
}

// Those of all tokens of the step.
std::span<HeadSquares> head_squares(const Step& step, size_t rank) {
  return {step.buffers.head_squares.as<HeadSquares>() + rank * step.config.max_tokens, step.num_tokens};
}

// Brings the ranges of one row together and multiplies it by 1/rms.
void assemble(Step& step, size_t row) {
  ActivationRows& normed = step.buffers.normed;
  float squares = 0.0f;
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    const Range values = hidden_range(step.config, rank);
    const std::byte* record = range_record(step, rank, {row, row + 1}).data();
    float part;
    std::memcpy(&part, record, sizeof(part));
    squares += part;
    if (rank != step.group.rank()) normed.from_wire(row, values.begin, values.size(), record + sizeof(part));
  }
  normed.scale(row, inverse_rms(squares, step.config.rms_norm_eps, step.config.hidden_size));
}

}  // namespace

size_t num_pieces(const Step& step) {
  return step.is_alone() ? 1 : std::clamp<size_t>(step.num_tokens / kPieceTokens, 1, kMaxPieces);
}

Range piece_tokens(const Step& step, size_t piece) {
  return split(step.num_tokens, num_pieces(step), piece);
}

void send_sums(Step& step, size_t thread, size_t piece) {
  if (step.is_alone()) return;
  const Range tokens = piece_tokens(step, piece);
  const bool is_packer = !step.is_redundant() || thread == 0;
  const Range own = step.is_redundant() ? tokens : part_of(step, tokens, thread);
  for (size_t t = own.begin; is_packer && t < own.end; ++t) pack_sums(step, tokens, t);
  if (!step.is_redundant()) step.pool.barrier();
  on_links(step, thread, [&] {
    queue_sums(step, piece);
    step.group.poke();
  });
}

void wait_for_sums(Step& step, size_t thread) {
  if (step.is_alone()) return;
  on_links(step, thread, [&] { step.group.wait(); });
  step.pool.barrier();
}

void add_sums(Step& step, size_t thread, size_t token, const float* output_norm, float* x) {
  const size_t hidden = step.config.hidden_size;
  const float* sums = step.is_alone() ? step.buffers.update.as<float>() + token * hidden
                                      : sum_up(step, thread, {0, step.num_tokens}, token);
  if (output_norm != nullptr) {
    float* normed = step.buffers.threads[thread].sum.data();
    rms_norm(step.kernels, sums, output_norm, step.config.rms_norm_eps, normed, hidden);
    sums = normed;
  }
  step.kernels.add_scaled(x, sums, step.config.residual_multiplier, hidden);
}

void norm(Step& step, size_t thread, size_t token, const float* weight, ActivationRows& out, size_t row) {
  const size_t hidden = step.config.hidden_size;
  const float* x = residual_row(step, thread, token);
  if (weight == nullptr) return out.store(step.kernels, row, 0, x, hidden);
  float squares = 0.0f;
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    const Range values = hidden_range(step.config, rank);
    squares += step.kernels.sum_squares(x + values.begin, values.size());
  }
  store_weighted(step.kernels, x, weight, {0, hidden}, step.buffers.threads[thread].scratch.data(), out, row);
  out.scale(row, inverse_rms(squares, step.config.rms_norm_eps, hidden));
}

void reduce_sums(Step& step, size_t thread, size_t piece) {
  const Range tokens = piece_tokens(step, piece);
  const Range values = hidden_range(step.config, step.group.rank());
  on_links(step, thread, [&] { step.group.wait_received(step.sums_exchange[piece]); });
  step.pool.barrier();
  const Range own = part_of(step, tokens, thread);
  for (size_t t = own.begin; t < own.end; ++t) {
    float* x = residual_row(step, thread, t) + values.begin;
    step.kernels.add_scaled(x, sum_up(step, thread, tokens, t), step.config.residual_multiplier, values.size());
  }
}

void send_range(Step& step, size_t thread, Range rows, std::span<const size_t> tokens, const float* weight) {
  const Range values = hidden_range(step.config, step.group.rank());
  const Range own = part_of(step, rows, thread);
  ActivationRows& normed = step.buffers.normed;
  for (size_t row = own.begin; row < own.end; ++row) {
    const float* x = residual_row(step, thread, tokens.empty() ? row : tokens[row]);
    const float squares = step.kernels.sum_squares(x + values.begin, values.size());
    store_weighted(step.kernels, x, weight, values, step.buffers.threads[thread].scratch.data(), normed, row);
    std::byte* record = range_record(step, step.group.rank(), {row, row + 1}).data();
    std::memcpy(record, &squares, sizeof(squares));
    normed.to_wire(row, values.begin, values.size(), record + sizeof(squares));
  }
  step.pool.barrier();
  on_links(step, thread, [&] {
    queue_ranges(step, rows);
    step.group.poke();
  });
}

void receive_ranges(Step& step, size_t thread, size_t num_rows) {
  on_links(step, thread, [&] { step.group.wait(); });
  step.pool.barrier();
  const Range own = part_of(step, {0, num_rows}, thread);
  for (size_t row = own.begin; row < own.end; ++row) assemble(step, row);
  step.pool.barrier();
}

HeadSquares& own_head_squares(Step& step, size_t token) {
  return head_squares(step, step.group.rank())[token];
}

void share_head_squares(Step& step, size_t thread) {
  if (step.is_alone()) return;
  step.pool.barrier();
  on_links(step, thread, [&] {
    step.group.begin_exchange();
    for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
      if (rank == step.group.rank()) continue;
      step.group.send(rank, FrameType::HeadSquares, std::as_bytes(head_squares(step, step.group.rank())));
      step.group.receive(rank, FrameType::HeadSquares, std::as_writable_bytes(head_squares(step, rank)));
    }
    step.group.wait();
  });
  step.pool.barrier();
}

HeadSquares total_squares(const Step& step, size_t token) {
  HeadSquares total{0.0f, 0.0f};
  for (size_t rank = 0; rank < step.group.world_size(); ++rank) {
    const HeadSquares& part = head_squares(step, rank)[token];
    total.q += part.q;
    total.k += part.k;
  }
  return total;
}

}  // namespace dllama
