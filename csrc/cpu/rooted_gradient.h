// The gradient of the covariance at the start, carried in the coordinates of its square root.
//
// Going back through steps that leave little of a variance, the gradient gU of the covariance after
// them is as large as the inverse square of what they leave, and at the start, where the memory was
// wide, all of that has cancelled: 1e-6 of noise and a thousand steps at a few addresses leave no
// digit. With U = root' root carry H = root gU root' and h = root gR instead. A write makes of the
// root Q root with phi = root w, s = phi'phi + v and Q = I - phi phi' / (s + sqrt(v s)), symmetric
// and no longer than one; with d and gl as in stationary_steps.h, and psi = root q for a read after
// it, its gradients gO and gv,
//   h <- h + psi gO',  H <- H + gv psi psi',
//   h <- Q h,  H <- Q H Q + sym(h d' phi') / s + gl/2 (|d|^2 / s^2 - C / s) phi phi',
//   h <- h + gl phi d' / s:
// what was large is multiplied by the small numbers of Q, and nothing cancels. Where the dynamics
// make [a root; ..] of it, O [new root; 0], h <- O1 h and H <- O1 H O1', O1 the top left of O. A
// division of U by a decay leaves H as it is and takes its root from h.
#pragma once

#include "bayes_write.h"
#include "vectors.h"

namespace kanerva {
namespace KANERVA_ISA {

// A step of a write, in reverse: what the root before it makes of the address, s and the noise.
struct RootedStep {
  const double* phi;
  double s, noise;

  double shrink() const { return 1.0 / (s + std::sqrt(noise * s)); }
};

class RootedGradient {
 public:
  RootedGradient(Workspace::Scope& scope, int64_t K, const Columns& columns)
      : K_(K),
        columns_(columns),
        H_(scope, K, K),
        h_(scope, K, columns),
        u_(scope.take<double>(padded<double>(K))),
        y_(scope.take<double>(columns.count * columns.width)) {}

  bool started() const { return started_; }

  // From the gradients of a belief with this root.
  void start(const Executor& executor, const Matrix<double>& root, const Matrix<double>& gU,
             const MeanBlocks<double>& gR) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<double> turned(scope, K_, K_), half(scope, K_, K_);
    transpose(root, turned);
    product(executor, root, gU, half);
    product(executor, half, turned, H_);
    symmetrise(H_);
    largest_ = largest_of(H_);
    for (int64_t i = 0; i < columns_.count; ++i) product(root, gR[i], h_[i]);
    started_ = true;
  }

  // A read of a block of columns; gO a row of its gradient.
  void read_columns(int64_t block, const double* psi, const double* gO, double scale = 1.0) {
    const Matrix<double> h = h_[block];
    for (int64_t k = 0; k < K_; ++k) axpy(0, h.columns, scale * psi[k], gO, h[k]);
  }

  void read(const double* psi, double gv) {
    if (gv == 0.0) return;
    for (int64_t k = 0; k < K_; ++k) axpy(0, K_, gv * psi[k], psi, H_[k]);
  }

  // A write of a block of columns; adds (Q h) d to `hd`.
  void write_columns(int64_t block, const RootedStep& step, const double* d, double gl,
                     double* hd) {
    using V = Simd<double>;
    const Matrix<double> h = h_[block];
    const int64_t n = h.columns;
    double* y = y_ + columns_.at(block);
    std::memset(y, 0, size_t(padded<double>(n)) * sizeof(double));
    for (int64_t k = 0; k < K_; ++k) axpy(0, n, step.phi[k], h[k], y);
    const double f = step.shrink(), g = gl / step.s;
    for (int64_t k = 0; k < K_; ++k) {
      const double shrunk = -f * step.phi[k], more = g * step.phi[k];
      const auto a = V::broadcast(shrunk), b = V::broadcast(more);
      typename V::Vector sum{};
      int64_t j = 0;
      for (; j + V::width <= n; j += V::width) {
        const auto x = V::load(h[k] + j) + a * V::load(y + j), by = V::load(d + j);
        sum += x * by;
        V::store(h[k] + j, x + b * by);
      }
      double total = V::sum(sum);
      for (; j < n; ++j) {
        const double x = h[k][j] + shrunk * y[j];
        total += x * d[j];
        h[k][j] = x + more * d[j];
      }
      hd[k] += total;
    }
  }

  // And the rest of it, with the sum of `hd` over all columns and evidence = gl (|d|^2 / s - C).
  void write(const RootedStep& step, const double* hd, double evidence) {
    const double f = step.shrink();
    double energy = 0.0;
    for (int64_t k = 0; k < K_; ++k) {
      u_[k] = dot(K_, H_[k], step.phi);
      energy += step.phi[k] * u_[k];
    }
    const double outer = 0.5 * (f * f * energy + 0.5 * evidence / step.s);
    for (int64_t k = 0; k < K_; ++k) u_[k] = 0.5 * hd[k] / step.s - f * u_[k] + outer * step.phi[k];
    add_outers(serial_executor(), H_, step.phi, u_, u_, step.phi);
    symmetrise(H_);
  }

  void measure() { largest_ = std::max(largest_, largest_of(H_)); }

  // Of dynamics: O1'.
  void turn(const Matrix<double>& turn) {
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<double> half(scope, K_, K_), turned(scope, K_, K_);
    product_transposed(turn, H_, half);
    transpose(half, turned);
    product_transposed(turn, turned, H_);
    symmetrise(H_);
    for (int64_t i = 0; i < columns_.count; ++i) {
      Workspace::Scope inner(Workspace::of_thread());
      const Matrix<double> before = take_block<double>(inner, K_, columns_, i);
      copy(h_[i], before);
      product_transposed(turn, before, h_[i]);
    }
  }

  // A block of columns of a chunk whose factors come from a root; E and gO (L x columns), and hd
  // (L x K) for write_chunk().
  template <class Reads>
  void write_chunk_columns(int64_t block, const Chunk<double>& c, const Episode& e, int64_t first,
                           const Reads& reads, const Matrix<double>& E, const Matrix<double>& gO,
                           double gl, const Matrix<double>& hd) {
    Workspace::Scope scope(Workspace::of_thread());
    double *phi = take_padded(scope, K_), *d = take_padded(scope, E.columns);
    for (int64_t t = c.L - 1; t >= 0; --t) {
      const RootedStep step = step_of(c, e, first, t, phi);
      if (gO) read_columns(block, reads.through_root(t), gO[t], 1.0 / std::sqrt(c.decay[t]));
      for (int64_t j = 0; j < E.columns; ++j) d[j] = c.S[t][t] * E[t][j];
      write_columns(block, step, d, gl, hd[t]);
      if (e.decay) scale(std::sqrt(e.decay[first + t]), h_[block]);
    }
  }

  // And the rest of it; H (L x L) has |E_t|^2 on its diagonal.
  template <class Reads>
  void write_chunk(const Chunk<double>& c, const Episode& e, int64_t first, const Reads& reads,
                   const Matrix<double>& hd, const Matrix<double>& H, double gl) {
    Workspace::Scope scope(Workspace::of_thread());
    double* phi = take_padded(scope, K_);
    for (int64_t t = c.L - 1; t >= 0; --t) {
      if (Reads::present) read(reads.through_root(t), reads.slope(t));
      write(step_of(c, e, first, t, phi), hd[t], gl * (c.decay[t] * H[t][t] - double(columns_.C)));
    }
    measure();
  }

  // gU at the start by H in place of what was carried on its own, whose largest element on the way
  // was `largest`: where it is by three digits the better of the two.
  void replace(const View& cov, int64_t b, double largest, const Matrix<double>& gU) const {
    constexpr double worth_it = 1e-3;
    Workspace::Scope scope(Workspace::of_thread());
    const Matrix<double> root(scope, K_, K_), inverse(scope, K_, K_), turned(scope, K_, K_),
        half(scope, K_, K_);
    double* inverse_diagonal = scope.take<double>(K_);
    if (!load_root(cov, b, root)) return;
    for (int64_t k = 0; k < K_; ++k) inverse_diagonal[k] = 1.0 / root[k][k];
    invert_upper(root, inverse_diagonal, inverse);
    const double norm = row_norm(inverse);
    if (!(largest_ * norm * norm < worth_it * largest) || not_finite(K_, H_)) return;
    transpose(inverse, turned);
    product(inverse, H_, half);
    product(half, turned, gU);
    symmetrise(gU);
  }

  static double largest_of(const Matrix<double>& x) {
    using V = Simd<double>;
    typename V::Vector best{};
    double found = 0.0;
    for (int64_t i = 0; i < x.rows; ++i) {
      int64_t j = 0;
      for (; j + V::width <= x.columns; j += V::width) {
        const auto v = V::load(x[i] + j), size = v < V::broadcast(0.0) ? -v : v;
        best = size > best ? size : best;
      }
      for (; j < x.columns; ++j) found = std::max(found, std::fabs(x[i][j]));
    }
    for (int lane = 0; lane < V::width; ++lane) found = std::max(found, double(best[lane]));
    return found;
  }

 private:
  static double* take_padded(Workspace::Scope& scope, int64_t n) {
    double* x = scope.take<double>(padded<double>(n));
    std::memset(x, 0, size_t(padded<double>(n)) * sizeof(double));
    return x;
  }

  // Step t of a chunk, of the decayed covariance, phi in its room.
  RootedStep step_of(const Chunk<double>& c, const Episode& e, int64_t first, int64_t t,
                     double* phi) const {
    const double b = c.decay[t], root = c.S[t][t];
    for (int64_t k = 0; k < K_; ++k) phi[k] = c.X[t][k] / std::sqrt(b);
    return {phi, root * root / b, e.noise[first + t]};
  }

  static double dot(int64_t n, const double* x, const double* y) {
    using V = Simd<double>;
    typename V::Vector sum{};
    int64_t j = 0;
    for (; j + V::width <= n; j += V::width) sum += V::load(x + j) * V::load(y + j);
    double total = V::sum(sum);
    for (; j < n; ++j) total += x[j] * y[j];
    return total;
  }

  const int64_t K_;
  const Columns columns_;
  const Matrix<double> H_;
  const MeanBlocks<double> h_;
  double *u_, *y_;
  double largest_ = 0.0;
  bool started_ = false;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
