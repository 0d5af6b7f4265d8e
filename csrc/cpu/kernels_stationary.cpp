#include <optional>

#include "stationary.h"
#include "stationary_adjoint.h"
#include "stationary_segments.h"
#include "stationary_steps.h"

namespace kanerva {
namespace KANERVA_ISA {

namespace {

// The steps of an item; the retentions stand where a write has its decays.
Episode steps_of(Workspace::Scope& scope, const WriteInputs& item) {
  return gather_all_steps(scope, item.n.T, 0, item.noise_var, item.mask, item.retention);
}

// Whether an item is longer than float32 factors can carry: they gather errors for as long as the
// memory keeps them.
bool keeps_too_long(const Episode& e) {
  if (e.steps <= kLongInFloat32) return false;
  double forgotten = 0.0;
  for (int64_t t = 0; t < e.steps; ++t) forgotten += 1.0 - e.decay[t];
  return forgotten * double(kLongInFloat32) < double(e.steps);
}

Outcome scan_adaptively(const CausalScanArgs& args, const Episode& e, bool only_sqrt,
                        const Executor& executor) {
  const Dtype state = args.mean.dtype;
  const bool narrow_state = state == Dtype::float32;
  const Arithmetics may{state, narrow_state && !keeps_too_long(e),
                        narrow_state && !is_small(e.steps, args.n), kHardStationary, only_sqrt};
  std::optional<Segments<CausalScanArgs>> cut;
  const Plan plan = plan_item(args.n, state, bool(args.queries), false, executor.threads());
  if (!only_sqrt && plan.segments > 1) cut.emplace(args, e, plan.segments, false, executor);
  return try_in_turn(may, [&](auto columns, auto factors, bool use_sqrt, double limit) {
    using Scan = StationaryScan<decltype(columns), decltype(factors)>;
    if (use_sqrt) return stationary_scan_by_steps(args, e);
    if (cut && cut->usable()) {
      const Outcome outcome =
          scan_in_segments(*cut, [&](const CausalScanArgs& item, const Episode& steps) {
            return Scan(item, steps, limit, serial_executor()).run();
          });
      if (cut->usable()) return outcome;
    }
    return Scan(args, e, limit, executor).run();
  });
}

Outcome reverse_adaptively(const CausalScanBackwardArgs& args, const Episode& e, bool only_sqrt,
                           const Executor& executor) {
  const Dtype state = args.mean.dtype;
  const bool may32 = state == Dtype::float32 && !is_small(e.steps, args.n);
  const Arithmetics may{state, may32 && !keeps_too_long(e), may32, kHardStationaryGradient,
                        only_sqrt};
  std::optional<Segments<CausalScanBackwardArgs>> cut;
  const Plan plan = plan_item(args.n, state, bool(args.queries), true, executor.threads());
  if (!only_sqrt && plan.segments > 1) cut.emplace(args, e, plan.segments, true, executor);
  return try_in_turn(may, [&](auto columns, auto factors, bool use_sqrt, double limit) {
    using A = decltype(columns);
    using F = decltype(factors);
    if (use_sqrt) return StationaryStepAdjoint(args, e).run();
    if (cut && cut->usable()) {
      const Executor& serial = serial_executor();
      const Outcome outcome = reverse_in_segments(
          *cut,
          [&](const CausalScanArgs& item, const Episode& steps) {
            return StationaryScan<A, F>(item, steps, limit, serial).run();
          },
          [&](const CausalScanBackwardArgs& item, const Episode& steps) {
            return StationaryAdjoint<A, F>(item, steps, limit, serial).run();
          });
      if (cut->usable()) return outcome;
    }
    return StationaryAdjoint<A, F>(args, e, limit, executor).run();
  });
}

double operations_of(const Sizes& n) {
  return double(n.T + n.K) * double(n.K) * double(2 * n.K + n.C);
}

template <class Args, class Run, class Fail>
void for_each_sequence(const Args& args, bool adjoint, const Executor& executor, Run&& run,
                       Fail&& fail) {
  const int64_t T = args.n.T, B = args.n.B, threads = executor.threads();
  const bool rise = bounds_rise(args.packing, T);
  const auto body = [&](int64_t s, const Executor& inner) {
    const Args item = item_of(args, sequence_of(args.packing, rise, T, s), s);
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = steps_of(scope, item);
    const Outcome outcome = rise && e.valid ? run(item, e, inner) : Outcome::failed;
    if (outcome != Outcome::done) fail(item);
  };
  // A few items of one length: each on a thread of its own, or one after another on all.
  const auto longest = [&](int64_t n) {
    return plan_item(args.n, args.mean.dtype, bool(args.queries), adjoint, n).operations;
  };
  if (!args.packing.bounds && args.n.K <= kSlotsWithoutForks && B < threads &&
      longest(1) <= double(B) * longest(threads)) {
    executor.for_each(B, [&](int64_t s) { body(s, serial_executor()); });
  } else {
    for_each_item(B, (adjoint ? 3.0 : 1.0) * operations_of(args.n), executor, body);
  }
}

}  // namespace

void stationary_scan(const CausalScanArgs& args, bool only_sqrt, const Executor& executor) {
  const auto run = [&](const CausalScanArgs& item, const Episode& e, const Executor& inner) {
    return scan_adaptively(item, e, only_sqrt, inner);
  };
  for_each_sequence(args, false, executor, run, [](const CausalScanArgs& item) {
    const auto [one, steps, slots, code] = item.n;
    if (item.queries) {
      fill(item.reads_out, 0, steps, code, NAN);
      fill(item.read_var_out, 0, steps, 1, NAN);
    }
    fill(item.mean_out, 0, slots, code, NAN);
    fill(item.cov_out, 0, slots, slots, NAN);
    store_scalar(item.log_evidence, 0, 0, NAN);
  });
}

void stationary_scan_backward(const CausalScanBackwardArgs& args, bool only_sqrt,
                              const Executor& executor) {
  const auto run = [&](const CausalScanBackwardArgs& item, const Episode& e,
                       const Executor& inner) {
    return reverse_adaptively(item, e, only_sqrt, inner);
  };
  const auto fail = [](const CausalScanBackwardArgs& item) {
    const auto [one, steps, slots, code] = item.n;
    fill(item.d_mean, 0, slots, code, NAN);
    fill(item.d_cov, 0, slots, slots, NAN);
    fill(item.d_weights, 0, steps, slots, NAN);
    fill(item.d_values, 0, steps, code, NAN);
    if (item.queries) fill(item.d_queries, 0, steps, slots, NAN);
    fill(item.d_noise_var, 0, steps, 1, NAN);
    fill(item.d_retention, 0, steps, 1, NAN);
    if (item.d_stationary_cov) fill(item.d_stationary_cov, 0, slots, slots, NAN);
  };
  for_each_sequence(args, true, executor, run, fail);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
