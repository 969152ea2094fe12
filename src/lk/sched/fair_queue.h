// SPDX-License-Identifier: Apache-2.0
// FairQueue: virtual token counters (VTC, arXiv:2401.00588, algorithm 2) on two levels, tenants and what each tenant
// chose to be fair between. A counter holds the weighted service its owner was charged; its key adds what is charged in
// advance. The smallest key is next. Who starts to wait again is lifted to the smallest key that waits, or, when nobody
// waits, to that of the one who waited last: idle time earns nothing, debts stay. Within a
// tenant a request's priority goes before all that.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <unordered_map>

#include "lk/sched/queue_policy.h"

namespace lk {

// A virtual token counter. In milli-units divided by the weight; the remainder of each division is carried. Within
// +-kMaxSum.
class Counter {
 public:
  int64_t key() const { return key_with(0); }
  // If that much more were charged in advance.
  int64_t key_with(MilliUnits advance) const { return saturating_add(value_, scaled(advance_ + advance)); }
  void charge(MilliUnits price, MilliUnits advance);
  void lift_to(int64_t key) { value_ = saturating_add(value_, std::max<int64_t>(0, key - this->key())); }
  void set_weight(double weight);

 private:
  static constexpr int64_t kScale = 1000;  // weights have three decimals
  int64_t scaled(MilliUnits units) const {
    int64_t product = 0;
    if (__builtin_mul_overflow(units, kScale, &product)) return units > 0 ? kMaxSum : -kMaxSum;
    return product / weight_;
  }

  int64_t value_ = 0, carry_ = 0;
  MilliUnits advance_ = 0;
  int64_t weight_ = kScale;
};

// Counters that compete: those that wait, in the order of their keys.
class CounterGroup {
 public:
  struct Member;
  struct Before {
    bool operator()(const Member* a, const Member* b) const;
  };
  using Order = std::set<Member*, Before>;
  struct Member {
    Counter counter;
    Order::iterator place;   // while it waits
    int64_t placed_key = 0;  // its place in the order
    uint64_t placed_at = 0;  // equal keys take turns
    bool waits = false;
    uint64_t passed_round = 0;  // passed over in this round
  };
  bool empty() const { return order_.empty(); }
  // A new member starts where the last of those that were forgotten was: it may be that one.
  void add(Member& member) const { member.counter.lift_to(forgotten_); }
  // `member` has something waiting from now on. With `lift`, it did not have for a while.
  void enter(Member& member, bool lift);
  void leave(Member& member);
  void charge(Member& member, MilliUnits price, MilliUnits advance);
  void set_weight(Member& member, double weight);
  // The first that was not passed over in this round; null when there is none.
  Member* first(uint64_t round) const;
  // Below this no debt is worth remembering.
  int64_t floor() const;
  void forget(Member& member);  // Requires: !waits

 private:
  void place(Member& member, Order::node_type node);

  Order order_;
  // Members before it were passed over in its round, and nobody changed places since.
  struct Cursor {
    uint64_t round = 0;
    Order::iterator at;
  };
  mutable Cursor cursor_;
  uint64_t next_place_ = 0;
  Member* last_ = nullptr;  // to leave
  int64_t last_key_ = 0;    // of a last one that was forgotten
  int64_t forgotten_ = 0;   // the largest key that was
};

inline bool CounterGroup::Before::operator()(const Member* a, const Member* b) const {
  return a->placed_key != b->placed_key ? a->placed_key < b->placed_key : a->placed_at < b->placed_at;
}

class FairQueue : public QueuePolicy {
 public:
  explicit FairQueue(const QueueOptions& options) : QueuePolicy(options) {}

  void set_weight(TenantId tenant, double weight) override;
  std::optional<int64_t> settled_time(TenantId tenant) const override;
  bool bounds_lag() const override { return true; }
  double tokens_ahead(const Request& request) const override;

 protected:
  void new_round() override;
  Ticket* pick() override;
  void pass(Ticket& ticket) override;
  void pass_tenant(Ticket& ticket) override { leaf_of(ticket).tenant->passed_round = round_; }
  int64_t tenant_time(const Ticket& ticket, MilliUnits advance) const override;
  void insert(Ticket& ticket, bool arrives) override;
  void erase(Ticket& ticket) override;
  void charge(Ticket& ticket, MilliUnits price, MilliUnits advance) override;
  void begin_running(Ticket& ticket) override;
  void end_running(Ticket& ticket) override;
  // Forgets who has nothing here and would be lifted on return anyway. A debt above the floor is kept until the floor
  // passes it. Only between two rounds, when every request waits or runs: one that is being preempted does neither, and
  // its tenant would come back without its counter.
  virtual void sweep();

 private:
  struct Tenant;
  using Rank = std::tuple<int64_t, int64_t, uint64_t>;  // priority, what is fair, order
  struct Leaf : CounterGroup::Member {
    Tenant* tenant = nullptr;
    std::map<Rank, Ticket*> tickets;  // waiting
    Rank passed{};                    // in round `passed_in`, the last that was passed over
    uint64_t passed_in = 0;
    int64_t num_running = 0;
  };
  struct Tenant : CounterGroup::Member {
    std::unordered_map<int64_t, std::unique_ptr<Leaf>> leaves;
    CounterGroup waiting;  // leaves
    int64_t num_running = 0;
    int64_t num_prioritized = 0;  // of those that wait
  };
  Ticket* first_of(const Leaf& leaf) const;
  Leaf* next_leaf(Tenant& tenant) const;
  static Leaf& leaf_of(const Ticket& ticket) { return *static_cast<Leaf*>(ticket.place); }
  Tenant& tenant_of(TenantId id);
  int64_t leaf_id(const Request& request) const;
  Rank rank_within(const Ticket& ticket) const;

  uint64_t round_ = 0;  // from 1
  std::unordered_map<TenantId, std::unique_ptr<Tenant>> tenants_;
  CounterGroup waiting_;   // tenants
  int64_t num_ended_ = 0;  // since the last sweep
};

}  // namespace lk
