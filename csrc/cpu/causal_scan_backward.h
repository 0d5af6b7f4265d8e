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

// What WriteAdjoint<A, F, ScanReads<A, F>> asks of the reads, in the order of the calls.
template <class A, class F>
class ScanReads {
 public:
  static constexpr bool present = true;

  ScanReads(const CausalScanBackwardArgs& args, int64_t step, bool use_sqrt,
            const Executor& executor)
      : args_(args),
        executor_(executor),
        scope_(Workspace::of_thread()),
        use_sqrt_(use_sqrt),
        step_(step),
        K_(args.n.K),
        Q_(scope_, step, K_),
        rest_(scope_, step, K_),
        UQ_(scope_, step, K_),
        inside_(scope_, step, step),
        mixed_(scope_, step, step),
        delta_(scope_, step, step),
        room_(scope_, step, std::max(step, K_)),
        queries_(scope_, step, K_),
        factors_(scope_, step, step),
        slope_(scope_.take<double>(step)),
        var_(scope_.take<double>(step)) {}

  // Before the factors of a chunk are formed.
  void load_chunk(int64_t first, const Episode& e) {
    L_ = std::min(step_, e.steps - first);
    load(args_.queries, 0, Rows{nullptr, first}, L_, Q_);
    for (int64_t t = 0; t < L_; ++t)
      slope_[t] =
          args_.grad_read_var ? load_scalar<double>(args_.grad_read_var, 0, first + t) : 0.0;
  }

  // In sqrt form: the root after step t, without the decays of the chunk.
  void take_root(int64_t t, const F* root) {
    var_[t] = root_product(K_, root, UQ_.ld, Q_[t], room_[0], UQ_[t]);
  }

  // And J' after step t.
  void take_kept(int64_t t, const F* keep) {
    std::memset(rest_[t], 0, size_t(rest_.ld) * sizeof(F));
    for (int64_t i = 0; i < K_; ++i) rest_[t][i] = F(row_dot(K_, keep + i * Q_.ld, Q_[t]));
  }

  // With the factors, the covariance U before the chunk and Y. `kept`: J' was formed.
  void prepare(const Chunk<F>& c, const F* U, const F* Y, bool kept) {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<F> Pt(scope, K_, step_);
    transpose(L_, K_, c.P, c.ldk, Pt.data, Pt.ld);
    gemm<false>(executor_, L_, L_, K_, Q_.data, Q_.ld, Pt.data, Pt.ld, inside_.data, inside_.ld,
                Store::set);
    clear_upper(inside_);
    kept_ = kept;
    if (!use_sqrt_) {
      gemm<false>(executor_, L_, K_, K_, Q_.data, Q_.ld, U, c.ldk, UQ_.data, UQ_.ld, Store::set);
      for (int64_t t = 0; t < L_; ++t)
        var_[t] = row_dot(K_, UQ_[t], Q_[t]) - row_dot(L_, inside_[t], inside_[t]);
    }
    for (int64_t t = 0; t < L_; ++t) {
      slope_[t] /= c.decay[t];
      var_[t] /= c.decay[t];
    }
    if (kept && !use_sqrt_) {
      std::memcpy(rest_.data, Q_.data, size_t(L_ * Q_.ld) * sizeof(F));
      gemm<false>(executor_, L_, K_, L_, inside_.data, inside_.ld, Y, c.ldk, rest_.data, rest_.ld,
                  Store::sub, Structure::lower);
    }
    convert(L_, K_, outer().data, Q_.ld, queries_.data, queries_.ld);
    convert(L_, L_, inside_.data, inside_.ld, factors_.data, factors_.ld);
  }

  // gO of a block of columns; null: zero.
  const A* load_gradient(Workspace::Scope& scope, int64_t first, int64_t L, int64_t c0, int64_t n,
                         int64_t ld) const {
    if (!args_.grad_reads) return nullptr;
    A* gO = scope.take<A>(L * ld);
    load(args_.grad_reads, 0, Rows{nullptr, first}, L, c0, n, gO, ld);
    return gO;
  }

  // gO E' and D^ of a block of columns, given E'.
  void add_columns(const ChunkFactors<A>& f, const A* gO, const A* Et, int64_t n, int64_t ld, A* OE,
                   A* D) const {
    Workspace::Scope scope(Workspace::of_thread());
    A* inner = scope.take<A>(L_ * ld);
    gemm<false>(L_, L_, n, gO, ld, Et, f.ldl, OE, f.ldl, Store::add);
    gemm<true>(L_, n, L_, factors_.data, factors_.ld, gO, ld, inner, ld, Store::set,
               Structure::upper);
    gemm<false>(L_, n, L_, f.V, f.ldl, inner, ld, D, ld, Store::add, Structure::upper);
  }

  void add_to_mean(const A* gO, int64_t n, int64_t ld, A* gR) const {
    gemm<true>(K_, n, L_, queries_.data, queries_.ld, gO, ld, gR, ld, Store::add);
  }

  // I^, and N where it is given, from the sums over all columns gO R' and gO E'.
  void add_inner(const Chunk<F>& c, const A* OR, const A* OE, F* inner, F* N) {
    const int64_t ldk = row_stride<A>(K_), ldl = row_stride<A>(step_);
    convert(L_, L_, OE, ldl, mixed_.data, mixed_.ld);
    clear_upper(mixed_);
    for (int64_t t = 0; t < L_; ++t) {
      std::memcpy(delta_[t], mixed_[t], size_t(delta_.ld) * sizeof(F));
      axpy(0, L_, -2.0 * slope_[t], inside_[t], delta_[t]);
    }
    // dQ takes the place of U q
    for (int64_t t = 0; t < L_; ++t) {
      scale(0, K_, 2.0 * slope_[t], UQ_[t]);
      for (int64_t k = 0; k < K_; ++k) UQ_[t][k] += F(OR[t * ldk + k]);
    }
    const F* factor = use_sqrt_ ? mixed_.data : delta_.data;  // U_t q_t is complete there
    gemm<false>(executor_, L_, K_, L_, factor, mixed_.ld, c.P, c.ldk, UQ_.data, UQ_.ld, Store::add,
                Structure::lower);
    add_to_system(inner);
    if (N != nullptr) add_to_addresses(N);
  }

  // dU += Q~'h Q~, or Q'h Q
  void add_to_covariance(F* dU) const {
    if (!args_.grad_read_var) return;
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<F>& q = outer();
    Matrix<F> weighted(scope, L_, K_);
    for (int64_t t = 0; t < L_; ++t) {
      std::memcpy(weighted[t], q[t], size_t(q.ld) * sizeof(F));
      scale(0, K_, slope_[t], weighted[t]);
    }
    gemm<true>(executor_, K_, K_, L_, q.data, q.ld, weighted.data, q.ld, dU, q.ld, Store::add);
  }

  // right += B'Q~, where J' was formed.
  void add_to_kept(F* right) const {
    gemm<true>(executor_, L_, K_, L_, mixed_.data, mixed_.ld, rest_.data, rest_.ld, right, rest_.ld,
               Store::add, Structure::upper);
  }

  // system -= A'B
  void subtract_mixed(F* system) const {
    gemm<true>(executor_, L_, L_, L_, inside_.data, inside_.ld, mixed_.data, mixed_.ld, system,
               inside_.ld, Store::sub, Structure::upper);
  }

  // N += Delta'Q, or Delta'Q~
  void add_to_addresses(F* N) const {
    const Matrix<F>& q = outer();
    gemm<true>(executor_, L_, K_, L_, delta_.data, delta_.ld, q.data, q.ld, N, q.ld, Store::add,
               Structure::upper);
  }

  void finish(int64_t first, double* d_decay) const {
    for (int64_t t = 0; t < L_; ++t) d_decay[t] -= slope_[t] * var_[t];
    store(args_.d_queries, 0, Rows{nullptr, first}, L_, UQ_);
  }

 private:
  // I^ += sym(A'(h A - B))
  void add_to_system(F* inner) const {
    Workspace::Scope scope(Workspace::of_thread());
    Matrix<F> right(scope, L_, L_), cross(scope, L_, L_);
    const int64_t ldl = inside_.ld;
    for (int64_t t = 0; t < L_; ++t) {
      std::memset(right[t], 0, size_t(right.ld) * sizeof(F));
      axpy(0, L_, slope_[t], inside_[t], right[t]);
      axpy(0, L_, -1.0, mixed_[t], right[t]);
    }
    gemm<true>(executor_, L_, L_, L_, inside_.data, ldl, right.data, right.ld, cross.data, cross.ld,
               Store::set, Structure::upper);
    symmetrise(cross);
    for (int64_t t = 0; t < L_; ++t) axpy(0, L_, 1.0, cross[t], inner + t * ldl);
  }

  const Matrix<F>& outer() const { return kept_ ? rest_ : Q_; }

  void clear_upper(const Matrix<F>& x) const {
    for (int64_t t = 0; t < L_; ++t) std::memset(x[t] + t + 1, 0, size_t(x.ld - t - 1) * sizeof(F));
  }

  const CausalScanBackwardArgs& args_;
  const Executor& executor_;
  Workspace::Scope scope_;
  const bool use_sqrt_;
  const int64_t step_, K_;
  // The queries, what the chunk leaves of them, U q and then dQ; A, B and Delta.
  const Matrix<F> Q_, rest_, UQ_, inside_, mixed_, delta_, room_;
  const Matrix<A> queries_, factors_;  // Q or Q~, and A
  double *slope_, *var_;               // h and read_var
  int64_t L_ = 0;
  bool kept_ = false;
};

template <class A, class F>
Outcome scan_adjoint(const CausalScanBackwardArgs& args, const Episode& e, bool use_sqrt,
                     double limit, const Executor& executor) {
  const int64_t step = scan_steps(args.n.K, args.chunk_size, e);
  ScanReads<A, F> reads(args, step, use_sqrt, executor);
  return WriteAdjoint<A, F, ScanReads<A, F>>(args, 0, e, use_sqrt, limit, executor, step, &reads)
      .run();
}

template <class S>
Outcome scan_adjoint_adaptively(const CausalScanBackwardArgs& args, const Episode& e,
                                const Executor& executor) {
  constexpr bool narrow_state = std::is_same_v<S, float>;
  const bool small = narrow_state && is_small(e.steps, args.n);
  Outcome outcome = Outcome::harder;
  if (narrow_state && !small && e.decay == nullptr)  // gradients of decays cancel
    outcome = scan_adjoint<float, float>(args, e, false, kHardForFloat32Factors, executor);
  if (narrow_state && !small && outcome == Outcome::harder)
    outcome = scan_adjoint<float, double>(args, e, false, kHardForFloat32Gradient, executor);
  if (outcome == Outcome::harder) {
    const double limit = cholesky_limit(args.mean.dtype);
    outcome = scan_adjoint<double, double>(args, e, false, limit, executor);
  }
  if (outcome != Outcome::harder) return outcome;
  return scan_adjoint<double, double>(args, e, true, kNoLimit, executor);
}

inline void causal_scan_backward(const CausalScanBackwardArgs& args, const Executor& executor) {
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
    Outcome outcome = Outcome::failed;
    if (rise && e.valid) {
      outcome = args.mean.dtype == Dtype::float32 ? scan_adjoint_adaptively<float>(item, e, inner)
                                                  : scan_adjoint_adaptively<double>(item, e, inner);
    }
    if (outcome != Outcome::done) fail(item);
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
