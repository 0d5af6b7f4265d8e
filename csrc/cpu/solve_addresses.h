// Least-squares addressing (Wu et al., The Kanerva Machine's successor, NeurIPS 2018) and its
// adjoint.
#pragma once

#include <atomic>

#include "address_solver.h"
#include "queries.h"

namespace kanerva {
namespace KANERVA_ISA {

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
      load(inner, args.queries, b, rows, m, solver.Z);
      if (not_finite(m, solver.Z)) bad = true;
      solver.solve(m);
      store(inner, args.weights_out, b, rows, m, solver.W);
    }
  });
  if (bad) fill(args.weights_out, b, args.n.T, args.n.K, NAN);
}

// The adjoint of the solve, queries in tiles, and of what comes after it: load_gradient(sums,
// solver, rows, m, gW, executor) gives the gradient of the addresses. Returns the sums, complete.
template <class A, class Sums, class F, class Args, class LoadGradient>
Sums& reverse_solve(Workspace::Scope& scope, const Args& args, int64_t b,
                    const AddressSystem<F>& system, const Executor& executor,
                    LoadGradient&& load_gradient) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const auto run = [&](Sums& sums, int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    AddressTile<A, F> solver(scope, system, tile, inner);
    const Matrix<A> gW(scope, tile, K), gZ(scope, tile, C);
    AddressAdjoint<A, F> adjoint(scope, solver, sums);
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      load(inner, args.queries, b, rows, m, solver.Z);
      solver.solve_again(m, args.weights, b, rows);
      load_gradient(sums, solver, rows, m, gW, inner);
      adjoint.add(m, gW, gZ);
      store(inner, args.d_queries, b, rows, m, gZ);
    }
  };
  const bool by_slots = system.is_summed_by_slots(T);
  auto& sums = sum_segments<Sums>(scope, executor, T, K, run, K, C, by_slots);
  sums.finish(system, executor);
  store(executor, args.d_mean, b, Rows{}, K, sums.dR);
  store_scalar(args.d_ridge, b, 0, sums.d_ridge);
  return sums;
}

template <class A, class F>
void solve_adjoint_tiles(const SolveAddressesBackwardArgs& args, int64_t b,
                         const AddressSystem<F>& system, const Executor& executor) {
  Workspace::Scope scope(Workspace::of_thread());
  const auto load_gradient = [&](const AddressSums<A>&, const AddressTile<A, F>&, Rows rows,
                                 int64_t m, const Matrix<A>& gW, const Executor& inner) {
    load(inner, args.grad_weights, b, rows, m, gW);
  };
  reverse_solve<A, AddressSums<A>>(scope, args, b, system, executor, load_gradient);
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
