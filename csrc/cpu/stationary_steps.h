// The write into a memory that moves, step by step on a square root of the covariance: what serves
// where Cholesky factors of a chunk lose their digits, in float64 throughout.
//
// With U = root' root, the dynamics are the QR factorisation of [a root; sqrt(1 - a^2) root of
// Sigma], a write is Potter's update (write_chunk.h): nothing is squared and nothing subtracted.
// One step at a time, since the dynamics come between the updates. The adjoint of a step, with
// c = U w, s = w'c + v, d = z - R'w, r = gR d - 2 gU c, U+ the covariance after it:
//   dS = (c'gU c - c'gR d) / s^2 + gl/2 (|d|^2 / s^2 - C / s) = dv,  dz = (gR'c - gl d) / s,
//   dw = U+ r / s - R dz + (gl (|d|^2 / s - C) - c'gR d / s) c / s,
//   gR <- gR - w dz',  gU <- gU + sym(w r') / s + dS w w',
// where U+ r takes the place of U r - c c'r / s, which would cancel. What gU is at the start
// cancels too: rooted_gradient.h.
#pragma once

#include "causal_scan.h"
#include "rooted_gradient.h"
#include "stationary_chunk.h"
#include "vectors.h"

namespace kanerva {
namespace KANERVA_ISA {

// A root of a positive semi-definite matrix, of any rank: x = root' root. By pivots, until what is
// left is rounding: too small, or no longer semi-definite. False where x is far from it.
inline bool semidefinite_root(const Matrix<double>& x, const Matrix<double>& root) {
  constexpr double far = 1e-3;
  const int64_t K = x.rows;
  Workspace::Scope scope(Workspace::of_thread());
  const Matrix<double> rest(scope, K, K);
  copy(x, rest);
  root.zero();
  double first = 0.0;
  for (int64_t i = 0; i < K; ++i) {
    int64_t pivot = 0;
    for (int64_t k = 0; k < K; ++k) {
      if (!std::isfinite(rest[k][k]) || rest[k][k] < -far * std::fabs(first)) return false;
      if (rest[k][k] > rest[pivot][pivot]) pivot = k;
    }
    const double largest = rest[pivot][pivot];
    if (i == 0) first = largest;
    if (!(largest > double(K) * rounding_of(Dtype::float64) * first))
      return largest >= -far * first;
    const double* row = rest[pivot];
    for (int64_t k = 0; k < K; ++k)
      if (row[k] * row[k] > 4.0 * largest * std::max(rest[k][k], 0.0)) return true;
    std::memcpy(root[i], row, size_t(padded<double>(K)) * sizeof(double));
    scale(0, K, 1.0 / std::sqrt(largest), root[i]);
    for (int64_t k = 0; k < K; ++k) axpy(0, K, -root[i][k], root[i], rest[k]);
    for (int64_t k = 0; k < K; ++k) rest[k][pivot] = rest[pivot][k] = 0.0;
  }
  return true;
}

// R of the QR factorisation of the first `pivots` columns of `stacked`, by Householder reflections,
// in its first rows; the other columns are reflected with them.
inline void triangularise(const Matrix<double>& stacked, int64_t pivots) {
  constexpr int64_t width = Simd<double>::width;
  const int64_t n = stacked.columns;
  Workspace::Scope scope(Workspace::of_thread());
  double* v = scope.take<double>(stacked.rows);
  double* w = scope.take<double>(padded<double>(n));
  for (int64_t j = 0; j < pivots; ++j) {
    double square = 0.0;
    for (int64_t i = j; i < stacked.rows; ++i) {
      v[i] = stacked[i][j];
      square += v[i] * v[i];
    }
    if (square == v[j] * v[j]) continue;  // nothing below the diagonal
    const double norm = std::copysign(std::sqrt(square), -v[j]);
    v[j] -= norm;
    const double scaled = 2.0 / (square - stacked[j][j] * stacked[j][j] + v[j] * v[j]);
    const int64_t from = j / width * width;
    std::memset(w, 0, size_t(padded<double>(n)) * sizeof(double));
    for (int64_t i = j; i < stacked.rows; ++i)
      if (v[i] != 0.0) axpy(from, n, v[i], stacked[i], w);
    for (int64_t c = from; c < j; ++c) w[c] = 0.0;
    for (int64_t i = j; i < stacked.rows; ++i)
      if (v[i] != 0.0) axpy(from, n, -scaled * v[i], w, stacked[i]);
    for (int64_t i = j + 1; i < stacked.rows; ++i) stacked[i][j] = 0.0;
  }
}

// A belief, its root, and what moves and writes it.
class SteppedMemory {
 public:
  Matrix<double> root, R;

  SteppedMemory(Workspace::Scope& scope, const WriteInputs& args)
      : root(scope, args.n.K, args.n.K),
        R(scope, args.n.K, args.n.C),
        Sigma(load_stationary<double>(scope, args.stationary_cov, args.n.K)),
        Sigma_root_(scope, args.n.K, args.n.K),
        c_(take_vector<double>(scope, args.n.K)),
        phi_(take_vector<double>(scope, args.n.K)),
        d_(take_vector<double>(scope, args.n.C)) {
    set_identity(Sigma_root_);
    valid_ = load_root(args.cov, 0, root) && (!Sigma || semidefinite_root(Sigma, Sigma_root_));
    load(args.mean, 0, Rows{}, R);
  }

  const Matrix<double> Sigma;  // absent: the identity
  bool valid() const { return valid_; }
  const double* c() const { return c_; }
  const double* phi() const { return phi_; }
  const double* d() const { return d_; }
  double s() const { return s_; }

  // The dynamics before a step. `turn`, if there: what makes a times the old root of the new one,
  // transposed.
  void move(double a, const Matrix<double>& turn = {}) {
    if (a == 1.0) return;
    const int64_t K = root.rows;
    Workspace::Scope scope(Workspace::of_thread());
    const int64_t at = padded<double>(K);  // of the columns that are reflected with the roots
    const Matrix<double> stacked(scope, 2 * K, turn ? at + K : K);
    stacked.zero();
    const auto block = [&](int64_t row, int64_t column) {
      return Matrix<double>(stacked[row] + column, K, K, stacked.ld);
    };
    convert(root, block(0, 0));
    convert(Sigma_root_, block(K, 0));
    scale(a, block(0, 0));
    scale(std::sqrt((1.0 - a) * (1.0 + a)), block(K, 0));
    if (turn)
      for (int64_t k = 0; k < K; ++k) stacked[k][at + k] = 1.0;
    triangularise(stacked, K);
    convert(block(0, 0), root);
    if (turn) convert(block(0, at), turn);
    scale(a, R);
  }

  // A write of z at w; leaves c, s, d and phi, what the root made of w. False where s is not
  // positive and finite.
  bool write(const double* w, const double* z, double noise) {
    const int64_t K = root.rows, C = R.columns;
    const double energy = root_product(root, w, phi_, c_);
    s_ = energy + noise;
    if (!(s_ > 0.0 && s_ < HUGE_VAL)) return false;
    std::memcpy(d_, z, size_t(padded<double>(C)) * sizeof(double));
    for (int64_t k = 0; k < K; ++k) axpy(0, C, -w[k], R[k], d_);
    const double factor = -1.0 / (s_ + std::sqrt(noise * s_));
    for (int64_t k = 0; k < K; ++k) {
      axpy(0, K, factor * phi_[k], c_, root[k]);
      axpy(0, C, c_[k] / s_, d_, R[k]);
    }
    return true;
  }

  // U x, and root x in phi; returns x'U x.
  double product_with(const double* x, double* Ux) { return root_product(root, x, phi_, Ux); }

 private:
  Matrix<double> Sigma_root_;
  double *c_, *phi_, *d_;
  double s_ = 0.0;
  bool valid_ = false;
};

// A row of the steps of an item in float64, padded.
inline void load_step(const View& v, int64_t t, int64_t n, double* x) {
  load(v, 0, Rows{nullptr, t}, Matrix<double>(x, 1, n, padded<double>(n)));
}

inline Outcome stationary_scan_by_steps(const CausalScanArgs& args, const Episode& e) {
  const int64_t K = args.n.K, C = args.n.C;
  Workspace::Scope scope(Workspace::of_thread());
  SteppedMemory memory(scope, args);
  if (!memory.valid()) return Outcome::failed;
  double* w = take_vector<double>(scope, K);
  double* z = take_vector<double>(scope, C);
  double* Uq = take_vector<double>(scope, K);
  LogProduct variances;
  double quadratic = 0.0, counted = 0.0;
  for (int64_t t = 0; t < e.steps; ++t) {
    if (e.counts == nullptr || e.counts[t]) {
      load_step(args.weights, t, K, w);
      load_step(args.values, t, C, z);
      memory.move(e.decay[t]);
      if (!memory.write(w, z, e.noise[t])) return Outcome::failed;
      variances.multiply(memory.s());
      quadratic += row_dot(C, memory.d(), memory.d()) / memory.s();
      counted += 1.0;
    }
    if (!args.queries) continue;
    load_step(args.queries, t, K, w);
    store_scalar(args.read_var_out, 0, t, memory.product_with(w, Uq));
    std::memset(z, 0, size_t(padded<double>(C)) * sizeof(double));
    for (int64_t k = 0; k < K; ++k) axpy(0, C, w[k], memory.R[k], z);
    store(args.reads_out, 0, Rows{nullptr, t}, Matrix<double>(z, 1, C, padded<double>(C)));
  }
  const double log_evidence =
      -0.5 * (quadratic + double(C) * (variances.value() + counted * kLog2Pi));
  if (!std::isfinite(log_evidence)) return Outcome::failed;
  store(args.mean_out, 0, Rows{}, memory.R);
  store(args.cov_out, 0, Rows{}, square(serial_executor(), scope, memory.root));
  store_scalar(args.log_evidence, 0, 0, log_evidence);
  return Outcome::done;
}

class StationaryStepAdjoint {
 public:
  StationaryStepAdjoint(const CausalScanBackwardArgs& args, const Episode& e)
      : args_(args),
        e_(e),
        scope_(Workspace::of_thread()),
        K_(args.n.K),
        C_(args.n.C),
        gl_(args.grad_log_evidence ? load_scalar<double>(args.grad_log_evidence, 0) : 0.0),
        memory_(scope_, args),
        gU_(scope_, K_, K_),
        gR_(scope_, K_, C_),
        dSigma_(scope_, K_, K_),
        columns_(split_columns<double>(C_)),
        rooted_(scope_, K_, columns_),
        turn_(scope_, K_, K_),
        phi_(take_vector<double>(scope_, K_)),
        hd_(take_vector<double>(scope_, K_)),
        w_(take_vector<double>(scope_, K_)),
        q_(take_vector<double>(scope_, K_)),
        x_(take_vector<double>(scope_, K_)),
        r_(take_vector<double>(scope_, K_)),
        z_(take_vector<double>(scope_, C_)),
        o_(take_vector<double>(scope_, C_)) {}

  Outcome run() {
    if (!memory_.valid()) return Outcome::failed;
    load_or_zero(serial_executor(), args_.grad_mean, 0, gR_);
    load_or_zero(serial_executor(), args_.grad_cov, 0, gU_);
    symmetrise(gU_);
    dSigma_.zero();
    const int64_t T = e_.steps;
    find_remembered();
    const int64_t segment = std::max<int64_t>(1, int64_t(std::ceil(std::sqrt(double(T)))));
    const int64_t segments = (T + segment - 1) / segment;
    const States states(scope_, segments, K_, C_), inner(scope_, segment, K_, C_);
    for (int64_t s = 0; s < segments; ++s) {
      states.keep(s, memory_);
      if (s + 1 == segments) break;
      for (int64_t t = s * segment; t < (s + 1) * segment; ++t)
        if (!advance(t)) return Outcome::failed;
    }
    for (int64_t s = segments - 1; s >= 0; --s) {
      const int64_t first = s * segment, count = std::min(segment, T - first);
      states.restore(s, memory_);
      for (int64_t i = 0; i < count; ++i) {
        inner.keep(i, memory_);
        if (i + 1 < count && !advance(first + i)) return Outcome::failed;
      }
      for (int64_t i = count - 1; i >= 0; --i) {
        inner.restore(i, memory_);
        if (!reverse(first + i)) return Outcome::failed;
      }
    }
    store(args_.d_mean, 0, Rows{}, gR_);
    if (rooted_.started()) rooted_.replace(args_.cov, 0, largest_, gU_);
    store(args_.d_cov, 0, Rows{}, gU_);
    if (args_.d_stationary_cov) store(args_.d_stationary_cov, 0, Rows{}, dSigma_);
    return Outcome::done;
  }

 private:
  // Beliefs before steps.
  class States {
   public:
    States(Workspace::Scope& scope, int64_t count, int64_t K, int64_t C)
        : K_(K), roots_(scope, count * K, K), means_(scope, count * K, C) {}
    void keep(int64_t i, const SteppedMemory& m) const {
      copy(m.root, {roots_[i * K_], K_, K_, roots_.ld});
      copy(m.R, {means_[i * K_], K_, means_.columns, means_.ld});
    }
    void restore(int64_t i, const SteppedMemory& m) const {
      copy({roots_[i * K_], K_, K_, roots_.ld}, m.root);
      copy({means_[i * K_], K_, means_.columns, means_.ld}, m.R);
    }

   private:
    const int64_t K_;
    const Matrix<double> roots_, means_;
  };

  bool counts(int64_t t) const { return e_.counts == nullptr || e_.counts[t]; }

  // The steps whose gradients reach the covariance at the start.
  void find_remembered() {
    constexpr double forgotten = 1e-20;  // of a covariance 1e-40
    double kept = 1.0;
    for (remembered_ = 0; remembered_ < e_.steps && kept > forgotten; ++remembered_)
      if (counts(remembered_)) kept *= e_.decay[remembered_];
  }

  bool write(int64_t t) {
    load_step(args_.weights, t, K_, w_);
    load_step(args_.values, t, C_, z_);
    return memory_.write(w_, z_, e_.noise[t]);
  }

  bool advance(int64_t t) {
    if (!counts(t)) return true;
    memory_.move(e_.decay[t]);
    return write(t);
  }

  // The adjoint of step t; the memory is the one before it.
  bool reverse(int64_t t) {
    if (!counts(t)) {
      start_rooted(t);
      reverse_read(t);
      store_step(t, nullptr, nullptr, 0.0, 0.0);
      return true;
    }
    Workspace::Scope scope(Workspace::of_thread());
    const double a = e_.decay[t];
    const Matrix<double> U = square(serial_executor(), scope, memory_.root);
    const Matrix<double> before(scope, K_, C_), moved(scope, K_, C_);
    copy(memory_.R, before);
    memory_.move(a, t < remembered_ ? turn_ : Matrix<double>{});
    copy(memory_.R, moved);
    if (!write(t)) return false;
    start_rooted(t);
    if (rooted_.started()) std::memcpy(phi_, memory_.phi(), size_t(K_) * sizeof(double));
    reverse_read(t);
    const double dS = reverse_write(moved);
    if (rooted_.started()) {
      reverse_rooted(t);
      if (a != 1.0) rooted_.turn(turn_);
    }
    double da = 0.0;
    for (int64_t k = 0; k < K_; ++k) {
      da += row_dot(C_, gR_[k], before[k]) + 2.0 * a * row_dot(K_, gU_[k], U[k]);
      da -= 2.0 * a * (memory_.Sigma ? row_dot(K_, gU_[k], memory_.Sigma[k]) : gU_[k][k]);
    }
    axpy((1.0 - a) * (1.0 + a), gU_, dSigma_);
    scale(a, gR_);
    scale(a * a, gU_);
    store_step(t, x_, z_, dS, da);
    return true;
  }

  // With the memory after step t and the gradients that come in there.
  void start_rooted(int64_t t) {
    if (t >= remembered_ || rooted_.started()) return;
    Workspace::Scope scope(Workspace::of_thread());
    const MeanBlocks<double> gR(scope, K_, columns_);
    for (int64_t i = 0; i < columns_.count; ++i)
      for (int64_t k = 0; k < K_; ++k)
        for (int64_t j = 0; j < columns_.of(i); ++j) gR[i][k][j] = gR_[k][columns_.at(i) + j];
    rooted_.start(serial_executor(), memory_.root, gU_, gR);
  }

  void reverse_rooted(int64_t t) {
    const RootedStep step{phi_, memory_.s(), e_.noise[t]};
    const double* d = memory_.d();
    std::memset(hd_, 0, size_t(K_) * sizeof(double));
    for (int64_t i = 0; i < columns_.count; ++i)
      rooted_.write_columns(i, step, d + columns_.at(i), gl_, hd_);
    rooted_.write(step, hd_, gl_ * (row_dot(C_, d, d) / step.s - double(C_)));
    rooted_.measure();
  }

  // gR += q gO', gU += gv q q', dq = R gO + 2 gv U q, with the memory after the step.
  void reverse_read(int64_t t) {
    if (!args_.queries) return;
    load_step(args_.queries, t, K_, q_);
    const double gv = args_.grad_read_var ? load_scalar<double>(args_.grad_read_var, 0, t) : 0.0;
    memory_.product_with(q_, x_);
    scale(0, K_, 2.0 * gv, x_);
    if (args_.grad_reads) load_step(args_.grad_reads, t, C_, o_);
    if (rooted_.started()) {
      rooted_.read(memory_.phi(), gv);
      for (int64_t i = 0; i < columns_.count && args_.grad_reads; ++i)
        rooted_.read_columns(i, memory_.phi(), o_ + columns_.at(i));
    }
    if (args_.grad_reads) {
      for (int64_t k = 0; k < K_; ++k) {
        x_[k] += row_dot(C_, memory_.R[k], o_);
        axpy(0, C_, q_[k], o_, gR_[k]);
      }
    }
    for (int64_t k = 0; k < K_; ++k) axpy(0, K_, gv * q_[k], q_, gU_[k]);
    store(args_.d_queries, 0, Rows{nullptr, t}, Matrix<double>(x_, 1, K_, padded<double>(K_)));
  }

  // Gradients of the moved state from those of the posterior; dw in x, dz in z. Returns dS.
  double reverse_write(const Matrix<double>& R) {
    const double *c = memory_.c(), *d = memory_.d(), s = memory_.s();
    double c_gU_c = 0.0, c_gR_d = 0.0;
    std::memset(z_, 0, size_t(padded<double>(C_)) * sizeof(double));
    for (int64_t k = 0; k < K_; ++k) {
      const double gU_c = row_dot(K_, gU_[k], c), gR_d = row_dot(C_, gR_[k], d);
      c_gU_c += c[k] * gU_c;
      c_gR_d += c[k] * gR_d;
      r_[k] = gR_d - 2.0 * gU_c;
      axpy(0, C_, c[k] / s, gR_[k], z_);
    }
    axpy(0, C_, -gl_ / s, d, z_);
    const double evidence = gl_ * (row_dot(C_, d, d) / s - double(C_)) / s;
    const double dS = (c_gU_c - c_gR_d) / (s * s) + 0.5 * evidence;
    memory_.product_with(r_, x_);
    scale(0, K_, 1.0 / s, x_);
    axpy(0, K_, evidence - c_gR_d / (s * s), c, x_);
    for (int64_t k = 0; k < K_; ++k) {
      x_[k] -= row_dot(C_, R[k], z_);
      axpy(0, C_, -w_[k], z_, gR_[k]);
      axpy(0, K_, 0.5 * w_[k] / s, r_, gU_[k]);
      axpy(0, K_, 0.5 * r_[k] / s + dS * w_[k], w_, gU_[k]);
    }
    symmetrise(gU_);
    largest_ = std::max(largest_, RootedGradient::largest_of(gU_));
    return dS;
  }

  void store_step(int64_t t, double* dw, double* dz, double dv, double da) {
    const Rows at{nullptr, t};
    double* zero = dw != nullptr ? nullptr : r_;
    if (zero != nullptr) std::memset(r_, 0, size_t(padded<double>(K_)) * sizeof(double));
    store(args_.d_weights, 0, at,
          Matrix<double>(zero != nullptr ? zero : dw, 1, K_, padded<double>(K_)));
    if (dz == nullptr) {
      std::memset(z_, 0, size_t(padded<double>(C_)) * sizeof(double));
      dz = z_;
    }
    store(args_.d_values, 0, at, Matrix<double>(dz, 1, C_, padded<double>(C_)));
    store_scalar(args_.d_noise_var, 0, t, dv);
    store_scalar(args_.d_retention, 0, t, da);
  }

  const CausalScanBackwardArgs& args_;
  const Episode& e_;
  Workspace::Scope scope_;
  const int64_t K_, C_;
  const double gl_;
  SteppedMemory memory_;
  const Matrix<double> gU_, gR_, dSigma_;
  const Columns columns_;
  RootedGradient rooted_;
  const Matrix<double> turn_;  // of the dynamics of a step
  double *phi_, *hd_;
  int64_t remembered_ = 0;
  double largest_ = 0.0;  // of gU so far
  double *w_, *q_, *x_, *r_, *z_, *o_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
