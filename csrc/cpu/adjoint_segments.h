// How an adjoint goes back through the chunks of an episode. Half of what it does in a chunk does
// not depend on the gradients of the state: that is prepared from the front of a segment of chunks,
// following the states, and reversed from its end, following the gradients. Where an item has two
// threads, one of them prepares the segment before the one that the other reverses.
//
// The states at the starts of the segments are computed before. `Preparation` offers, of a chunk p
// of its type Prepared,
//   load_steps(p, first, executor)               what depends on no state,
//   factor(p, U, executor)                       from U, which becomes that after the chunk,
//   write(p, R, executor)                        of the mean R, given the factors,
//   prepare(p, first, belief, goes_on, executor) all of it; the belief becomes that after the
//                                                chunk where it goes on from there.
#pragma once

#include "scan_batches.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr int64_t kFewBlocks = 4;  // of columns, which two threads share better than more of them

template <class A, class F, class Preparation>
class AdjointSegments {
 public:
  using Prepared = typename Preparation::Prepared;

  AdjointSegments(const Preparation& preparation, const Executor& executor, const Sizes& n,
                  int64_t steps)
      : preparation_(preparation),
        executor_(executor),
        K_(n.K),
        step_(preparation.step),
        chunks_((steps + step_ - 1) / step_) {
    // Chunks that are prepared at once: all of them where they take little memory; otherwise few
    // enough for the cache, and enough that the states kept in between take little.
    constexpr double in_cache = 1.5e6;  // bytes
    const bool overlap = executor.threads() > 1 && K_ <= kSlotsWithoutForks &&
                         (executor.threads() == 2 || preparation.columns.count <= kFewBlocks);
    const double bytes = Prepared::bytes(step_, K_, n.C);
    const int64_t all = std::max<int64_t>(1, chunks_);
    segment_ = all;
    if (double(all) * bytes > Prepared::at_once(K_) || (overlap && all > 8)) {
      const double few = std::max(in_cache / bytes, std::ceil(std::sqrt(double(all)) / 4.0));
      segment_ = std::min(all, std::max<int64_t>(1, int64_t(few)));
    }
    segments_ = (all + segment_ - 1) / segment_;
    both_ = overlap && segments_ > 1;
  }

  int64_t chunks() const { return chunks_; }

  // make(scope, at) constructs a chunk; start(belief) loads the one before all steps;
  // at_end(U) is called when the last chunk is prepared, before reverse(p, executor) of every one.
  template <class Make, class Start, class AtEnd, class Reverse>
  Outcome run(Make&& make, Start&& start, AtEnd&& at_end, Reverse&& reverse) const {
    Workspace::Scope scope(Workspace::of_thread());
    const States<A, F> outer(scope, segments_, K_, preparation_.columns);
    const int64_t count = (both_ ? 2 : 1) * segment_;
    Prepared* sets = scope.take<Prepared>(count);
    for (int64_t i = 0; i < count; ++i) make(scope, sets + i);
    Outcome outcome = start(outer[0]);
    if (outcome == Outcome::done) outcome = advance(outer, sets);
    if (outcome != Outcome::done) return outcome;

    const Executor& inner = both_ ? serial_executor() : executor_;
    const auto reverse_all = [&](int64_t s) {
      for (int64_t i = chunks_of(s) - 1; i >= 0; --i) reverse(set_of(s, sets)[i], inner);
    };
    const int64_t last = segments_ - 1;
    outcome = prepare(last, outer, sets, inner);
    if (outcome == Outcome::done) at_end(outer[last].U);
    for (int64_t s = last; s >= 0 && outcome == Outcome::done; --s) {
      if (both_) {
        executor_.for_each(s > 0 ? 2 : 1, [&](int64_t task) {
          if (task == 0) {
            reverse_all(s);
          } else {
            outcome = prepare(s - 1, outer, sets, inner);
          }
        });
      } else {
        reverse_all(s);
        if (s > 0) outcome = prepare(s - 1, outer, sets, inner);
      }
    }
    return outcome;
  }

 private:
  int64_t chunks_of(int64_t s) const { return std::min(segment_, chunks_ - s * segment_); }
  int64_t first_of(int64_t s, int64_t i) const { return (s * segment_ + i) * step_; }
  Prepared* set_of(int64_t s, Prepared* sets) const {
    return sets + (both_ ? s % 2 : 0) * segment_;
  }

  // The states at the starts of the segments. With two sets of chunks, one thread factorises those
  // whose steps the other loads before and whose columns it writes afterwards.
  Outcome advance(const States<A, F>& outer, Prepared* sets) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Belief<A, F> now{Matrix<F>(scope, K_, K_),
                           MeanBlocks<A>(scope, K_, preparation_.columns)};
    now.copy_from(outer[0]);
    const auto load = [&](int64_t s, const Executor& executor) {
      for (int64_t i = 0; i < chunks_of(s); ++i)
        preparation_.load_steps(set_of(s, sets)[i], first_of(s, i), executor);
    };
    const auto factor = [&](int64_t s, const Executor& executor) {
      for (int64_t i = 0; i < chunks_of(s); ++i) {
        const Outcome outcome = preparation_.factor(set_of(s, sets)[i], now.U, executor);
        if (outcome != Outcome::done) return outcome;
      }
      copy(now.U, outer[s + 1].U);
      return Outcome::done;
    };
    const auto write = [&](int64_t s, const Executor& executor) {
      for (int64_t i = 0; i < chunks_of(s); ++i)
        preparation_.write(set_of(s, sets)[i], now.R, executor);
      std::memcpy(outer[s + 1].R.data, now.R.data, now.R.bytes());
    };
    Outcome outcome = Outcome::done;
    if (!both_) {
      for (int64_t s = 0; s + 1 < segments_ && outcome == Outcome::done; ++s) {
        load(s, executor_);
        outcome = factor(s, executor_);
        if (outcome == Outcome::done) write(s, executor_);
      }
      return outcome;
    }
    load(0, executor_);
    for (int64_t s = 0; s < segments_ && outcome == Outcome::done; ++s)
      executor_.for_each(2, [&](int64_t task) {
        if (task == 0 && s + 1 < segments_) outcome = factor(s, serial_executor());
        if (task == 1 && s > 0) write(s - 1, serial_executor());
        if (task == 1 && s + 2 < segments_) load(s + 1, serial_executor());
      });
    return outcome;
  }

  Outcome prepare(int64_t s, const States<A, F>& outer, Prepared* sets,
                  const Executor& executor) const {
    const Belief<A, F> now = outer[s];  // not needed again
    const int64_t count = chunks_of(s);
    for (int64_t i = 0; i < count; ++i) {
      const Outcome outcome =
          preparation_.prepare(set_of(s, sets)[i], first_of(s, i), now, i + 1 < count, executor);
      if (outcome != Outcome::done) return outcome;
    }
    return Outcome::done;
  }

  const Preparation& preparation_;
  const Executor& executor_;
  const int64_t K_, step_, chunks_;
  int64_t segment_ = 1, segments_ = 1;
  bool both_ = false;  // whether two threads have a set of chunks each
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
