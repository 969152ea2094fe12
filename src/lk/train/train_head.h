// SPDX-License-Identifier: Apache-2.0
// TrainHead: the end of a pass: final norm, logits, loss, and backwards to the gradient of the last hidden states. It
// takes the rows that have a loss a few at a time, so that no block's logits ever exist as a whole.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lk/train/pass_tools.h"

namespace lk {

// Per row of the block: what its target cost. Rows without loss have 0.
struct RowLosses {
  std::vector<float> losses;    // unweighted negative log-likelihood, nats
  std::vector<uint8_t> greedy;  // 1: the target was the most likely token
};

class TrainHead {
 public:
  // Blocks have max_rows rows at most. `free_bytes` of scratch are there anyway: the head takes as many rows at a time
  // as they hold, within reason.
  TrainHead(PassTools& tools, const PassNeeds& needs, int64_t max_rows, int64_t free_bytes);
  int64_t scratch_bytes() const { return places_.bytes; }
  int64_t max_rows() const { return rows_; }  // at a time

  // hidden: f32 [rows of the block, hidden_dim]. With `backward` it becomes its own gradient.
  RowLosses run(const TokenBlock& block, float* hidden, std::byte* scratch, bool drops, bool backward);

 private:
  struct Places {  // offsets in the scratch
    int64_t logits, gathered, dgathered, input, products, losses, greedy, token_gradients, token_rounded, wide;
    int64_t bytes;
  };
  Places lay_out(int64_t rows, const PassNeeds& needs) const;
  void run_rows(const TokenBlock& block, std::span<const int32_t> rows, const RowView& view, RowLosses& result,
                bool backward);
  void backward_rows(const RowView& view);
  void take_token_gradients(const TokenBlock::Run& run);
  void add_token_inputs(const TokenBlock::Run& run);
  void add_weight_gradient(const TokenBlock::Run& run);
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  std::byte* logit_gradient(int64_t row) const;  // act, at the stride below
  int64_t gradient_stride() const { return logits_stride_ * 4 / tools_.act_bytes; }

  PassTools& tools_;
  const LinearGroup linear_;
  const int64_t logits_stride_, token_columns_;
  int64_t rows_ = 0;
  Places places_{};
  std::byte* scratch_ = nullptr;  // of the run in work
};

}  // namespace lk
