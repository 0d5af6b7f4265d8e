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
  const auto U = covariance_to_read<A>(scope, executor, args.cov, b, K);
  std::atomic<bool> bad{not_finite(K, U)};
  for_each_segment(executor, T, [&](int64_t begin, int64_t end, const Executor& inner) {
    const int64_t tile = tile_rows(inner, end - begin);
    Workspace::Scope scope(Workspace::of_thread());
    AddressTile<A, F> solver(scope, system, tile, inner);
    const Matrix<A> WU(scope, tile, K);
    for (int64_t first = begin; first < end && !bad; first += tile) {
      const int64_t m = std::min(tile, end - first);
      const Rows rows{nullptr, first};
      Workspace::Scope of_tile(Workspace::of_thread());
      solve_tile(of_tile, solver, args, b, rows, m, bad, inner);
      const RowsToWrite<A> V(of_tile, args.values_out, b, rows, m, C);
      product(inner, solver.W, solver.R, V.matrix());
      V.finish(inner);
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
  const Matrix<A> UU(scope, K, K);
  load_covariance(executor, args.cov, b, UU, 1.0);
  const auto gradient = [&](Workspace::Scope& tile, const RecallSums<A>& sums,
                            const AddressTile<A, F>& solver, Rows rows, int64_t m,
                            const Executor& inner) {
    const auto given = args.grad_weights
                           ? rows_to_read<A>(tile, inner, args.grad_weights, b, rows, m, K)
                           : Matrix<A>();
    return read_adjoint(inner, m, solver.W, solver.Rt, UU, args.grad_values, args.grad_var, b,
                        rows.first, given, Matrix<A>(tile, m, K), sums.dR, sums.dU);
  };
  const auto& sums = reverse_solve<A, RecallSums<A>>(scope, args, b, system, executor, gradient);
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
