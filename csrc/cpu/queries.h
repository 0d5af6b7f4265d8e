// Queries to one memory. Threads share out segments of them: forward, whatever their number, for
// queries do not depend on each other; in an adjoint as many as there are steps for, whose sums are
// added in order, so that a number of threads always gives the same.
#pragma once

#include <new>

#include "in_place.h"

namespace kanerva {
namespace KANERVA_ISA {

inline int64_t tile_rows(const Executor& executor, int64_t T) {
  return std::min(executor.threads() > 1 ? 4 * kTile : kTile, T);
}

// body(first, last, executor) of `count` segments, in one thread each; of one, with all threads.
template <class F>
void run_segments(const Executor& executor, int64_t T, int64_t count, F&& body) {
  constexpr int64_t together = 8;  // rows that products take at a time
  if (count <= 1) return body(0, 0, T, executor);
  executor.for_each(count, [&](int64_t s) {
    const int64_t first = s * (T / together) / count * together;
    const int64_t last = s + 1 < count ? (s + 1) * (T / together) / count * together : T;
    body(s, first, last, serial_executor());
  });
}

// body(first, last, executor)
template <class F>
void for_each_segment(const Executor& executor, int64_t T, F&& body) {
  const int64_t threads = executor.threads(), most = T / kTile;
  const int64_t count = threads == 1 || most < threads ? 1 : std::min(most, 2 * threads);
  run_segments(executor, T, count,
               [&](int64_t, int64_t first, int64_t last, const Executor& inner) {
                 body(first, last, inner);
               });
}

// Items with queries: threads share those of one item, by a single fork, where there are fewer
// items than threads and a segment for each.
template <class F>
void for_each_item_of_queries(const Sizes& n, double operations, const Executor& executor,
                              F&& body) {
  constexpr double worth_a_fork = 2.5e6;  // multiply-adds
  const int64_t threads = executor.threads();
  if (n.B < threads && n.T >= threads * kTile && operations >= worth_a_fork) {
    for (int64_t b = 0; b < n.B; ++b) body(b, executor);
  } else {
    for_each_item(n.B, operations, executor, body);
  }
}

// Sums(scope, of...) of each segment, filled by body(sums, first, last, executor) and added up.
template <class Sums, class Body, class... Of>
Sums& sum_segments(Workspace::Scope& scope, const Executor& executor, int64_t T, int64_t K,
                   Body&& body, const Of&... of) {
  constexpr int64_t most = 16;
  const int64_t steps = std::max(4 * kTile, 4 * K);  // that are worth sums of their own
  const int64_t count = std::min(most, std::max<int64_t>(1, T / steps));
  Sums* sums = scope.take<Sums>(count);
  for (int64_t s = 0; s < count; ++s) new (sums + s) Sums(scope, of...);
  run_segments(executor, T, count,
               [&](int64_t s, int64_t first, int64_t last, const Executor& inner) {
                 body(sums[s], first, last, inner);
               });
  for (int64_t s = 1; s < count; ++s) sums[0].add(sums[s]);
  return sums[0];
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
