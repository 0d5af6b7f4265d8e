// The adjoint of a scan: that of its write (write_adjoint.h) plus that of its reads, which is
// linear in the incoming gradients and can therefore be added chunk by chunk.
//
// With A = tril(Q P'), gO and gv the gradients of the reads and of their variances, h = gv / b,
// B = tril(gO E'), Delta = B - 2 h A and Q~ = Q - A Y, what the chunk leaves of the queries,
//   dQ = gO R0' + 2 h Q U0 + Delta P,      gR += Q~'gO,   gU += Q~'h Q~ + sym(Y'B'Q~),
//   I^ += sym(A'(h A - B)),                D^ += F^-T A'gO,
//   dW += F^-T (Delta'Q U0 + 2 I^ P) - D^ R0',   db_t -= h_t read_var_t.
// Where the write subtracts what the chunk overwrites, so do the reads, by adding Delta'Q to the N
// of the write: gR += Q'gO, gU += Q'h Q. Elsewhere Delta'Q U0 + 2 I^ P = (Delta'Q~ - A'B Y) U0. In
// sqrt form the root after each step gives its variance and U_t q_t, and Q~ comes from the product
// that gives J'.
#pragma once

#include "causal_scan.h"
#include "write_adjoint.h"

namespace kanerva {
namespace KANERVA_ISA {

// What WriteAdjoint<A, F, ScanReads<A, F>> asks of the reads of a chunk; see NoReads.
template <class A, class F>
class ScanReads {
 public:
  static constexpr bool present = true;
  using Args = CausalScanBackwardArgs;

  ScanReads(Workspace::Scope& scope, const Args& args, int64_t step, bool use_sqrt)
      : args_(args),
        use_sqrt_(use_sqrt),
        step_(step),
        K_(args.n.K),
        Q_(scope, step, K_),
        rest_(scope, step, K_),
        UQ_(scope, step, K_),
        rooted_(scope, use_sqrt ? step : 0, K_),
        inside_(scope, step, step),
        mixed_(scope, step, step),
        delta_(scope, step, step),
        queries_(room_in_arithmetic<A>(scope, Q_)),
        factors_(room_in_arithmetic<A>(scope, inside_)),
        slope_(scope.take<double>(step)),
        var_(scope.take<double>(step)) {
    for (Matrix<F>* m : {&inside_, &mixed_, &delta_}) m->structure = Structure::lower;
  }

  void load_chunk(int64_t first, const Episode& e) {
    first_ = first;
    L_ = std::min(step_, e.steps - first);
    for (Matrix<F>* m : {&Q_, &rest_, &UQ_, &inside_, &mixed_, &delta_}) m->rows = L_;
    for (Matrix<F>* m : {&inside_, &mixed_, &delta_}) m->columns = L_;
    load(args_.queries, 0, Rows{nullptr, first}, Q_);
    for (int64_t t = 0; t < L_; ++t)
      slope_[t] =
          args_.grad_read_var ? load_scalar<double>(args_.grad_read_var, 0, first + t) : 0.0;
  }

  // In sqrt form: the root after step t, without the decays of the chunk.
  void take_root(int64_t t, const Matrix<F>& root) {
    var_[t] = root_product(root, Q_[t], rooted_[t], UQ_[t]);
  }

  // What that root makes of the query.
  const F* through_root(int64_t t) const { return rooted_[t]; }
  double slope(int64_t t) const { return slope_[t]; }

  // And J' after step t.
  void take_kept(int64_t t, const Matrix<F>& keep) {
    std::memset(rest_[t], 0, size_t(rest_.ld) * sizeof(F));
    for (int64_t i = 0; i < K_; ++i) rest_[t][i] = F(row_dot(K_, keep[i], Q_[t]));
  }

  // With the factors, the covariance U before the chunk and Y. `kept`: J' was formed.
  void prepare(const Chunk<F>& c, const Matrix<F>& U, const Matrix<F>& Y, bool kept,
               const Executor& executor) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> Pt(scope, K_, L_);
    transpose(c.P, Pt);
    product(executor, Q_, Pt, inside_);
    clear_upper(inside_);
    kept_ = kept;
    if (!use_sqrt_) {
      product(executor, Q_, U, UQ_);
      for (int64_t t = 0; t < L_; ++t)
        var_[t] = row_dot(K_, UQ_[t], Q_[t]) - row_dot(L_, inside_[t], inside_[t]);
    }
    for (int64_t t = 0; t < L_; ++t) {
      slope_[t] /= c.decay[t];
      var_[t] /= c.decay[t];
    }
    if (kept && !use_sqrt_) {
      copy(Q_, rest_);
      product(executor, inside_, Y, rest_, Store::sub);
    }
    take_into(queries_, outer());
    take_into(factors_, inside_);
  }

  // gO of a block of columns; absent: zero.
  Matrix<A> load_gradient(Workspace::Scope& scope, const Columns& columns, int64_t block) const {
    if (!args_.grad_reads) return {};
    const Matrix<A> gO = take_block<A>(scope, L_, columns, block);
    load(args_.grad_reads, 0, Rows{nullptr, first_}, gO, columns.at(block));
    return gO;
  }

  // gO E' and A'gO of a block of columns, given E'.
  void add_columns(const Matrix<A>& gO, const Matrix<A>& Et, const Matrix<A>& OE,
                   const Matrix<A>& AO) const {
    product(gO, Et, OE, Store::add);
    product_transposed(factors_, gO, AO, Store::add);
  }

  void add_to_mean(const Matrix<A>& gO, const Matrix<A>& gR) const {
    product_transposed(queries_, gO, gR, Store::add);
  }

  // I^, from the sums over all columns gO R' and gO E'.
  void add_inner(const Chunk<F>& c, const Matrix<A>& OR, const Matrix<A>& OE,
                 const Matrix<F>& inner, const Executor& executor) {
    convert(OE, mixed_);
    clear_upper(mixed_);
    copy(mixed_, delta_);
    for (int64_t t = 0; t < L_; ++t) {
      axpy(0, L_, -2.0 * slope_[t], inside_[t], delta_[t]);
      // dQ takes the place of U q
      scale(0, K_, 2.0 * slope_[t], UQ_[t]);
      for (int64_t k = 0; k < K_; ++k) UQ_[t][k] += F(OR[t][k]);
    }
    // In sqrt form U_t q_t is complete.
    product(executor, use_sqrt_ ? mixed_ : delta_, c.P, UQ_, Store::add);
    add_to_system(inner, executor);
  }

  // dU += Q~'h Q~, or Q'h Q
  void add_to_covariance(const Matrix<F>& dU, const Executor& executor) const {
    if (!args_.grad_read_var) return;
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> weighted(scope, L_, K_);
    copy(outer(), weighted);
    for (int64_t t = 0; t < L_; ++t) scale(0, K_, slope_[t], weighted[t]);
    product_transposed(executor, outer(), weighted, dU, Store::add);
  }

  // right += B'Q~, where J' was formed.
  void add_to_kept(const Matrix<F>& right, const Executor& executor) const {
    product_transposed(executor, mixed_, rest_, right, Store::add);
  }

  // system -= A'B
  void subtract_mixed(const Matrix<F>& system, const Executor& executor) const {
    product_transposed(executor, inside_, mixed_, system, Store::sub);
  }

  // N += Delta'Q, or Delta'Q~
  void add_to_addresses(const Matrix<F>& N, const Executor& executor) const {
    product_transposed(executor, delta_, outer(), N, Store::add);
  }

  // What does not depend on the gradients of the state is complete.
  void finish(double* d_decay) const {
    for (int64_t t = 0; t < L_; ++t) d_decay[t] -= slope_[t] * var_[t];
    store(args_.d_queries, 0, Rows{nullptr, first_}, UQ_);
  }

 private:
  // I^ += sym(A'(h A - B))
  void add_to_system(const Matrix<F>& inner, const Executor& executor) const {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F> right(scope, L_, L_), cross(scope, L_, L_);
    right.zero();
    for (int64_t t = 0; t < L_; ++t) {
      axpy(0, L_, slope_[t], inside_[t], right[t]);
      axpy(0, L_, -1.0, mixed_[t], right[t]);
    }
    product_transposed(executor, inside_, right, cross);
    symmetrise(cross);
    axpy(1.0, cross, inner);
  }

  const Matrix<F>& outer() const { return kept_ ? rest_ : Q_; }

  const Args& args_;
  const bool use_sqrt_;
  const int64_t step_, K_;
  // The queries, what the chunk leaves of them, U q and then dQ; A, B and Delta.
  Matrix<F> Q_, rest_, UQ_, rooted_, inside_, mixed_, delta_;
  Matrix<A> queries_, factors_;  // Q or Q~, and A
  double *slope_, *var_;         // h and read_var
  int64_t first_ = 0, L_ = 0;
  bool kept_ = false;
};

inline Outcome scan_adjoint_adaptively(const CausalScanBackwardArgs& args, const Episode& e,
                                       const Executor& executor) {
  const int64_t step = scan_steps(args.n.K, args.chunk_size, e);
  const Arithmetics may = arithmetics_of_adjoint(args.n, e, args.mean.dtype);
  return try_in_turn(may, [&](auto columns, auto factors, bool use_sqrt, double limit) {
    using A = decltype(columns);
    using F = decltype(factors);
    using Reads = ScanReads<A, F>;
    return WriteAdjoint<A, F, Reads>(args, 0, e, use_sqrt, limit, executor, step).run();
  });
}

inline void causal_scan_backward(const CausalScanBackwardArgs& args, const Executor& executor) {
  if (args.moves()) return stationary_scan_backward(args, false, executor);
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const auto fail = [](const CausalScanBackwardArgs& item) {
    const auto [one, steps, slots, code] = item.n;
    fill(item.d_mean, 0, slots, code, NAN);
    fill(item.d_cov, 0, slots, slots, NAN);
    fill(item.d_weights, 0, steps, slots, NAN);
    fill(item.d_values, 0, steps, code, NAN);
    fill(item.d_queries, 0, steps, slots, NAN);
    fill(item.d_noise_var, 0, steps, 1, NAN);
    if (item.d_decay) fill(item.d_decay, 0, steps, 1, NAN);
  };
  const bool rise = bounds_rise(args.packing, T);
  const double operations = 3.0 * double(T + K) * double(K) * double(2 * K + C);
  for_each_item(B, operations, executor, [&](int64_t s, const Executor& inner) {
    const CausalScanBackwardArgs item = item_of(args, sequence_of(args.packing, rise, T, s), s);
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_all_steps(scope, item.n.T, 0, item.noise_var, item.mask, item.decay);
    const Outcome outcome =
        rise && e.valid ? scan_adjoint_adaptively(item, e, inner) : Outcome::failed;
    if (outcome != Outcome::done) fail(item);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
