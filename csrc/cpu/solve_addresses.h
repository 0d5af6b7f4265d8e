// Least-squares addressing (Wu et al., The Kanerva Machine's successor, NeurIPS 2018) and its
// adjoint.
#pragma once

#include <atomic>

#include "address_solver.h"
#include "queries.h"

namespace kanerva {
namespace KANERVA_ISA {

// The addresses of m queries, left in `solver`; `bad` when a query is not finite.
template <class A, class F>
void solve_tile(Workspace::Scope& scope, AddressTile<A, F>& solver, const SolveAddressesArgs& args,
                int64_t b, Rows rows, int64_t m, std::atomic<bool>& bad, const Executor& executor) {
  const RowsToWrite<A> weights(scope, args.weights_out, b, rows, m, args.n.K, Use::all);
  solver.take(scope, args.queries, b, rows, m);
  solver.W = weights.matrix();
  solver.solve(m);
  if (not_finite(m, solver.W) && not_finite(m, solver.Z)) bad = true;
  weights.finish(executor);
}

template <class A, class F>
void solve_tiles(const SolveAddressesArgs& args, int64_t b, const AddressSystem<F>& system,
                 const Executor& executor) {
  std::atomic<bool> bad{false};
  for_each_segment(executor, args.n.T, [&](int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    AddressTile<A, F> solver(scope, system, tile, inner);
    for (int64_t first = begin; first < end && !bad; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      Workspace::Scope of_tile(Workspace::of_thread());
      solve_tile(of_tile, solver, args, b, rows, m, bad, inner);
    }
  });
  if (bad) fill(args.weights_out, b, args.n.T, args.n.K, NAN);
}

// The adjoint of the solve, queries in tiles, and of what comes after it: gradient(scope, sums,
// solver, rows, m, executor) gives that of the addresses. Returns the sums, of which dR is done
// with.
template <class A, class Sums, class F, class Args, class Gradient>
Sums& reverse_solve(Workspace::Scope& scope, const Args& args, int64_t b,
                    const AddressSystem<F>& system, const Executor& executor, Gradient&& gradient) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const auto run = [&](Sums& sums, int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    AddressTile<A, F> solver(scope, system, tile, inner);
    AddressAdjoint<A, F> adjoint(scope, solver, sums);
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      Workspace::Scope of_tile(Workspace::of_thread());
      solver.take(of_tile, args.queries, b, rows, m);
      solver.solve_again(of_tile, m, args.weights, b, rows);
      const Matrix<A> gW = gradient(of_tile, sums, solver, rows, m, inner);
      const RowsToWrite<A> gZ(of_tile, args.d_queries, b, rows, m, C,
                              system.wide ? Use::products : Use::all);
      adjoint.add(m, gW, gZ.matrix());
      gZ.finish(inner);
    }
  };
  const bool by_slots = system.is_summed_by_slots(T);
  auto& sums = sum_segments<Sums>(scope, executor, T, K, run, K, C, by_slots);
  sums.finish(system, args.d_mean, b, executor);
  store_scalar(args.d_ridge, b, 0, sums.d_ridge);
  return sums;
}

template <class A, class F>
void solve_adjoint_tiles(const SolveAddressesBackwardArgs& args, int64_t b,
                         const AddressSystem<F>& system, const Executor& executor) {
  Workspace::Scope scope(Workspace::of_thread());
  const auto gradient = [&](Workspace::Scope& tile, const AddressSums<A>&, const AddressTile<A, F>&,
                            Rows rows, int64_t m, const Executor& inner) {
    return rows_to_read<A>(tile, inner, args.grad_weights, b, rows, m, args.n.K);
  };
  reverse_solve<A, AddressSums<A>>(scope, args, b, system, executor, gradient);
}

inline double solve_operations(const Sizes& n) {
  return double(n.K) * double(n.C) * double(n.T + std::min(n.K, n.C));
}

inline void solve_addresses(const SolveAddressesArgs& args, const Executor& executor) {
  const double operations = solve_operations(args.n);
  for_each_item_of_queries(args.n, operations, executor, [&](int64_t b, const Executor& inner) {
    with_address_system(
        args.mean, args.ridge, args.n, b, inner,
        [&](const auto& system, auto arithmetic) {
          solve_tiles<decltype(arithmetic)>(args, b, system, inner);
        },
        [&] { fill(args.weights_out, b, args.n.T, args.n.K, NAN); });
  });
}

inline void solve_addresses_backward(const SolveAddressesBackwardArgs& args,
                                     const Executor& executor) {
  for_each_item(args.n.B, 3.0 * solve_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) {
                  with_address_system(
                      args.mean, args.ridge, args.n, b, inner,
                      [&](const auto& system, auto arithmetic) {
                        solve_adjoint_tiles<decltype(arithmetic)>(args, b, system, inner);
                      },
                      [&] {
                        fill(args.d_mean, b, args.n.K, args.n.C, NAN);
                        fill(args.d_queries, b, args.n.T, args.n.C, NAN);
                        store_scalar(args.d_ridge, b, 0, NAN);
                      });
                });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
