// The adjoint of a long episode's write from the posterior, for easy conditioning and no decay.
//
// With the posterior (R, U), A = diag(1/n) (Z - W R), Wn = diag(1/n) W, Q = U gR, D = R - R0 =
// U0 W'A and M = 2 U gU U + gl C U, every sum over the steps but three products drops out:
//   dZ = Wn Q - gl A,  dW = A (Q + gl R)' - Wn (Q R' + M),
//   dn = -rowsum(Wn Q * A) + rowsum(Wn M * Wn) / 2 + gl/2 (rowsum(A * A) - C / n),
//   dR0 = U0^-1 (Q + gl D),
//   dU0 = U0^-1 (M / 2 + sym((Q + gl/2 D) D')) U0^-1 - gl C/2 U0^-1.
// Forming A from the posterior cancels when noise is small, hence the limit on hardness.
#pragma once

#include "information.h"
#include "matrices.h"

namespace kanerva {
namespace KANERVA_ISA {

// max_t |w_t|^2 / n_t times the largest absolute row sum of U0: bounds max w'U0 w / n.
inline double hardness_bound(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e) {
  const int64_t K = args.n.K, tile = std::min(kTile, e.steps);
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<float> U0(scope, K, K), W(scope, tile, K);
  load_covariance(args.cov, b, U0);
  double energy = 0.0;
  for (int64_t first = 0; first < e.steps; first += tile) {
    const int64_t m = std::min(tile, e.steps - first);
    load(args.weights, b, Rows{e.index, first}, m, W);
    for (int64_t t = 0; t < m; ++t)
      energy = std::max(energy, row_dot(K, W[t], W[t]) / e.noise[first + t]);
  }
  return row_norm(U0) * energy;
}

// Whether the write moved the mean by more than the rounding of the posterior tells: the gradient
// of the log evidence is formed from R - R0.
inline bool has_moved(const BayesWriteBackwardArgs& args, int64_t b) {
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<double> R(scope, args.n.K, args.n.C), R0(scope, args.n.K, args.n.C);
  load(args.posterior_mean, b, Rows{}, R);
  load(args.mean, b, Rows{}, R0);
  double size = 0.0, moved = 0.0;
  for (int64_t k = 0; k < R.rows; ++k) {
    size += row_dot(R.columns, R[k], R[k]);
    axpy(0, R.columns, -1.0, R0[k], R[k]);
    moved += row_dot(R.columns, R[k], R[k]);
  }
  return moved >= kLeastMoved * kLeastMoved * size;
}

// S: arithmetic of the state; A: of the steps.
template <class S, class A>
class LongPosteriorAdjoint {
 public:
  LongPosteriorAdjoint(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                       const Executor& executor)
      : args_(args),
        b_(b),
        e_(e),
        executor_(executor),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, b) : 0.0),
        R_(scope_, K_, C_),
        Q_(scope_, K_, C_),
        mixed_(scope_, C_, K_),
        QRM_(scope_, K_, K_) {}

  // P0: the inverse of the prior covariance.
  void run(const Matrix<S>& P0) {
    Workspace::Scope scope(Workspace::of_thread());
    State state(scope, K_, C_);
    solve_state(P0, state);
    take_padded_into(R_, state.R);
    take_padded_into(Q_, state.Q);
    take_padded_into(mixed_, state.mixed);
    take_padded_into(QRM_, state.QRM);
    const int64_t tile = std::min(kTile, e_.steps), tiles = (e_.steps + tile - 1) / tile;
    executor_.for_each(
        tiles, [&](int64_t i) { adjoint_steps(i * tile, std::min(tile, e_.steps - i * tile)); });
  }

 private:
  struct State {
    Matrix<S> R, Q, mixed, QRM;
    State(Workspace::Scope& scope, int64_t K, int64_t C)
        : R(scope, K, C), Q(scope, K, C), mixed(scope, C, K), QRM(scope, K, K) {}
  };

  // f(k) for every row of the state
  template <class F>
  void each_row(F&& f) const {
    for_rows(executor_, K_, C_, [&](int64_t first, int64_t count) {
      for (int64_t k = first; k < first + count; ++k) f(k);
    });
  }

  // c = a b, known to be symmetric
  void symmetric_product(const Matrix<S>& a, const Matrix<S>& b, const Matrix<S>& c) const {
    product(executor_, a, b, c, Store::set, Part::upper);
    mirror(c);
  }

  void solve_state(const Matrix<S>& P0, const State& state) {
    const Matrix<S>&R = state.R, &Q = state.Q, &QRM = state.QRM;
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<S> U(scope, K_, K_), gU(scope, K_, K_), X(scope, K_, K_), M(scope, K_, K_);
    const Matrix<S> gR(scope, K_, C_), D(scope, K_, C_), turned(scope, C_, K_);
    load(executor_, args_.posterior_cov, b_, Rows{}, K_, U);
    load(executor_, args_.posterior_mean, b_, Rows{}, K_, R);
    load_or_zero(executor_, args_.grad_mean, b_, gR);
    load_or_zero(executor_, args_.grad_cov, b_, gU);
    symmetrise(gU);

    product(executor_, K_, U, gU, X);
    symmetric_product(X, U, M);
    product(executor_, K_, U, gR, Q);
    transpose(executor_, R, turned);
    product(executor_, K_, Q, turned, QRM);
    const S evidence = S(gl_ * double(C_)), log_gradient = S(gl_), half = S(0.5);
    load(executor_, args_.mean, b_, Rows{}, K_, D);
    each_row([&](int64_t k) {
      for (int64_t j = 0; j < M.ld; ++j) {
        M[k][j] = S(2) * M[k][j] + evidence * U[k][j];
        QRM[k][j] += M[k][j];
      }
      for (int64_t j = 0; j < D.ld; ++j) {
        D[k][j] = R[k][j] - D[k][j];
        gR[k][j] = Q[k][j] + half * log_gradient * D[k][j];
      }
    });
    transpose(executor_, D, turned);
    product(executor_, K_, gR, turned, X);
    symmetrise(X);
    each_row([&](int64_t k) {
      for (int64_t j = 0; j < X.ld; ++j) M[k][j] = half * M[k][j] + X[k][j];
      for (int64_t j = 0; j < D.ld; ++j) {
        gR[k][j] = Q[k][j] + log_gradient * D[k][j];
        D[k][j] = Q[k][j] + log_gradient * R[k][j];
      }
    });
    const RowsToWrite<S> dR(scope, args_.d_mean, b_, Rows{}, K_, C_);
    product(executor_, P0, gR, dR.matrix());
    dR.finish(executor_);
    product(executor_, K_, P0, M, X);
    symmetric_product(X, P0, M);
    each_row([&](int64_t k) {
      for (int64_t j = 0; j < M.ld; ++j) M[k][j] -= half * evidence * P0[k][j];
    });
    store(executor_, args_.d_cov, b_, Rows{}, K_, M);
    transpose(executor_, D, state.mixed);
  }

  void adjoint_steps(int64_t first, int64_t m) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Executor& alone = serial_executor();
    const Rows rows{e_.index, first};
    const auto W = rows_to_read<A>(scope, alone, args_.weights, b_, rows, m, K_, Use::all),
               Z = rows_to_read<A>(scope, alone, args_.values, b_, rows, m, C_, Use::all);
    const Matrix<A> Wn(scope, m, K_), M(scope, m, K_), dW(scope, m, K_), residual(scope, m, C_),
        X(scope, m, C_);
    product_from(alone, Z, W, R_, residual, Store::sub);
    for (int64_t t = 0; t < m; ++t) {
      const A inverse = A(1.0 / e_.noise[first + t]);
      scale_into(0, K_, inverse, W[t], Wn[t]);
      scale(0, C_, inverse, residual[t]);  // residual becomes A
    }
    product(alone, residual, mixed_, dW);
    product(alone, Wn, QRM_, M);
    product(alone, Wn, Q_, X);
    for (int64_t t = 0; t < m; ++t) {
      // Wn Q R' Wn' = Wn Q (Z / n - A)', so that Wn M Wn' needs no product of its own.
      const double n = e_.noise[first + t], cross = row_dot(C_, X[t], residual[t]),
                   both = row_dot(C_, X[t], Z[t]) / n,
                   square = row_dot(C_, residual[t], residual[t]),
                   quadratic = row_dot(K_, M[t], Wn[t]);
      const double d = 0.5 * (quadratic - both - cross + gl_ * (square - double(C_) / n));
      store_scalar(args_.d_noise_var, b_, rows[t], d);
      axpy(0, C_, -gl_, residual[t], X[t]);
      axpy(0, K_, -1.0, M[t], dW[t]);
    }
    store(args_.d_weights, b_, rows, m, dW);
    store(args_.d_values, b_, rows, m, X);
  }

  const BayesWriteBackwardArgs& args_;
  const int64_t b_;
  const Episode& e_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const double gl_;
  Matrix<A> R_, Q_, mixed_, QRM_;
};

// False when it does not apply: too hard, or a prior whose inverse amplifies the posterior's
// rounding.
template <class S, class A>
bool adjoint_of_long_episode(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                             const Executor& executor) {
  if (!(hardness_bound(args, b, e) <= kHardForPosterior)) return false;
  if (args.grad_log_evidence && !has_moved(args, b)) return false;
  const int64_t K = args.n.K;
  Workspace::Scope scope(Workspace::of_thread());
  Matrix<S> U0(scope, K, K), inverse(scope, K, K);
  load_covariance(args.cov, b, U0);
  const SpdFacts facts = invert_spd(executor, U0, inverse);
  if (!facts.ok || !(facts.condition <= kPriorCondition)) return false;
  LongPosteriorAdjoint<S, A>(args, b, e, executor).run(inverse);
  return true;
}

// In the state's arithmetic where there are many slots; of few, its float32 part is the steps.
inline bool adjoint_of_long_episode(const BayesWriteBackwardArgs& args, int64_t b, const Episode& e,
                                    const Executor& executor) {
  const int64_t K = args.n.K;
  if (!information_serves(args.method, bool(args.decay), e.steps, K) || !args.posterior_mean)
    return false;
  const bool narrow = args.mean.dtype == Dtype::float32;
  if (K < kManySlots)
    return narrow && float32_sums_serve(e.steps, K) &&
           adjoint_of_long_episode<double, float>(args, b, e, executor);
  return narrow ? adjoint_of_long_episode<float, float>(args, b, e, executor)
                : adjoint_of_long_episode<double, double>(args, b, e, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
