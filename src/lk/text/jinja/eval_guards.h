// SPDX-License-Identifier: Apache-2.0
// The evaluator's state that follows the C++ stack: depth, scope and where output goes.
#pragma once

#include <string>
#include <utility>

#include "lk/text/jinja/eval.h"

namespace lk::jinja {

class CountGuard {
 public:
  explicit CountGuard(int64_t& count) : count_(count) { ++count_; }
  ~CountGuard() { --count_; }
  CountGuard(const CountGuard&) = delete;
  CountGuard& operator=(const CountGuard&) = delete;

 private:
  int64_t& count_;
};

class CaptureGuard {
 public:
  CaptureGuard(std::string*& out, std::string& text) : out_(out), outer_(std::exchange(out, &text)) {}
  ~CaptureGuard() { out_ = outer_; }
  CaptureGuard(const CaptureGuard&) = delete;
  CaptureGuard& operator=(const CaptureGuard&) = delete;

 private:
  std::string*& out_;
  std::string* outer_;
};

class Evaluator::DepthGuard {
 public:
  explicit DepthGuard(Evaluator& evaluator) : evaluator_(evaluator) {
    if (++evaluator_.depth_ > kMaxEvalDepth) {
      --evaluator_.depth_;  // the destructor will not run
      fail_limit("the template nests more than {} levels deep; end the recursion or split it", kMaxEvalDepth);
    }
  }
  ~DepthGuard() { --evaluator_.depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Evaluator& evaluator_;
};

// A new innermost scope, inside the current one or inside `parent`.
class Evaluator::ScopeGuard {
 public:
  explicit ScopeGuard(Evaluator& evaluator) : ScopeGuard(evaluator, evaluator.scope_) {}
  ScopeGuard(Evaluator& evaluator, ScopePtr parent) : evaluator_(evaluator), outer_(std::move(evaluator.scope_)) {
    evaluator_.scope_ = std::make_shared<Scope>();
    evaluator_.scope_->parent = std::move(parent);
  }
  ~ScopeGuard() { evaluator_.scope_ = std::move(outer_); }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

 private:
  Evaluator& evaluator_;
  ScopePtr outer_;
};

}  // namespace lk::jinja
