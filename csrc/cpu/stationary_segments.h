// One long sequence of a memory that moves on many threads: its steps in segments, all of which go
// on at once as soon as the beliefs between them are known. Those come from elements
// (stationary_element.h), which all segments but the ends are made into at once, and which are
// composed one after another. Gradients go the same way back: those of the beliefs between
// segments from a reversal of every segment with none coming in, and then every segment again.
//
// A segment is an item of its own. All have one arithmetic: how hard an item is shows where the
// belief is still wide, in the first. Where an element is too hard, the chain of chunks serves, and
// writes again what segments have written.
#pragma once

#include <cstdlib>

#include "sequences.h"
#include "stationary_element.h"

namespace kanerva {
namespace KANERVA_ISA {

// How an item goes through its steps, and what its longest thread multiplies and adds.
struct Plan {
  int64_t segments;
  double operations;
};

// Into how many segments to cut an item for so many threads; 1: none, the chain of chunks, which
// two threads share, one the factors and one the columns. By counts of multiply-adds in chunks of
// 16, which go with the measured times (docs/algorithms.md). KANERVA_SEGMENTS, for tests and for
// comparing, sets the number.
inline Plan plan_item(const Sizes& n, Dtype state, bool reads, bool adjoint, int64_t threads) {
  constexpr int64_t few = 3;  // threads, with which there is little to gain
  constexpr double worth_it = 0.9, in_float64 = 1.2, least = 4.0;  // least: slots of a segment
  const double T = double(n.T), K = double(n.K), C = double(n.C);
  const double chain = K * (1.5 * K + 24), columns = 2 * K * C + 8 * C;
  const double variances = reads ? K * (0.5 * K + 16) : 0.0, answers = reads ? K * C + 8 * C : 0.0;
  double one = chain + variances + columns + answers;
  double two = std::max(chain + variances, columns + answers);
  const double wide = state == Dtype::float32 ? in_float64 : 1.0;
  const double element = wide * (chain + 2.5 * K * K + 8 * K + columns + K * C);
  double cut = element + one, compose = wide * 4 * K * K * (K + C);
  if (adjoint) {
    double prepare = chain + 32 * K + 2 * K * C + 8 * C, reverse = K * (3 * K + 64) + 4 * K * C;
    if (reads) {
      prepare += K * (K + 40) + K * C + 40 * C;
      reverse += K * (K + C);
    }
    one = chain + columns + prepare + reverse;
    two = std::max(chain, columns) + std::max(prepare, reverse);
    cut = element + 2 * one;
    compose += wide * K * K * (3 * K + 2 * C);
  }
  Plan best{1, T * (threads > 1 ? two : one)};
  if (n.T < 2) return best;
  if (const char* text = std::getenv("KANERVA_SEGMENTS"); text != nullptr && *text != '\0') {
    best.segments = std::max<int64_t>(1, std::min<int64_t>(std::atoll(text), n.T));
    return best;
  }
  if (threads <= few || n.K > kSlotsWithoutForks) return best;  // there they share every product
  const double chained = worth_it * best.operations;
  for (int64_t count = 3; count <= threads + 1 && T >= least * K * double(count); ++count) {
    const double operations = T / double(count) * cut + double(count) * compose;
    if (operations < chained && operations < best.operations) best = {count, operations};
  }
  return best;
}

inline View view_of(const Matrix<double>& x) { return {x.data, Dtype::float64, {0, x.ld, 1}}; }

inline View view_of(double* x) { return {x, Dtype::float64, {0, 0, 0}}; }

// The segments of an item and the beliefs between them; Args is that of the scan or its adjoint.
template <class Args>
class Segments {
 public:
  Segments(const Args& args, const Episode& e, int64_t count, bool adjoint,
           const Executor& executor)
      : args_(args),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        count_(count),
        K_(args.n.K),
        C_(args.n.C),
        Sigma_(load_stationary<double>(scope_, args.stationary_cov, K_)),
        elements_(scope_.take<SegmentElement>(count)),
        boundaries_(scope_.take<Boundary>(count)) {
    for (int64_t i = 0; i < count; ++i) {
      new (elements_ + i) SegmentElement();
      new (boundaries_ + i) Boundary();
      if (i == 0) continue;
      boundaries_[i] = Boundary(scope_, K_, C_, adjoint && i + 1 < count);
      if (i + 1 < count) elements_[i] = SegmentElement(scope_, K_, C_);
    }
  }

  // Not after find_beliefs() found an element too hard.
  bool usable() const { return elements_built_ != Built::too_hard; }

  const Args& args() const { return args_; }
  const Executor& executor() const { return executor_; }
  int64_t count() const { return count_; }
  const Boundary& at(int64_t i) const { return boundaries_[i]; }
  // Whole vectors of steps where a segment is many of them.
  int64_t first(int64_t i) const {
    constexpr int64_t whole = 16;
    const int64_t T = args_.n.T, at = T * i / count_;
    return i == count_ || T < 8 * whole * count_ ? at : at / whole * whole;
  }

  // Segment i as an item that starts from the belief before it.
  Args item(int64_t i) const {
    Args part = item_of(args_, Sequence{0, first(i), first(i + 1) - first(i)}, 0);
    part.packing = {};
    if (i > 0) {
      part.mean = view_of(boundaries_[i].R);
      part.cov = view_of(boundaries_[i].U);
    }
    return part;
  }

  Episode episode(int64_t i) const {
    Episode part = e_;
    part.steps = first(i + 1) - first(i);
    part.noise += first(i);
    part.decay += first(i);
    if (part.counts) part.counts += first(i);
    return part;
  }

  // All the beliefs; start() leaves the one after the first segment at its boundary.
  template <class Start>
  Outcome find_beliefs(Start&& start) {
    const bool wide = args_.mean.dtype == Dtype::float64;
    const double limit = wide ? kHardSegment64 : kHardSegment32;
    Workspace::Scope scope(Workspace::of_thread());
    bool* ok = scope.take<bool>(count_);
    Outcome outcome = Outcome::done;
    const bool build = elements_built_ == Built::none;
    executor_.for_each(build ? count_ - 1 : 1, [&](int64_t i) {
      if (i == 0) {
        outcome = start();
      } else {
        ok[i] = elements_[i].build(item(i), episode(i), args_.chunk_size, Sigma_,
                                   cholesky_limit(args_.mean.dtype));
      }
    });
    if (build) {
      const bool all = std::all_of(ok + 1, ok + count_ - 1, [](bool x) { return x; });
      elements_built_ = all ? Built::all : Built::too_hard;
    }
    if (outcome != Outcome::done || !usable()) return outcome;
    for (int64_t i = 1; i + 1 < count_; ++i)
      if (!elements_[i].apply(boundaries_[i], boundaries_[i + 1], limit)) {
        elements_built_ = Built::too_hard;
        break;
      }
    return outcome;
  }

 private:
  const Args& args_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t count_, K_, C_;
  const Matrix<double> Sigma_;
  SegmentElement* const elements_;
  Boundary* const boundaries_;
  enum class Built { none, all, too_hard } elements_built_ = Built::none;
};

// The first outcome of so many that is not done.
inline Outcome first_of(const Outcome* outcomes, int64_t count) {
  const Outcome* end = outcomes + count;
  const Outcome* found = std::find_if(outcomes, end, [](Outcome x) { return x != Outcome::done; });
  return found == end ? Outcome::done : *found;
}

// scan(item, episode) in some arithmetic. The outcome counts where the segments are usable after.
template <class Scan>
Outcome scan_in_segments(Segments<CausalScanArgs>& segments, Scan&& scan) {
  Workspace::Scope scope(Workspace::of_thread());
  const CausalScanArgs& args = segments.args();
  const int64_t K = args.n.K, C = args.n.C, count = segments.count();
  double* evidence = scope.take<double>(count);
  Outcome* outcomes = scope.take<Outcome>(count);
  const Boundary end(scope, K, C, false);
  const Matrix<double> unused(scope, count * K, std::max(K, C));
  const auto run = [&](int64_t i) {
    CausalScanArgs part = segments.item(i);
    const Matrix<double> rows{unused[i * K], K, unused.columns, unused.ld};
    const bool kept = i == 0 || i + 1 == count;
    const Boundary& after = i == 0 ? segments.at(1) : end;
    part.mean_out = view_of(kept ? after.R : rows);
    part.cov_out = view_of(kept ? after.U : rows);
    part.log_evidence = view_of(evidence + i);
    return scan(part, segments.episode(i));
  };
  outcomes[0] = segments.find_beliefs([&] { return run(0); });
  if (outcomes[0] != Outcome::done || !segments.usable()) return outcomes[0];
  segments.executor().for_each(count - 1, [&](int64_t i) { outcomes[i + 1] = run(i + 1); });
  if (const Outcome outcome = first_of(outcomes, count); outcome != Outcome::done) return outcome;
  double log_evidence = 0.0;
  for (int64_t i = 0; i < count; ++i) log_evidence += evidence[i];
  store(args.mean_out, 0, Rows{}, end.R);
  store(args.cov_out, 0, Rows{}, end.U);
  store_scalar(args.log_evidence, 0, 0, log_evidence);
  return Outcome::done;
}

// The same of reverse(item, episode), beside scan.
template <class Scan, class Reverse>
Outcome reverse_in_segments(Segments<CausalScanBackwardArgs>& segments, Scan&& scan,
                            Reverse&& reverse) {
  Workspace::Scope scope(Workspace::of_thread());
  const CausalScanBackwardArgs& args = segments.args();
  const int64_t K = args.n.K, C = args.n.C, count = segments.count();
  // Gradients of the beliefs before segments, those of the last round, which nobody needs but the
  // first, and what each segment adds to that of Sigma.
  Boundary* before = scope.take<Boundary>(count);
  Boundary* again = scope.take<Boundary>(count);
  Matrix<double>* dSigma = scope.take<Matrix<double>>(count);
  for (int64_t i = 0; i < count; ++i) {
    new (before + i) Boundary(scope, K, C, false);
    new (again + i) Boundary(scope, K, C, false);
    new (dSigma + i) Matrix<double>(scope, K, K);
  }
  Outcome* outcomes = scope.take<Outcome>(count);
  outcomes[0] = segments.find_beliefs([&] {
    CausalScanArgs write;
    static_cast<WriteInputs&>(write) = segments.item(0);
    double evidence = 0.0;
    write.chunk_size = args.chunk_size;
    write.mean_out = view_of(segments.at(1).R);
    write.cov_out = view_of(segments.at(1).U);
    write.log_evidence = view_of(&evidence);
    return scan(write, segments.episode(0));
  });
  if (outcomes[0] != Outcome::done || !segments.usable()) return outcomes[0];

  const auto run = [&](int64_t i, bool alone, const Boundary& to) {
    CausalScanBackwardArgs part = segments.item(i);
    if (i + 1 < count) {
      part.grad_mean = alone ? View{} : view_of(before[i + 1].R);
      part.grad_cov = alone ? View{} : view_of(before[i + 1].U);
    }
    part.d_mean = view_of(to.R);
    part.d_cov = view_of(to.U);
    if (part.d_stationary_cov) part.d_stationary_cov = view_of(dSigma[i]);
    outcomes[i] = reverse(part, segments.episode(i));
  };
  const Executor& executor = segments.executor();
  executor.for_each(count - 1, [&](int64_t i) { run(i + 1, true, before[i + 1]); });
  if (const Outcome outcome = first_of(outcomes, count); outcome != Outcome::done) return outcome;
  for (int64_t i = count - 2; i > 0; --i)
    add_through(segments.at(i), before[i + 1].R, before[i + 1].U, before[i].R, before[i].U);
  executor.for_each(count - 1, [&](int64_t i) { run(i, false, again[i]); });
  if (const Outcome outcome = first_of(outcomes, count); outcome != Outcome::done) return outcome;
  store(args.d_mean, 0, Rows{}, again[0].R);
  store(args.d_cov, 0, Rows{}, again[0].U);
  if (args.d_stationary_cov) {
    for (int64_t i = 1; i < count; ++i) axpy(1.0, dSigma[i], dSigma[0]);
    store(args.d_stationary_cov, 0, Rows{}, dSigma[0]);
  }
  return Outcome::done;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
