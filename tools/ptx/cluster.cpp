#include "cluster.h"

#include <algorithm>

#include "counter.h"
#include "warp.h"

namespace ptx {

namespace {

// What the threads of a block tell that have arrived: all of it where nobody went on meanwhile.
void tell(Block& b, View& view) {
  BlockOrder& order = b.order;
  bool all = !b.went_on;
  for (const auto& w : b.warps) all = all && w->released == w->exists;
  for (const auto& w : b.warps) {
    if (w->released & w->acquired_lanes && w->acquired) view.join(*w->acquired);
    each_lane(w->released, [&](int l) {
      const auto own = order.threads.find(w->thread(l));
      if (own != order.threads.end()) view.join(own->second.known);
      if (!all) view.add({b.id, w->arrival[l], uint16_t(w->thread(l))});
    });
  }
  const bool any =
      std::any_of(b.warps.begin(), b.warps.end(), [](const auto& w) { return w->released != 0; });
  if (any) view.join(order.known);
  if (all) {
    view.raise(b.id, ++order.time);
  } else if (any) {
    view.raise(b.id, order.barrier_time);
  }
  b.went_on = false;
  for (auto& w : b.warps) {
    w->complete |= w->arrived;
    w->arrived = w->released = 0;
  }
}

// What the last barrier told is the whole block's.
void fold(Block& b, const View& view) {
  b.order.known.join(view);
  if (b.id < view.base.size())
    b.order.barrier_time = std::max(b.order.barrier_time, view.base[b.id]);
  for (auto& w : b.warps) {
    w->acquired.reset();
    w->acquired_lanes = 0;
  }
}

void pass(Warp& w, Mask lanes) {
  Block& b = *w.block;
  const SharedView& view = b.cluster->view;
  // Lanes that have not passed this one know what they knew.
  if (w.acquired && w.acquired != view)
    each_lane(w.acquired_lanes & ~lanes,
              [&](int l) { b.order.threads[w.thread(l)].known.join(*w.acquired); });
  w.acquired_lanes = w.acquired == view ? w.acquired_lanes | lanes : lanes;
  w.acquired = view;
  w.complete &= ~lanes;
  w.has_passed |= lanes;
  b.launch->weak.acquire(b.buffer);
  if (Counter* counter = b.launch->counter) counter->pass_cluster(w);
  const bool all = std::all_of(b.warps.begin(), b.warps.end(), [&](const auto& other) {
    return (other->living() & ~(other->acquired == view ? other->acquired_lanes : 0)) == 0;
  });
  if (all) fold(b, *view);
}

}  // namespace

void arrive_in_cluster(Warp& w, const Instruction& i, Mask lanes) {
  Block& b = *w.block;
  if (i.aligned && lanes != w.living())
    report(w, i, first_lane(lanes), "barrier in a diverged warp",
           "only lanes " + std::to_string(lanes) + " (as a mask) of the warp are at it");
  const Mask twice = lanes & (w.arrived | w.complete);
  if (twice != 0)
    fault(w, i, first_lane(twice), "barrier of a cluster without a wait",
          "the thread arrives for the second time");
  w.arrived |= lanes;
  if (i.order == Order::release) {
    b.launch->weak.flush(b.buffer, b.id);
    w.released |= lanes;
  }
  each_lane(lanes, [&](int l) { w.arrival[l] = b.order.time; });
  ++b.order.time;
  w.has_stored = true;
  if (Counter* counter = b.launch->counter) counter->arrive(w);
}

bool wait_in_cluster(Warp& w, const Instruction& i, Mask lanes) {
  if (i.aligned && lanes != w.living())
    report(w, i, first_lane(lanes), "barrier in a diverged warp",
           "only lanes " + std::to_string(lanes) + " (as a mask) of the warp are at it");
  const Mask lost = lanes & ~(w.arrived | w.complete);
  if (lost != 0)
    fault(w, i, first_lane(lost), "barrier of a cluster without an arrival",
          "the thread waits and has not arrived");
  if ((lanes & ~w.complete) != 0) return false;
  pass(w, lanes);
  return true;
}

bool pass_cluster_barrier(Cluster& cluster) {
  bool any = false;
  if (cluster.missing > 0) return false;
  for (const Block* b : cluster.blocks) {
    if (b == nullptr) continue;
    for (const auto& w : b->warps) {
      if ((w->living() & ~w->arrived) != 0) return false;
      any = any || w->living() != 0;
    }
  }
  if (!any) return false;
  View view;
  Counter* counter = nullptr;
  for (Block* b : cluster.blocks) {
    if (b == nullptr) continue;
    counter = b->launch->counter;
    tell(*b, view);
  }
  if (counter) counter->complete_cluster(cluster);
  cluster.view = std::make_shared<const View>(std::move(view));
  ++cluster.phase;
  for (Block* b : cluster.blocks) {
    if (b == nullptr) continue;
    for (auto& w : b->warps) {
      auto& waits = w->at_cluster;
      for (size_t k = 0; k < waits.size();) {
        if ((waits[k].lanes & ~w->complete) != 0) {
          ++k;
          continue;
        }
        pass(*w, waits[k].lanes);
        w->waiting.push_back({waits[k].frame, waits[k].at + 1, waits[k].lanes});
        waits.erase(waits.begin() + ptrdiff_t(k));
      }
    }
  }
  return true;
}

void end_in_cluster(Warp& w, const Instruction& i, Mask lanes) {
  const Mask open = lanes & (w.arrived | w.complete);
  if (open != 0)
    report(w, i, first_lane(open), "barrier of a cluster without a wait",
           "the thread ends between its arrival and its wait");
}

void end_in_cluster(Block& b) {
  if (!b.cluster) return;
  const auto is_known = [&](const Record& r) {
    if (r.bytes == 0 || r.block == b.id || b.order.known.covers(r)) return true;
    for (const auto& w : b.warps)
      if (w->acquired && w->acquired->covers(r)) return true;
    for (const auto& [thread, own] : b.order.threads)
      if (own.known.covers(r)) return true;
    return false;
  };
  const Instruction* at = b.remote_access;
  if (at != nullptr && b.launch->options.checks_races && !b.shared_shadow.all_accesses(is_known)) {
    const Module& m = *b.launch->code->module;
    if (b.launch->findings->count("end before an access", at))
      b.launch->findings->add(
          {"shared memory of a block that may have ended",
           "block " + std::to_string(b.id) + " ends, in no order with it",
           m.name + " line " + std::to_string(at->line) + ": " + m.line_text(at->line)});
  }
}

Block& block_of_address(Warp& w, const Instruction& i, int lane, uint64_t address) {
  Block& own = *w.block;
  const uint64_t rank = address >> kRankShift;
  if (rank == 0) return own;
  if (!own.cluster || rank > own.cluster->size)
    fault(w, i, lane, "address of no block of the cluster", "rank " + std::to_string(rank - 1));
  if (rank - 1 == own.rank) return own;
  if (!(w.has_passed >> lane & 1))
    fault(w, i, lane, "shared memory of a block that may not have started",
          "the thread has passed no barrier of the cluster");
  Block* other = own.cluster->blocks[size_t(rank - 1)];
  if (!other)
    fault(w, i, lane, "shared memory of a block that has ended",
          "rank " + std::to_string(rank - 1));
  other->remote_access = &i;
  return *other;
}

}  // namespace ptx
