// Least-squares addressing (Wu et al., The Kanerva Machine's successor, NeurIPS 2018) and its
// adjoint.
#pragma once

#include "address_solver.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F>
void solve_tiles(const SolveAddressesArgs& args, int64_t b, const AddressSystem<F>& system,
                 const Executor& executor) {
  const int64_t T = args.n.T, tile = tile_rows(executor, T);
  Workspace::Scope scope(Workspace::of_thread());
  AddressTile<A, F> solver(scope, system, tile, executor);
  bool bad = false;
  for (int64_t first = 0; first < T && !bad; first += tile) {
    const int64_t m = std::min(tile, T - first);
    const Rows rows{nullptr, first};
    load(executor, args.queries, b, rows, m, solver.Z);
    bad = not_finite(m, solver.Z);
    solver.solve(m);
    store(executor, args.weights_out, b, rows, m, solver.W);
  }
  if (bad) fill(args.weights_out, b, T, args.n.K, NAN);
}

template <class A, class F>
void solve_adjoint_tiles(const SolveAddressesBackwardArgs& args, int64_t b,
                         const AddressSystem<F>& system, const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const int64_t tile = tile_rows(executor, T);
  Workspace::Scope scope(Workspace::of_thread());
  AddressTile<A, F> solver(scope, system, tile, executor);
  Matrix<A> gW(scope, tile, K), gZ(scope, tile, C), dR(scope, K, C);
  dR.zero();
  AddressAdjoint<A, F> adjoint(scope, solver, T, dR);
  for (int64_t first = 0; first < T; first += tile) {
    const int64_t m = std::min(tile, T - first);
    const Rows rows{nullptr, first};
    load(executor, args.queries, b, rows, m, solver.Z);
    solver.solve_again(m, args.weights, b, rows);
    load(executor, args.grad_weights, b, rows, m, gW);
    adjoint.add(m, gW, gZ);
    store(executor, args.d_queries, b, rows, m, gZ);
  }
  adjoint.finish();
  store(executor, args.d_mean, b, Rows{}, K, dR);
  store_scalar(args.d_ridge, b, 0, adjoint.d_ridge);
}

inline double solve_operations(const Sizes& n) {
  return double(n.K) * double(n.C) * double(n.T + std::min(n.K, n.C));
}

inline void solve_addresses(const SolveAddressesArgs& args, const Executor& executor) {
  for_each_item(args.n.B, solve_operations(args.n), executor,
                [&](int64_t b, const Executor& inner) {
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
