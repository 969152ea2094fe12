// SPDX-License-Identifier: Apache-2.0
// What every kind of grammar is first translated into: rules over bytes, as expressions that share parts. Expressions
// are expanded where they are used, except rules, which the automaton may call.
#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lk::grammar {

using ByteSet = std::bitset<256>;
using Expr = uint32_t;  // index in an Ir
using RuleId = uint32_t;
inline constexpr int kUnbounded = -1;

struct CodePoints;

struct ExprNode {
  enum class Kind : uint8_t {
    kEmpty,    // the empty text
    kNever,    // no text
    kBytes,    // one byte of `bytes`
    kLiteral,  // `literal`
    kSeq,
    kAlt,
    kRepeat,      // children[0], min to max times
    kRule,        // `rule`
    kBoth,        // texts of children[0] that are texts of children[1] too; neither may call a rule
    kDifference,  // texts of children[0] that are not texts of children[1]; likewise
    kGraph,       // states 0..min-1 with edges; state 0 is the start, state min-1 the end
  };
  struct Edge {
    uint32_t from, to;
    Expr expr;
  };
  Kind kind = Kind::kEmpty;
  int min = 0, max = 0;
  RuleId rule = 0;
  std::vector<Expr> children;
  std::string literal;
  ByteSet bytes;
  std::vector<Edge> edges;
};

struct Rule {
  std::string name;
  Expr body = 0;
  bool defined = false;
  bool shared = false;  // always called, never expanded: masks inside it are computed once for all its uses
};

class Ir {
 public:
  Ir();
  Expr empty() const { return 0; }
  Expr never() const { return 1; }
  Expr bytes(const ByteSet& set);
  Expr literal(std::string_view text);
  Expr seq(std::vector<Expr> parts);
  Expr alt(std::vector<Expr> parts);
  Expr repeat(Expr part, int min, int max);
  Expr optional(Expr part) { return alt({part, empty()}); }
  Expr both(Expr a, Expr b);
  Expr difference(Expr a, Expr b);
  Expr graph(int num_states, std::vector<ExprNode::Edge> edges);
  Expr call(RuleId rule);
  Expr code_points(const CodePoints& set);  // one character of the set, in UTF-8

  RuleId add_rule(std::string name, bool shared = false);
  void define(RuleId rule, Expr body);

  const ExprNode& node(Expr expr) const { return nodes_[expr]; }
  const std::vector<ExprNode>& nodes() const { return nodes_; }
  const Rule& rule(RuleId id) const { return rules_[id]; }
  size_t num_rules() const { return rules_.size(); }
  int64_t memory() const { return memory_; }

  // The largest number that was asked for, and where: what to name when the whole is too large.
  struct Count {
    int64_t number = 0;
    std::string what;
  };
  void note_count(int64_t number, std::string what) {
    if (number > largest_.number) largest_ = {number, std::move(what)};
  }
  const Count& largest_count() const { return largest_; }

 private:
  Expr add(ExprNode node);
  std::vector<ExprNode> nodes_;
  std::vector<Rule> rules_;
  std::unordered_map<ByteSet, Expr> byte_sets_;
  std::map<std::vector<std::pair<uint32_t, uint32_t>>, Expr> code_point_sets_;
  Count largest_;
  int64_t memory_ = 0;
};

}  // namespace lk::grammar
