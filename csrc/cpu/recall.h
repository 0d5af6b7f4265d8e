// Solve and read in one pass over the queries: each address is used while it is in the cache.
#pragma once

#include "address_solver.h"
#include "read.h"
#include "solve_addresses.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F>
void recall_tiles(const RecallArgs& args, int64_t b, const AddressSystem<F>& system,
                  const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const int64_t tile = tile_rows(executor, T);
  Workspace::Scope scope(Workspace::of_thread());
  AddressTile<A, F> solver(scope, system, tile, executor);
  Matrix<A> U(scope, K, K), WU(scope, tile, K), V(scope, tile, C);
  load(executor, args.cov, b, Rows{}, K, U);
  bool bad = not_finite(K, U);
  prepare_form(U);
  for (int64_t first = 0; first < T && !bad; first += tile) {
    const int64_t m = std::min(tile, T - first);
    const Rows rows{nullptr, first};
    load(executor, args.queries, b, rows, m, solver.Z);
    bad = not_finite(m, solver.Z);
    solver.solve(m);
    store(executor, args.weights_out, b, rows, m, solver.W);
    product(executor, m, solver.W, solver.R, V);
    store(executor, args.values_out, b, rows, m, V);
    read_variance(executor, m, solver.W, U, WU, args.var_out, b, first);
  }
  if (bad) {
    fill(args.values_out, b, T, C, NAN);
    fill(args.var_out, b, T, 1, NAN);
    fill(args.weights_out, b, T, K, NAN);
  }
}

template <class A, class F>
void recall_adjoint_tiles(const RecallBackwardArgs& args, int64_t b, const AddressSystem<F>& system,
                          const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const int64_t tile = tile_rows(executor, T);
  Workspace::Scope scope(Workspace::of_thread());
  AddressTile<A, F> solver(scope, system, tile, executor);
  Matrix<A> U(scope, K, K), gW(scope, tile, K), gZ(scope, tile, C), dR(scope, K, C),
      dU(scope, K, K);
  load(executor, args.cov, b, Rows{}, K, U);
  dR.zero();
  dU.zero();
  AddressAdjoint<A, F> adjoint(scope, solver, T, dR);
  for (int64_t first = 0; first < T; first += tile) {
    const int64_t m = std::min(tile, T - first);
    const Rows rows{nullptr, first};
    load(executor, args.queries, b, rows, m, solver.Z);
    solver.solve_again(m, args.weights, b, rows);
    if (args.grad_weights) {
      load(executor, args.grad_weights, b, rows, m, gW);
    } else {
      gW.zero();
    }
    read_adjoint(executor, m, solver.W, solver.Rt, U, args.grad_values, args.grad_var, b, first, gW,
                 dR, dU);
    adjoint.add(m, gW, gZ);
    store(executor, args.d_queries, b, rows, m, gZ);
  }
  adjoint.finish();
  mirror(dU);
  store(executor, args.d_mean, b, Rows{}, K, dR);
  store(executor, args.d_cov, b, Rows{}, K, dU);
  store_scalar(args.d_ridge, b, 0, adjoint.d_ridge);
}

inline double recall_operations(const Sizes& n) {
  return solve_operations(n) + double(n.T) * double(n.K) * double(n.K + n.C);
}

inline void recall(const RecallArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  for_each_item(B, recall_operations(args.n), executor, [&](int64_t b, const Executor& inner) {
    with_address_system(
        args.mean, args.ridge, args.n, b, inner,
        [&](const auto& system, auto arithmetic) {
          recall_tiles<decltype(arithmetic)>(args, b, system, inner);
        },
        [&] {
          fill(args.values_out, b, T, C, NAN);
          fill(args.var_out, b, T, 1, NAN);
          fill(args.weights_out, b, T, K, NAN);
        });
  });
}

inline void recall_backward(const RecallBackwardArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = 3.0 * recall_operations(args.n);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    with_address_system(
        args.mean, args.ridge, args.n, b, inner,
        [&](const auto& system, auto arithmetic) {
          recall_adjoint_tiles<decltype(arithmetic)>(args, b, system, inner);
        },
        [&] {
          fill(args.d_mean, b, K, C, NAN);
          fill(args.d_cov, b, K, K, NAN);
          fill(args.d_queries, b, T, C, NAN);
          store_scalar(args.d_ridge, b, 0, NAN);
        });
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
