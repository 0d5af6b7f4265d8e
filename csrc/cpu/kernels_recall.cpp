// Solve and read in one pass over the queries: each address is used while it is in the cache.
#include "address_solver.h"
#include "kernels.h"
#include "read.h"
#include "solve_addresses.h"

namespace kanerva {
namespace KANERVA_ISA {

template <class A, class F>
void recall_tiles(const RecallArgs& args, int64_t b, const AddressSystem<F>& system,
                  const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<A> U(scope, K, K);
  load(executor, args.cov, b, Rows{}, K, U);
  std::atomic<bool> bad{not_finite(K, U)};
  prepare_form(U);
  for_each_segment(executor, T, [&](int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    AddressTile<A, F> solver(scope, system, tile, inner);
    const Matrix<A> WU(scope, tile, K), V(scope, tile, C);
    for (int64_t first = begin; first < end && !bad; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      load(inner, args.queries, b, rows, m, solver.Z);
      if (not_finite(m, solver.Z)) bad = true;
      solver.solve(m);
      store(inner, args.weights_out, b, rows, m, solver.W);
      product(inner, m, solver.W, solver.R, V);
      store(inner, args.values_out, b, rows, m, V);
      read_variance(inner, m, solver.W, U, WU, args.var_out, b, first);
    }
  });
  if (bad) {
    fill(args.values_out, b, T, C, NAN);
    fill(args.var_out, b, T, 1, NAN);
    fill(args.weights_out, b, T, K, NAN);
  }
}

template <class A>
struct RecallSums : AddressSums<A> {
  Matrix<A> dU;

  RecallSums(Workspace::Scope& scope, int64_t K, int64_t C, bool by_slots)
      : AddressSums<A>(scope, K, C, by_slots), dU(scope, K, K) {
    dU.zero();
  }
  void add(const RecallSums& other) {
    AddressSums<A>::add(other);
    axpy(1.0, other.dU, dU);
  }
};

template <class A, class F>
void recall_adjoint_tiles(const RecallBackwardArgs& args, int64_t b, const AddressSystem<F>& system,
                          const Executor& executor) {
  const int64_t K = args.n.K;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<A> U(scope, K, K);
  load_covariance(executor, args.cov, b, U);
  const auto load_gradient = [&](const RecallSums<A>& sums, const AddressTile<A, F>& solver,
                                 Rows rows, int64_t m, const Matrix<A>& gW, const Executor& inner) {
    if (args.grad_weights) {
      load(inner, args.grad_weights, b, rows, m, gW);
    } else {
      gW.zero();
    }
    read_adjoint(inner, m, solver.W, solver.Rt, U, args.grad_values, args.grad_var, b, rows.first,
                 gW, sums.dR, sums.dU);
  };
  const auto& sums =
      reverse_solve<A, RecallSums<A>>(scope, args, b, system, executor, load_gradient);
  mirror(sums.dU);
  store(executor, args.d_cov, b, Rows{}, K, sums.dU);
}

inline double recall_operations(const Sizes& n) {
  return solve_operations(n) + double(n.T) * double(n.K) * double(n.K + n.C);
}

inline void recall(const RecallArgs& args, const Executor& executor) {
  const int64_t T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = recall_operations(args.n);
  for_each_item_of_queries(args.n, operations, executor, [&](int64_t b, const Executor& inner) {
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

KANERVA_KERNEL(recall, RecallArgs)
KANERVA_KERNEL(recall_backward, RecallBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
